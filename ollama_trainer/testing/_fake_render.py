"""How the fake Ollama makes prompts: Jinja as it is, a little of Go's templates, one renderer.

Of Go templates it knows `range .Messages` and `.ToolCalls`, `if` with a field or `eq .Role "…"`,
`else`, `end`, fields, `json`, and marks that trim blanks. Of renderers it knows `fake-thinking`:
ChatML with thoughts in <think>.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ollama_trainer.testing._fake_store import Refusal, StoredModel

_ACTION = re.compile(r"(\s*\{\{-|\{\{)\s*(.*?)\s*(-\}\}\s*|\}\})", re.DOTALL)
_Values = Mapping[str, Any]
_PARAMETERS = ("type", "required", "properties")


def rendered(model: StoredModel, body: Mapping[str, Any]) -> str:
    """The prompt that the model would get for a request to /api/chat.

    Raises:
        Refusal: there is no such renderer, or the template refuses.
    """
    messages = [*model.messages, *body["messages"]]
    if body["messages"][0]["role"] != "system" and model.system:
        messages.insert(0, {"role": "system", "content": model.system})
    think = body.get("think", "thinking" in model.capabilities)
    tools = body.get("tools") or []
    if model.renderer:
        if model.renderer != "fake-thinking":
            raise Refusal(f'unknown renderer "{model.renderer}"')
        return _thinking(messages, tools, think=bool(think))
    if model.uses_jinja:
        return _jinja(model, messages, tools, think=bool(think))
    return _go(model.template or "{{ .Prompt }}", messages, tools, think=bool(think))


def _thinking(messages: Sequence[_Values], tools: Sequence[Any], *, think: bool) -> str:
    text = f"<tools>{json.dumps(list(tools))}</tools>\n" if tools else ""
    for message in messages:
        said = message.get("content") or ""
        if message.get("tool_calls"):
            said += f"<tool_call>{json.dumps(_calls(message))}</tool_call>"
        text += f"<|im_start|>{message['role']}\n{said}<|im_end|>\n"
    if messages[-1]["role"] == "assistant":
        return text.removesuffix("<|im_end|>\n")
    silence = "" if think else "<think>\n\n</think>\n\n"
    return f"{text}<|im_start|>assistant\n{silence}"


def _calls(message: _Values) -> list[Any]:
    return [call["function"] for call in message["tool_calls"]]


def _jinja(
    model: StoredModel, messages: Sequence[_Values], tools: Sequence[Any], *, think: bool
) -> str:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    values = model.gguf.values
    tokens = values.get("tokenizer.ggml.tokens", [])
    special = {
        f"{name}_token": tokens[values[key]] if key in values else ""
        for name in ("bos", "eos")
        for key in [f"tokenizer.ggml.{name}_token_id"]
    }
    try:
        text = environment.from_string(model.gguf.chat_template).render(
            messages=[_served(message) for message in messages],
            add_generation_prompt=True,
            enable_thinking=think,
            **({"tools": list(map(_tool, tools))} if tools else {}),
            **special,
        )
    except jinja2.TemplateError as error:
        raise Refusal(str(error), 400) from error
    adds_bos = values.get(
        "tokenizer.ggml.add_bos_token", values.get("tokenizer.ggml.model") == "llama"
    )
    return text.removeprefix(special["bos_token"]) if adds_bos else text


def _served(message: _Values) -> dict[str, Any]:
    made = {"role": message["role"], "content": message.get("content") or ""}
    if message.get("tool_name"):
        made["name"] = message["tool_name"]
    if message.get("tool_call_id"):
        made["tool_call_id"] = message["tool_call_id"]
    if message.get("tool_calls"):
        made["tool_calls"] = [{"type": "function", **call} for call in message["tool_calls"]]
    return made


def _tool(tool: _Values) -> dict[str, Any]:
    """Ollama has fields of its own for the most usual parts, in this order."""
    function = tool["function"]
    parameters = function.get("parameters") or {}
    return {
        "type": tool["type"],
        "function": {
            "name": function["name"],
            "description": function.get("description", ""),
            "parameters": {key: parameters[key] for key in _PARAMETERS if parameters.get(key)},
        },
    }


def _go(template: str, messages: Sequence[_Values], tools: Sequence[Any], *, think: bool) -> str:
    pieces = list(_pieces(template))
    run = _Go(pieces)
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    common = {"Tools": list(tools), "Think": think, "IsThinkSet": True}
    if ".Messages" in template:
        shown = [
            {
                "Role": message["role"],
                "Content": message.get("content") or "",
                "ToolCalls": _calls(message) if message.get("tool_calls") else [],
                **common,
            }
            for message in messages
        ]
        return run.text({"System": system, "Messages": shown, **common})
    return "".join(_turns(run, messages, common))


def _turns(run: _Go, messages: Sequence[_Values], common: _Values) -> Iterator[str]:
    """Without `.Messages` the template is run for each question, and the last one is left open."""
    system = prompt = ""
    for message in messages:
        if message["role"] == "system":
            system = message["content"]
        elif message["role"] == "user":
            prompt = message["content"]
        else:
            said = {"System": system, "Prompt": prompt, "Response": message["content"], **common}
            yield run.text(said)
            system = prompt = ""
    mark = "\0"
    open_end = run.text({"System": system, "Prompt": prompt, "Response": mark, **common})
    yield open_end.partition(mark)[0]


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """Texts and actions: ("text", …) and ("action", …)."""
    place = 0
    for found in _ACTION.finditer(template):
        yield "text", template[place : found.start()]
        yield "action", found[2]
        place = found.end()
    yield "text", template[place:]


class _Go:
    """A template that is run by going through its pieces."""

    def __init__(self, pieces: Sequence[tuple[str, str]]) -> None:
        self._pieces = pieces

    def text(self, values: _Values) -> str:
        return self._run(0, values)[0]

    def _run(self, place: int, values: _Values) -> tuple[str, int]:
        """What is written up to the `else` or `end` of this level, and where that is."""
        written = ""
        while place < len(self._pieces):
            kind, said = self._pieces[place]
            if kind == "text":
                written += said
            elif said in ("else", "end"):
                break
            elif said.startswith(("range ", "if ")):
                more, place = self._block(place, said, values)
                written += more
            elif not said.startswith("/*"):
                written += _field(said, values)
            place += 1
        return written, place

    def _block(self, place: int, said: str, values: _Values) -> tuple[str, int]:
        """What a block writes, and where its `end` is."""
        word, _, condition = said.partition(" ")
        each: list[_Values]
        if word == "range":
            each = [v if isinstance(v, dict) else {} for v in values.get(condition[1:], [])]
        else:
            each = [values] if _holds(condition, values) else []
        _, after = self._run(place + 1, values)
        written = "".join(self._run(place + 1, one)[0] for one in each)
        if self._pieces[after][1] == "else":
            otherwise, end = self._run(after + 1, values)
            return (written if each else otherwise), end
        return written, after


def _holds(condition: str, values: _Values) -> bool:
    equal = re.fullmatch(r'eq \.(\w+) "(\w*)"', condition)
    if equal:
        return bool(values.get(equal[1]) == equal[2])
    return bool(values.get(condition.lstrip(".")))


def _field(said: str, values: _Values) -> str:
    as_json = said.removeprefix("json ")
    value = values.get(as_json.lstrip("."), "") if as_json != "." else values
    write: Callable[[Any], str] = json.dumps if as_json != said else str
    return write(value)
