"""When a run compares its prompts with Ollama's before it trains, and what it says where not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.pipeline.parity import compare_with_ollama
from ollama_trainer.publishers import NOT_CHECKED
from ollama_trainer.records import BaseGguf, ExpectedPrompt, RunSpec
from tests.tiny_models import write_vocabulary


@pytest.mark.parametrize(("publisher", "n_notes"), [("folder", 0), ("ollama", 1)])
def test_only_for_ollama_and_only_where_it_answers(
    tmp_path: Path, publisher: str, n_notes: int
) -> None:
    gguf = read_gguf(write_vocabulary(tmp_path / "base.gguf"))
    spec = RunSpec(
        run_id="r1", job_id="j1", dataset_ref="x", base="gguf:x", backend="unsloth",
        publisher=publisher, quantization="same", ollama_host="127.0.0.1:9", model_name="m:r1",
        cache_dir=tmp_path,
    )  # fmt: skip
    base = BaseGguf(name="gguf:x", gguf=gguf.path, digest="0" * 64)
    asked = ExpectedPrompt(messages=({"role": "user", "content": "Hi"},), text="nothing like it")
    notes: list[str] = []

    def note(message: str, data: Mapping[str, Any]) -> None:
        notes.append(message)

    compare_with_ollama(spec, base, gguf, (asked,), note)
    assert len(notes) == n_notes
    for message in notes:
        assert message.startswith(f"{NOT_CHECKED}Ollama's prompts are compared when the model is")
        assert "127.0.0.1:9" in message
