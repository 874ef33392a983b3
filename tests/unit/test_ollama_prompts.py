"""Which means a base's prompts are made by, and what of them decides caches and BOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.ollama.rendering import Rendering
from ollama_trainer.ollama_prompts import OllamaTemplate, is_rendered_by_ollama, prompts_digest
from ollama_trainer.records import OllamaModel
from tests.servable import write_servable


def test_what_a_prompt_follows_from_is_in_its_digest() -> None:
    """Texts that a base wrote are kept by it: they begin with prompts."""
    changes: list[dict[str, Any]] = [
        {"template": "{{ .Prompt }}"}, {"renderer": "x"}, {"parser": "x"}, {"system": "x"},
        {"messages": ({"role": "user", "content": "x"},)},
    ]  # fmt: skip
    digests = {prompts_digest(OllamaModel(model="m", **change)) for change in changes}
    assert len(digests) == len(changes)
    assert "" not in digests
    plain = OllamaModel(model="m", parameters={"top_k": 1}, licenses=("MIT",), requires="0.5.0")
    assert prompts_digest(plain) == prompts_digest(None) == ""


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"template": "{{ .Prompt }}"}, True),
        ({"renderer": "x"}, True),
        ({"parser": "x"}, True),
        ({"system": "x", "parameters": {"top_k": 1}}, False),
    ],
)
def test_who_makes_the_prompts(parts: dict[str, Any], expected: bool) -> None:
    assert is_rendered_by_ollama(OllamaModel(model="m", **parts)) is expected
    assert not is_rendered_by_ollama(None)


@pytest.mark.parametrize(
    ("add_bos", "renderer", "bos", "loses"),
    [
        (True, "", "<bos>", True),
        (True, "", "<s>", False),
        (True, "x", "<s>", True),
        (None, "x", "<s>", False),
        (None, "", "<bos>", False),
        (False, "x", "<bos>", False),
    ],
)
def test_ollama_takes_bos_off_some_of_its_prompts(
    tmp_path: Path, add_bos: bool | None, renderer: str, bos: str, loses: bool
) -> None:
    """Source: Ollama's llm/llama_server.go, tokenizerAddsBOS and completionPrompt."""
    gguf = read_gguf(write_servable(tmp_path / "x.gguf", add_bos=add_bos))
    model = OllamaModel(model="m", renderer=renderer, template="" if renderer else "{{ .Prompt }}")
    template = OllamaTemplate(gguf, model, cast(Rendering, None))
    assert template.loses(bos) is loses
