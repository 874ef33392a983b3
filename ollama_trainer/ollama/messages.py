"""Conversations as Ollama hands them to templates, and as its API takes them.

Ollama reads tools and calls into types of its own (api/types.go): what these have no field for is
dropped, the fields come in their order or sorted, and numbers are floats. A template is given what
is left, so that a prompt equals the served one only where the same was done here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ollama_trainer.records import Message, OllamaModel

#: Whole floats below it are written without a fraction, as Go's encoding/json does.
_WRITTEN_WHOLE = 1e21
#: The largest whole number up to which all have a float of their own.
_EXACT = 2**53


def preceded(model: OllamaModel | None, messages: Sequence[Message]) -> list[Message]:
    """The conversation with what Ollama puts before it: the model's own messages and system text.

    Source: ChatHandler in its server/routes.go.
    """
    if model is None or not messages:
        return list(messages)
    whole: list[Message] = [*model.messages, *messages]
    if model.system and messages[0]["role"] != "system":
        whole.insert(0, {"role": "system", "content": model.system})
    return whole


def as_request(
    messages: Sequence[Message], tools: Sequence[Message] = (), think: bool | None = None
) -> dict[str, Any]:
    """A conversation as the body of /api/chat has it; what is not given is left to Ollama."""
    asked: dict[str, Any] = {"messages": for_api(messages)}
    if tools:
        asked["tools"] = list(tools)
    if think is not None:
        asked["think"] = think
    return asked


def for_api(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as /api/chat takes them."""
    return [_for_api(message) for message in messages]


def _for_api(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message["role"], "content": message.get("content") or ""}
    if message["role"] == "tool" and message.get("name"):
        made["tool_name"] = message["name"]
    if message.get("tool_call_id"):
        made["tool_call_id"] = message["tool_call_id"]
    if message.get("tool_calls"):
        made["tool_calls"] = [
            {key: call[key] for key in ("id", "function") if key in call}
            for call in message["tool_calls"]
        ]
    return made


def as_served(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a chat template sees them when Ollama serves them."""
    return [_as_served(message) for message in messages]


def _as_served(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message["role"], "content": message.get("content") or ""}
    if message["role"] == "tool" and message.get("name"):
        made["name"] = message["name"]
    if message.get("tool_call_id"):
        made["tool_call_id"] = message["tool_call_id"]
    if message.get("tool_calls"):
        made["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return made


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    made: dict[str, Any] = {
        "type": "function",
        "function": {
            "name": function["name"],
            "arguments": {key: _any(part) for key, part in function["arguments"].items()},
        },
    }
    if call.get("id"):
        made["id"] = call["id"]
    return made


def tools_as_served(tools: Sequence[Message]) -> list[dict[str, Any]]:
    """Tools as a chat template sees them when Ollama serves them."""
    return [_tool(tool) for tool in tools]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    return {
        "type": str(tool.get("type", "")),
        "function": {
            "name": function["name"],
            "description": function.get("description") or "",
            "parameters": _parameters(function.get("parameters") or {}),
        },
    }


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"type": given.get("type") or ""}
    for key in ("$defs", "items"):
        if given.get(key) is not None:
            made[key] = _any(given[key])
    if given.get("required"):
        made["required"] = list(given["required"])
    properties = given.get("properties")
    made["properties"] = None if properties is None else _properties(properties)
    return made


def _properties(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _property(value) for name, value in given.items()}


def _property(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    made: dict[str, Any] = {}
    if given.get("anyOf"):
        made["anyOf"] = [_property(each) for each in given["anyOf"]]
    kinds = given.get("type")
    if kinds:
        alone = isinstance(kinds, list) and len(kinds) == 1
        made["type"] = kinds[0] if alone else kinds
    if given.get("items") is not None:
        made["items"] = _any(given["items"])
    if given.get("description"):
        made["description"] = given["description"]
    if given.get("enum"):
        made["enum"] = _any(given["enum"])
    if given.get("properties") is not None:
        made["properties"] = _properties(given["properties"])
    if given.get("required"):
        made["required"] = list(given["required"])
    return made


def _any(value: Any) -> Any:
    """A value without a type of Ollama's own: its keys are sorted, its numbers Go's floats."""
    if isinstance(value, Mapping):
        return {key: _any(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_any(part) for part in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance(value, int) and abs(value) <= _EXACT:
        return value
    number = float(value)
    return int(number) if number.is_integer() and abs(number) < _WRITTEN_WHOLE else number
