"""The Modelfile, its text read back by a small parser of Ollama's grammar written for this test."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_trainer.errors import ExportError, PublishError
from ollama_trainer.modelfile import (
    Modelfile,
    check_model_name,
    modelfile_for,
    not_inherited,
    tuned_modelfile,
)
from ollama_trainer.ollama.shield import protect_chat_template
from ollama_trainer.records import OllamaModel

DIGEST = "sha256:" + "ab" * 32

GOLDEN = '''\
FROM ./model.gguf
RENDERER qwen3.5
PARSER qwen3
REQUIRES 0.14.0
PARAMETER temperature 0.5
PARAMETER num_ctx 4096
PARAMETER num_predict 512
PARAMETER use_mmap false
PARAMETER stop "<|im_end|>"
PARAMETER stop """say "no\""""
TEMPLATE """{{ "x" }}
# no comment"""
SYSTEM "You are 'Mario'.
 # no comment either "
MESSAGE user "Hello: 🙂"
MESSAGE assistant ""
LICENSE "Apache License

  Version 2.0"
LICENSE "Terms of use"
'''


def golden() -> Modelfile:
    return Modelfile(
        parameters={
            "temperature": 0.5,
            "num_ctx": 4096,
            "num_predict": 512,
            "stop": ("<|im_end|>", 'say "no"'),
            "use_mmap": False,
        },
        template='{{ "x" }}\n# no comment',
        system="You are 'Mario'.\n # no comment either ",
        messages=(
            {"role": "user", "content": "Hello: 🙂"},
            {"role": "assistant", "content": ""},
        ),
        renderer="qwen3.5",
        parser="qwen3",
        requires="0.14.0",
        licenses=("Apache License\n\n  Version 2.0", "Terms of use"),
    )


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Instruction (or a parameter's name) and argument, as Ollama's parser takes them."""
    position = 0
    while position < len(text):
        if text[position] in " \t\r\n":
            position += 1
            continue
        word = re.compile(r"(?:PARAMETER |MESSAGE )?(\w+)[ \t]").match(text, position)
        assert word, text[position : position + 20]
        end = position = word.end()
        while True:
            # An argument ends at the first line's end at which its quotes are closed.
            newline = re.compile("[\r\n]|$").search(text, end)
            assert newline
            raw = text[position : newline.start()].strip()
            value = unquoted(raw)
            end = newline.end()
            if value is not None:
                break
            assert end < len(text), "an argument without an end"
        yield word[1], value
        position = end


def unquoted(raw: str) -> str | None:
    for quote in ('"""', '"'):
        if raw.startswith(quote):
            closed = len(raw) >= 2 * len(quote) and raw.endswith(quote)
            return raw[len(quote) : -len(quote)] if closed else None
    return raw


def as_request(text: str) -> dict[str, Any]:
    """What `ollama create` would send for the text."""
    body: dict[str, Any] = {}
    for word, value in parse(text):
        if word == "LICENSE":
            body.setdefault("license", []).append(value)
        elif word == "stop":
            body.setdefault("parameters", {}).setdefault("stop", []).append(value)
        elif word in ("system", "user", "assistant"):
            body.setdefault("messages", []).append({"role": word, "content": value})
        elif word in ("FROM", "TEMPLATE", "SYSTEM", "RENDERER", "PARSER", "REQUIRES"):
            body[word.lower()] = value
        else:
            body.setdefault("parameters", {})[word] = json.loads(value)
    return body


def test_text() -> None:
    assert golden().text == GOLDEN


def test_request() -> None:
    assert golden().create_request("job:r1", DIGEST) == {
        "model": "job:r1",
        "files": {"model.gguf": DIGEST},
        "stream": True,
        "parameters": {
            "temperature": 0.5,
            "num_ctx": 4096,
            "num_predict": 512,
            "stop": ["<|im_end|>", 'say "no"'],
            "use_mmap": False,
        },
        "template": '{{ "x" }}\n# no comment',
        "system": "You are 'Mario'.\n # no comment either ",
        "messages": [
            {"role": "user", "content": "Hello: 🙂"},
            {"role": "assistant", "content": ""},
        ],
        "renderer": "qwen3.5",
        "parser": "qwen3",
        "requires": "0.14.0",
        "license": ["Apache License\n\n  Version 2.0", "Terms of use"],
    }


def test_fields_survive_a_way_through_json() -> None:
    assert Modelfile.from_fields(json.loads(json.dumps(golden().fields))) == golden()
    before = {"gguf": "model.gguf", "parameters": {"stop": ["x"]}, "license": "MIT"}
    assert Modelfile.from_fields({**before, "template": None}).licenses == ("MIT",)


TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Cf", "Co", "Cn", "Zl", "Zp", "Zs"))
    | st.sampled_from(' "\n\t\r#{}\\'),
    min_size=1,
)


@given(TEXTS, TEXTS, TEXTS, TEXTS, TEXTS)
def test_both_faces_say_the_same(
    stop: str, template: str, system: str, said: str, licence: str
) -> None:
    modelfile = Modelfile(
        parameters={"stop": (stop, "x"), "top_p": 1e-05},
        template=template,
        system=system,
        messages=({"role": "user", "content": said}, {"role": "assistant", "content": ""}),
        licenses=(licence, "MIT"),
    )
    request = modelfile.create_request("a:b", DIGEST)
    if modelfile.unsayable:
        assert all("three quotes" in why for why in modelfile.unsayable)
        return
    read = as_request(modelfile.text)
    for key in ("parameters", "template", "system", "messages", "license"):
        assert read[key] == request[key]


UNSAYABLE = ["a\x00b", "wait\u200djoined", "no\u00a0break", "\ufeffmark", "a\u2028b", 'a """ \nb']


@pytest.mark.parametrize("text", UNSAYABLE)
def test_what_ollamas_parser_would_change_is_in_the_request_alone(text: str) -> None:
    modelfile = Modelfile(
        template=text,
        system=text,
        parameters={"stop": (text, "ok")},
        messages=({"role": "user", "content": text}, {"role": "tool", "content": "x"}),
    )
    request = modelfile.create_request("a:b", DIGEST)
    assert (request["template"], request["system"]) == (text, text)
    assert request["parameters"]["stop"] == [text, "ok"]
    assert request["messages"][0] == {"role": "user", "content": text}
    said = [line for line in modelfile.text.splitlines() if not line.startswith("#")]
    assert said == ["FROM ./model.gguf", 'PARAMETER stop "ok"']
    words = [why.partition(":")[0] for why in modelfile.unsayable]
    assert words == ["PARAMETER stop", "TEMPLATE", "SYSTEM", "MESSAGE user", "MESSAGE tool"]


def test_half_a_character_is_refused() -> None:
    broken: list[dict[str, Any]] = [{"template": "\ud800"}, {"parameters": {"stop": "\ud800"}}]
    for parts in broken:
        with pytest.raises(ExportError, match=r"U\+D800"):
            Modelfile(**parts)


def test_a_licence_with_form_feeds_is_printable_in_the_text() -> None:
    licence = "one\x0ctwo\u00a0three"
    made = modelfile_for(stops=["x"], num_ctx=8, num_predict=8, license_text=f"{licence}\n")
    assert made.create_request("a:b", DIGEST)["license"] == [licence]
    assert 'LICENSE "one two three"\n' in made.text
    assert not made.unsayable


BASE = OllamaModel(
    model="base:1b",
    template="{{ .Prompt }} <end>",
    system="Be brief.",
    parameters={
        "stop": ("<a>", "<b>"), "temperature": 0.6, "num_ctx": 32768, "num_predict": -1,
        "mirostat": 1, "top_k": 20,
    },
    licenses=("one", "two"),
    renderer="qwen3.5",
    parser="qwen3",
    requires="0.14.0",
    messages=({"role": "user", "content": "Hi", "more": "left out"},),
)  # fmt: skip


def test_a_tuned_model_inherits_everything() -> None:
    made = tuned_modelfile(BASE, stop="<end>", context_length=131072, license_text="not this")
    assert dict(made.parameters) == {
        "stop": ("<a>", "<b>", "<end>"),
        "temperature": 0.6,
        "num_ctx": 32768,
        "top_k": 20,
        "num_predict": 8192,
    }
    assert (made.template, made.system) == (BASE.template, BASE.system)
    assert made.licenses == ("one", "two")
    assert (made.renderer, made.parser, made.requires) == ("qwen3.5", "qwen3", "0.14.0")
    assert made.messages == ({"role": "user", "content": "Hi"},)
    left_out = not_inherited(BASE)
    assert len(left_out) == 2
    assert "num_predict" in left_out[0]
    assert "mirostat" in left_out[1]


@pytest.mark.parametrize(
    ("own", "context_length", "expected"),
    [
        ({}, 131072, {"num_ctx": 4096, "num_predict": 2048, "stop": ("<end>",)}),
        ({}, 512, {"num_ctx": 512, "num_predict": 256, "stop": ("<end>",)}),
        ({}, None, {"num_ctx": 4096, "num_predict": 2048, "stop": ("<end>",)}),
        (
            {"num_predict": 77, "stop": "<end>", "num_ctx": 9},
            512,
            {"num_ctx": 9, "num_predict": 77, "stop": ("<end>",)},
        ),
        ({"num_ctx": "abc"}, 512, {"num_ctx": 512, "num_predict": 256, "stop": ("<end>",)}),
    ],
)
def test_stops_context_and_cap_are_always_set(
    own: dict[str, Any], context_length: int | None, expected: dict[str, Any]
) -> None:
    base = OllamaModel(model="base", parameters=own)
    for one in (base, *([] if own else [None])):
        made = tuned_modelfile(
            one, stop="<end>", context_length=context_length, license_text=" MIT\n"
        )
        assert dict(made.parameters) == expected
        assert made.licenses == ("MIT",)
        assert made.template is None


@pytest.mark.parametrize(
    "parts",
    [{"renderer": "a b"}, {"parser": "-x"}, {"parser": "a\nb"}, {"requires": "v1.2.3"},
     {"requires": "new"}, {"requires": "1.2.3\n"}],
)  # fmt: skip
def test_words_of_ollamas_are_checked(parts: dict[str, Any]) -> None:
    with pytest.raises(ExportError):
        Modelfile(**parts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_ctx", "abc"),
        ("num_ctx", 0),
        ("num_ctx", 2.0),
        ("num_ctx", True),
        ("num_ctx", 2**31),
        ("num_predict", -1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 1.5),
        ("stop", ()),
        ("stop", ("",)),
        ("stop", 3),
        ("use_mmap", 1),
        ("mirostat", 1),
        ("no such thing", 1),
    ],
)
def test_parameters_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ExportError) as raised:
        Modelfile(parameters={name: value})
    assert name in raised.value.cause
    assert raised.value.remedy


def test_one_stop_may_be_a_text() -> None:
    assert Modelfile(parameters={"stop": "x"}).parameters == {"stop": ("x",)}


def test_stops_context_and_cap_win_over_the_bases() -> None:
    made = modelfile_for(
        stops=["x"], num_ctx=8, num_predict=9, more={"num_ctx": 1, "stop": "y", "top_k": 5}
    )
    assert dict(made.parameters) == {"num_ctx": 8, "stop": ("x",), "top_k": 5, "num_predict": 9}
    with pytest.raises(ExportError, match="no stop"):
        modelfile_for(stops=[], num_ctx=8, num_predict=9)


@pytest.mark.parametrize("gguf", ["", "a/b.gguf", "../m.gguf", "m.bin", ".gguf", "a b.gguf", "a\n"])
def test_the_ggufs_name_is_plain(gguf: str) -> None:
    with pytest.raises(ExportError, match="cannot be the GGUF's name"):
        Modelfile(gguf=gguf)


@pytest.mark.parametrize("name", ["a", "a:b", "n/a:b", "h.x:1/n/a:b", "a" * 80 + ":" + "b" * 80])
def test_names_that_ollama_takes(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "-a", "a:", ":b", "a:b:c", "a/b/c/d", "../a", "a" * 81, "a@sha256:0", "a\n"),
        *("a:local", "a:Cloud", "a:b-cloud"),
    ],
)
def test_names_that_ollama_does_not_take(name: str) -> None:
    with pytest.raises(PublishError):
        Modelfile().create_request(name, DIGEST)


@pytest.mark.parametrize("digest", ["", "sha256:12", "sha256:" + "A" * 64, "a" * 64])
def test_digests_are_checked(digest: str) -> None:
    with pytest.raises(PublishError, match="digest"):
        Modelfile().create_request("a:b", digest)


TEMPLATE_HEADS = [
    "{% if a %}x{% endif %}",
    "{%- if a %}x{% endif %}",
    "{%+ if a %}x{% endif %}",
    "{{ b }}",
    "{{- b }}",
    "text {{ b }}",
    "{# c #}\nx",
    "{#- c #}\nx",
]
BLANKS = ["", " ", "\n", "\n\n", "  \n", " \n  ", "\t"]


@pytest.mark.parametrize(("blank", "head"), list(itertools.product(BLANKS, TEMPLATE_HEADS)))
@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("lstrip", [False, True])
def test_a_protected_template_renders_the_same(
    blank: str, head: str, trim: bool, lstrip: bool
) -> None:
    environment = jinja2.Environment(trim_blocks=trim, lstrip_blocks=lstrip)  # noqa: S701
    before, after = (
        environment.from_string(source).render(a=1, b=" B")
        for source in (blank + head, protect_chat_template(blank + head))
    )
    assert after == before


def test_protecting_twice_changes_nothing() -> None:
    for template in ("{{ x }}", "  {% if a %}{% endif %}", ""):
        once = protect_chat_template(template)
        assert protect_chat_template(once) == once
    assert protect_chat_template("") == ""


def test_the_protection_is_far_from_any_template_and_gives_no_capability() -> None:
    added = protect_chat_template("x").removesuffix("x")
    assert added.count("~") >= 100, "characters that no template of Ollama's has"
    # Words from which Ollama and llama.cpp guess what a model can do.
    for word in ("tool", "think", "<", "[", "reason", "message", "function"):
        assert word not in added
