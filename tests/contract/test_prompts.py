"""The prompts that are trained on are those that Ollama makes of the published model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer import publishers
from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import BaseModelError, CapabilitiesLost, PromptDiffers
from ollama_trainer.families import FAMILIES, PLAIN, Family, template_of
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.modelfile import Modelfile, modelfile_for
from ollama_trainer.ollama.shield import protect_chat_template
from ollama_trainer.ollama_prompts import open_format, why_not_compared
from ollama_trainer.pipeline.export import modelfile_of
from ollama_trainer.prompts import PromptFormat, open_prompt_format
from ollama_trainer.publishers import NOT_CHECKED, PublisherOptions
from ollama_trainer.records import BaseGguf, Example, ExpectedPrompt, OllamaModel
from ollama_trainer.testing.fake_ollama import FakeOllama
from tests.servable import write_servable

from .conftest import REAL, Server
from .test_ollama_server import make

UNTOLD = f"{NOT_CHECKED}this Ollama does not tell"
#: Thoughts, tools, calls and their results, in the words of no family.
THINKING = """{%- if tools %}
    {{- "<tools>" }}
    {%- for tool in tools %}
        {{- tool | tojson + "\\n" }}
    {%- endfor %}
    {{- "</tools>\\n" }}
{%- endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + "}</tool_call>" }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}
"""
GO = """{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}
{{- if .Tools }}<tools>{{ json .Tools }}</tools>
{{ end }}
{{- range .Messages }}
{{- if eq .Role "system" }}{{ else }}<|im_start|>{{ .Role }}
{{ .Content }}{{ range .ToolCalls }}<tool_call>{{ json . }}</tool_call>{{ end }}<|im_end|>
{{ end }}
{{- end }}<|im_start|>assistant
"""
#: Without `.Messages`, as Ollama's older models have it; nothing is written after an answer.
OLD_GO = "<s>{{ if .System }}{{ .System }}\n\n{{ end }}[INST]{{ .Prompt }}[/INST]{{ .Response }}"
SYSTEM = 'You are "Mario".\nBe brief. 😀'
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It's me."}]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "get_weather", "arguments": {"place": "Bâle"}}}
    ],
}


@pytest.fixture(params=["0.40", REAL])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A fake Ollama and the real one; prompts do not depend on the fake's profile."""
    if request.param == REAL:
        yield request.getfixturevalue("real")
    else:
        with FakeOllama(request.param) as fake:
            yield Server(fake.url, request.getfixturevalue("tiny_files"), fake)


def publish(
    server: Server,
    gguf: Path,
    modelfile: Modelfile,
    prompts: tuple[ExpectedPrompt, ...],
    capabilities: tuple[str, ...] = (),
    name: str = "tuned",
) -> list[str]:
    """Returns what was reported."""
    options = PublisherOptions(
        ollama_host=server.url, num_thread=2, prompts=prompts, capabilities=capabilities
    )
    told: list[str] = []
    modelfile = dataclasses.replace(modelfile, gguf=gguf.name)
    one = publishers.get("ollama", options)
    one.publish(gguf, modelfile, server.name(name), lambda _, what: told.append(what))
    return told


@contextmanager
def base_in(
    server: Server, gguf: Path, cache: Path, **more: Any
) -> Iterator[tuple[BaseGguf, PromptFormat]]:
    """A model that was created in Ollama, found as a base."""
    name = server.name("base")
    make(server, name, gguf, **more)
    base = resolve_base(name, cache, server.url)
    with open_format(read_gguf(base.gguf), base.ollama, server.url) as form:
        assert server.loaded() == [], "the base itself is not loaded"
        yield base, form


def stand_ins(server: Server) -> list[str]:
    models = server.ask("GET", "/api/tags").json()["models"]
    return [m["name"] for m in models if m["name"].startswith("ollama-trainer-stand-in")]


@pytest.mark.parametrize("family", [*FAMILIES, PLAIN], ids=lambda family: family.name)
def test_the_templates_of_families(server: Server, family: Family, tmp_path: Path) -> None:
    template = protect_chat_template(template_of(family))
    gguf = write_servable(tmp_path / "model.gguf", template=template)
    with open_prompt_format(read_gguf(gguf)) as form:
        expected = form.expected()
        stop = form.tokenizer.text([form.end_of_turn])
    assert len(expected) == 3
    modelfile = modelfile_for(stops=[stop], num_ctx=512, num_predict=8)
    told = publish(server, gguf, modelfile, expected)
    assert not any(what.startswith(UNTOLD) for what in told)
    assert server.names() == [server.name("tuned")]


def test_a_template_with_tools_and_thoughts(server: Server, tmp_path: Path) -> None:
    gguf = write_servable(tmp_path / "model.gguf", template=protect_chat_template(THINKING))
    with open_prompt_format(read_gguf(gguf)) as form:
        expected = form.expected()
    assert [one.think for one in expected] == [None, None, None, None, True, False]
    assert expected[4].text != expected[5].text
    assert '"get_weather"' in expected[3].text
    publish(
        server, gguf, modelfile_for(stops=["<|im_end|>"], num_ctx=4096, num_predict=8), expected
    )


def test_what_differs_is_told_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    gguf = write_servable(tmp_path / "model.gguf", template=protect_chat_template(THINKING))
    with open_prompt_format(read_gguf(gguf)) as form:
        *before, last = form.expected()
    wrong = last.model_copy(update={"text": last.text.replace("assistant", "helper")})
    modelfile = modelfile_for(stops=["<|im_end|>"], num_ctx=4096, num_predict=8)
    with pytest.raises(PromptDiffers) as raised:
        publish(server, gguf, modelfile, (*before, wrong))
    assert raised.value.code == "prompt_differs"
    assert "of user, not thinking" in raised.value.cause
    assert "'assistant\\n<think>" in raised.value.cause
    assert "not 'helper\\n<think>" in raised.value.cause
    assert raised.value.remedy
    assert server.names() == []
    assert server.loaded() == []
    assert gguf.is_file()


def test_prompts_are_compared_before_a_training(server: Server, tmp_path: Path) -> None:
    """Of a base that brings only Jinja, which Ollama would replace, and that has more in Ollama."""
    gguf = write_servable(tmp_path / "model.gguf", template=THINKING)
    with base_in(server, gguf, tmp_path, system=SYSTEM, messages=MESSAGES) as (base, form):
        assert not form.template.by_ollama
        file, expected = read_gguf(base.gguf), form.expected()
    assert expected[0].text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
    assert why_not_compared(file, base.ollama, server.url, expected) is None
    *before, last = expected
    wrong = last.model_copy(
        update={"text": last.text.replace("assistant\n<think>", "helper\n<think>")}
    )
    with pytest.raises(PromptDiffers, match="of user, not thinking: from character") as raised:
        why_not_compared(file, base.ollama, server.url, (*before, wrong))
    assert "'helper\\n<think>" in raised.value.cause
    assert raised.value.remedy.startswith("Nothing was trained.")
    assert stand_ins(server) == []
    assert server.loaded() == []


def test_a_refused_conversation_is_told_before_a_training(server: Server, tmp_path: Path) -> None:
    """Where the Jinja in Ollama refuses what the one here takes."""
    template = "{% if messages | length > 2 %}{{ raise_exception('No.') }}{% endif %}" + THINKING
    gguf = read_gguf(write_servable(tmp_path / "model.gguf", template=template))
    with open_prompt_format(read_gguf(write_servable(tmp_path / "b.gguf", template=THINKING))) as f:
        expected = f.expected()
    with pytest.raises(PromptDiffers, match="Ollama refuses a conversation of user"):
        why_not_compared(gguf, None, server.url, expected)
    assert stand_ins(server) == []


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("own", [True, False], ids=["it writes BOS", "it writes none"])
def test_bos_is_where_it_is_when_it_is_published(
    server: Server, add_bos: bool | None, own: bool, tmp_path: Path
) -> None:
    template = ("{{ bos_token }}" if own else "") + THINKING + "{{ eos_token }}"

    def write(name: str, template: str) -> Path:
        path = tmp_path / name
        return write_servable(
            path, template=template, add_bos=add_bos, bos="<|endoftext|>", eos="<|im_end|>"
        )

    file = read_gguf(write("model.gguf", template))
    with open_prompt_format(file) as form:
        expected = form.expected()
    assert expected[0].text.startswith("<|endoftext|>") is (own and add_bos is False)
    assert expected[0].text.endswith("<|im_start|>assistant\n<|im_end|>")
    assert why_not_compared(file, None, server.url, expected) is None
    shielded = write("shielded.gguf", protect_chat_template(template))
    modelfile = modelfile_for(stops=["<|im_end|>"], num_ctx=512, num_predict=8)
    publish(server, shielded, modelfile, expected)


def test_what_ollama_renders_itself_needs_no_comparison(server: Server, tmp_path: Path) -> None:
    gguf = read_gguf(write_servable(tmp_path / "model.gguf", template=THINKING))
    model = OllamaModel(model="m", template=GO)
    assert (
        why_not_compared(gguf, model, "127.0.0.1:9", (ExpectedPrompt(messages=(), text=""),))
        is None
    )


def test_without_an_ollama_it_says_why_it_did_not_compare(tmp_path: Path) -> None:
    gguf = read_gguf(write_servable(tmp_path / "model.gguf", template=THINKING))
    why = why_not_compared(gguf, None, "127.0.0.1:9", ())
    assert why is not None
    assert "127.0.0.1:9" in why


def test_a_token_that_is_missing_is_compared_at_publishing(tmp_path: Path) -> None:
    template = THINKING + "{{ eos_token }}"
    gguf = read_gguf(write_servable(tmp_path / "model.gguf", template=template, eos=None))
    why = why_not_compared(gguf, None, "127.0.0.1:9", ())
    assert why == "the base's chat template writes a token that its vocabulary does not have"


def test_the_day_may_change_between_training_and_publishing(server: Server, tmp_path: Path) -> None:
    template = protect_chat_template(template_of(FAMILIES[0]) + "{{- date_string }}")
    gguf = write_servable(tmp_path / "model.gguf", template=template)
    with open_prompt_format(read_gguf(gguf)) as form:
        (first, *_) = form.expected()
    day = first.text[-11:]
    then = first.model_copy(update={"text": first.text.replace(day, "31 Dec 1999")})
    if server.fake is not None:
        pytest.skip("the fake does not know the day")
    publish(server, gguf, modelfile_for(stops=["<|eot_id|>"], num_ctx=512, num_predict=8), (then,))


@pytest.mark.parametrize("own", [None, THINKING], ids=["no Jinja", "with Jinja"])
def test_a_go_template_is_inherited_with_all_else(
    server: Server, own: str | None, tmp_path: Path
) -> None:
    jinja = (
        protect_chat_template(own.replace("<think>", "<t>").replace("</think>", ""))
        if own
        else None
    )
    gguf = write_servable(tmp_path / "model.gguf", template=jinja)
    parameters = {"temperature": 0.5, "top_k": 7, "stop": ["<|im_start|>", 'a "b"']}
    given = {"template": GO, "system": SYSTEM, "messages": MESSAGES, "license": ["MIT", "More."]}
    with base_in(server, gguf, tmp_path, parameters=parameters, **given) as (base, form):
        assert form.template.by_ollama
        assert stand_ins(server)
        made = form.tokenize(Example.of("Who are you?", "Luigi.", 1))
        expected = form.expected()
        called = Example((MESSAGES[0],), CALL, 2, form.expected()[3].tools)
        call = form.tokenize(called)
        told = form.tokenizer.text
        learned = [
            told([i for i, m in zip(one.ids, one.mask, strict=True) if m]) for one in (made, call)
        ]
        prompt = told([i for i, m in zip(made.ids, made.mask, strict=True) if not m])
        stop = told([form.end_of_turn])
    assert stand_ins(server) == []
    assert prompt.startswith(f"<s><|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi")
    assert prompt.endswith("user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
    assert learned[0] == "Luigi.<|im_end|>"
    assert learned[1].startswith("<tool_call>{")
    assert learned[1].endswith("}</tool_call><|im_end|>")
    modelfile = modelfile_of(base, read_gguf(base.gguf), stop)
    assert base.ollama is not None
    publish(server, gguf, modelfile, expected, base.ollama.capabilities or ())

    before, after = server.show(server.name("base")), server.show(server.name("tuned"))
    for field in ("template", "system", "license", "messages", "capabilities"):
        assert after[field] == before[field], field
    assert set(before["parameters"].splitlines()) < set(after["parameters"].splitlines())
    assert 'stop                           "<|im_end|>"' in after["parameters"].splitlines()
    body = {"messages": [{"role": "user", "content": "x"}], "_debug_render_only": True}
    prompts = [
        server.ask("POST", "/api/chat", {"model": server.name(name), "stream": False, **body})
        for name in ("base", "tuned")
    ]
    assert prompts[0].json()["_debug_info"] == prompts[1].json()["_debug_info"]


def test_an_old_go_template(server: Server, tmp_path: Path) -> None:
    """Whose answers end with the vocabulary's end of text."""
    gguf = write_servable(tmp_path / "model.gguf")
    with base_in(server, gguf, tmp_path, template=OLD_GO, system="Be brief.") as (base, form):
        assert form.tokenizer.text([form.end_of_turn]) == "</s>"
        expected = form.expected()
        assert expected[2].text.endswith("[/INST]An answer.<s>[INST]And\tthen?[/INST]")
        ids = form.tokenize(Example.of("Who?", "I.", 1)).ids
        # Ollama takes no <s> off, and llama.cpp adds another one.
        assert ids[:2] == (1, 1)
    publish(server, gguf, modelfile_of(base, read_gguf(base.gguf), "</s>"), expected)


def test_a_renderer_is_inherited(server: Server, tmp_path: Path) -> None:
    gguf = write_servable(tmp_path / "model.gguf")
    renderer = "qwen3.5" if server.fake is None else "fake-thinking"
    parser = "qwen3.5" if server.fake is None else "qwen3"
    with base_in(server, gguf, tmp_path, renderer=renderer, parser=parser) as (base, form):
        assert form.template.thinks
        assert form.template.knows_tools
        made = form.tokenize(Example.of("Who?", "I.", 1))
        expected = form.expected()
        learned = form.tokenizer.text(made.ids[made.mask.index(1) :])
        ids = made.ids[: made.mask.index(1)]
        whole = form.tokenizer.text(ids) + learned
    # An answer without thoughts closes them, so that both ways of asking lead to the same text.
    assert len(expected) == 6
    silent = expected[5].text.replace("A question?", "Who?")
    assert whole == f"<s>{silent}I.<|im_end|>"
    modelfile = modelfile_of(base, read_gguf(base.gguf), "<|im_end|>")
    assert base.ollama is not None
    publish(server, gguf, modelfile, expected, base.ollama.capabilities or ())
    shown = server.show(server.name("tuned"))
    assert f"RENDERER {renderer}\n" in shown["modelfile"]
    assert f"PARSER {parser}\n" in shown["modelfile"]
    assert shown["capabilities"] == server.show(server.name("base"))["capabilities"]


def test_an_unknown_renderer_is_refused(server: Server, tmp_path: Path) -> None:
    gguf = write_servable(tmp_path / "model.gguf")
    with (
        pytest.raises(Exception, match="unknown renderer"),
        base_in(server, gguf, tmp_path, renderer="no-such"),
    ):
        pass
    assert stand_ins(server) == []


def test_lost_capabilities_are_told(server: Server, tmp_path: Path) -> None:
    gguf = write_servable(tmp_path / "model.gguf", template=protect_chat_template(THINKING))
    modelfile = modelfile_for(stops=["<|im_end|>"], num_ctx=512, num_predict=8)
    could = ("completion", "tools", "thinking", "vision")
    publish(server, gguf, modelfile, (), could, "able")
    plain = write_servable(
        tmp_path / "plain.gguf", template=protect_chat_template(template_of(FAMILIES[0]))
    )
    with pytest.raises(CapabilitiesLost, match="lacks what its base could do: thinking, tools"):
        publish(server, plain, modelfile, (), could)
    assert server.names() == [server.name("able")]


def test_prompts_are_as_many_tokens_as_ollama_counts(real: Server, tmp_path: Path) -> None:
    """With BOS of the template's, of the vocabulary's, and of both."""
    for number, (add_bos, template) in enumerate(
        [(None, OLD_GO), (True, OLD_GO), (False, OLD_GO), (True, GO), (False, GO)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        gguf = write_servable(folder / "model.gguf", add_bos=add_bos)
        with base_in(real, gguf, folder, template=template, parameters={"num_ctx": 512}) as (
            _,
            form,
        ):
            ids = form.prompt_ids(form.prompt("Hé?"))
        body = {
            "model": real.name("base"), "messages": [{"role": "user", "content": "Hé?"}],
            "stream": False, "options": {"num_predict": 1},
        }  # fmt: skip
        assert real.ask("POST", "/api/chat", body).json()["prompt_eval_count"] == len(ids)
        real.clean()


class TestAnOllamaThatDoesNotRender:
    """Old ones answer where they are asked for the prompt."""

    @pytest.fixture
    def server(self, request: pytest.FixtureRequest) -> Iterator[Server]:
        with FakeOllama("0.33") as fake:
            fake.faults.renders = False
            yield Server(fake.url, request.getfixturevalue("tiny_files"), fake)

    def test_the_files_own_template_is_used_instead(self, server: Server, tmp_path: Path) -> None:
        jinja = protect_chat_template(template_of(FAMILIES[0]))
        gguf = write_servable(tmp_path / "model.gguf", template=jinja)
        with base_in(server, gguf, tmp_path, template=GO) as (_, form):
            assert not form.template.by_ollama
            assert "may differ" in form.template.notes[0]
        assert stand_ins(server) == []

    def test_without_one_the_run_fails_by_name(self, server: Server, tmp_path: Path) -> None:
        gguf = write_servable(tmp_path / "model.gguf")
        with (
            pytest.raises(BaseModelError, match=r"does not tell them.*no chat template") as raised,
            base_in(server, gguf, tmp_path, template=GO),
        ):
            pass
        assert "Update Ollama" in raised.value.remedy
        assert stand_ins(server) == []

    def test_before_a_training_it_is_told(self, server: Server, tmp_path: Path) -> None:
        gguf = read_gguf(write_servable(tmp_path / "model.gguf", template=THINKING))
        why = why_not_compared(gguf, None, server.url, (ExpectedPrompt(messages=(), text=""),))
        assert why == "this Ollama does not tell what prompts it makes"
        assert stand_ins(server) == []

    def test_publishing_says_what_is_not_checked(self, server: Server, tmp_path: Path) -> None:
        jinja = protect_chat_template(template_of(FAMILIES[0]))
        gguf = write_servable(tmp_path / "model.gguf", template=jinja)
        with open_prompt_format(read_gguf(gguf)) as form:
            expected = form.expected()
        modelfile = modelfile_for(stops=["<|eot_id|>"], num_ctx=512, num_predict=8)
        told = publish(server, gguf, modelfile, expected)
        assert sum(what.startswith(UNTOLD) for what in told) == 1

    def test_one_that_ignores_the_files_template_is_refused(
        self, server: Server, tmp_path: Path
    ) -> None:
        gguf = write_servable(tmp_path / "model.gguf")
        with open_prompt_format(read_gguf(gguf)) as form:
            expected = form.expected()
        modelfile = modelfile_for(stops=["<|eot_id|>"], num_ctx=512, num_predict=8)
        with pytest.raises(PromptDiffers, match="does not use the chat template"):
            publish(server, gguf, modelfile, expected)
        assert server.names() == []
