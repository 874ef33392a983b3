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
    protect_chat_template,
)

DIGEST = "sha256:" + "ab" * 32

GOLDEN = '''\
FROM ./model.gguf
PARAMETER temperature 0.5
PARAMETER num_ctx 4096
PARAMETER num_predict 512
PARAMETER stop "<|im_end|>"
PARAMETER stop """say "no\""""
PARAMETER use_mmap false
TEMPLATE """{{ "x" }}
# no comment"""
LICENSE "Apache License

  Version 2.0"
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
        license="Apache License\n\n  Version 2.0",
    )


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Instruction (or a parameter's name) and argument, as Ollama's parser takes them."""
    position = 0
    while position < len(text):
        if text[position] in " \t\r\n":
            position += 1
            continue
        word = re.compile(r"(?:PARAMETER )?(\w+)[ \t]").match(text, position)
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
            body["license"] = [value]
        elif word == "stop":
            body.setdefault("parameters", {}).setdefault("stop", []).append(value)
        elif word in ("FROM", "TEMPLATE"):
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
        "license": ["Apache License\n\n  Version 2.0"],
    }


TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Cf", "Co", "Cn", "Zl", "Zp", "Zs"))
    | st.sampled_from(' "\n\t\r#{}\\'),
    min_size=1,
)


@given(TEXTS, TEXTS, TEXTS)
def test_both_faces_say_the_same(stop: str, template: str, license_text: str) -> None:
    try:
        modelfile = Modelfile(
            parameters={"stop": (stop, "x"), "top_p": 1e-05},
            template=template,
            license=license_text,
        )
    except ExportError as error:
        assert "three quotes" in error.cause  # noqa: PT017
        return
    request = modelfile.create_request("a:b", DIGEST)
    read = as_request(modelfile.text)
    for key in ("parameters", "template", "license"):
        assert read[key] == request[key]


@pytest.mark.parametrize(
    "text", ["a\x00b", "wait\u200djoined", "no\u00a0break", "\ufeffmark", "a\u2028b", "\ud800"]
)
def test_what_ollamas_parser_would_drop_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="U\\+"):
        Modelfile(template=text)
    with pytest.raises(ExportError, match="U\\+"):
        Modelfile(parameters={"stop": text})


def test_a_licence_with_form_feeds_is_made_printable() -> None:
    made = modelfile_for(
        stops=["x"], num_ctx=8, num_predict=8, license_text="one\x0ctwo\u00a0three\n"
    )
    assert made.license == "one two three"


def test_a_line_that_ends_in_three_quotes_is_refused() -> None:
    with pytest.raises(ExportError, match="three quotes"):
        Modelfile(license='a """ \nb')
    assert Modelfile(license='a """ b\nc"""').license


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
