"""What a finished model says it was made of, read back by gguf from llama.cpp's copy."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer import __version__
from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.file import GgufFile, read_gguf, string_entry, uint32_entry
from ollama_trainer.gguf.provenance import (
    Provenance,
    adapter_digest,
    in_a_line,
    told_by,
    with_provenance,
)
from tests.small_gguf import copied, digest, rewritten, write

MADE = Provenance(
    base_digest="ab" * 32, adapter_digest="cd" * 32, run_id="run-ü-7", job_id="Jöb 1\0\n'\\'",
    model="me/tuned-job-1:run-7", rounding="stochastic", seed=2**32 - 1, tool_version="7.8.9",
)  # fmt: skip
SAID = {
    "general.ollama_trainer.version": "7.8.9",
    "general.ollama_trainer.base.digest": "sha256:" + "ab" * 32,
    "general.ollama_trainer.adapter.digest": "sha256:" + "cd" * 32,
    "general.ollama_trainer.run": "run-ü-7",
    "general.ollama_trainer.job": r"Jöb 1\x00\n'\\'",
    "general.ollama_trainer.model": "me/tuned-job-1:run-7",
    "general.ollama_trainer.rounding": "stochastic",
    "general.ollama_trainer.seed": 2**32 - 1,
}


def small(directory: Path, **named: str) -> GgufFile:
    """A base with some `general.` entries."""
    file = read_gguf(write(directory / "base.gguf"))
    more = {f"general.{key}": string_entry(f"general.{key}", text) for key, text in named.items()}
    return read_gguf(rewritten(file, directory / "named.gguf", metadata={**file.metadata, **more}))


def read_by_gguf(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def test_it_is_read_back_from_a_copy_by_llama_quantize(tmp_path: Path) -> None:
    """A model that was published is found in Ollama's store, where it may have been rewritten."""
    base = small(tmp_path, name="Tiny")
    made = rewritten(base, tmp_path / "x.gguf", metadata=with_provenance(base.metadata, MADE))
    assert digest(copied(made)) == digest(made)
    fields = read_by_gguf(copied(made))
    assert {key: fields[key] for key in fields if key.startswith("general.ollama_trainer")} == SAID
    for key, entry in base.metadata.items():
        assert read_gguf(made).metadata[key] == entry


def test_it_stands_before_what_llama_quantize_puts_last(tmp_path: Path) -> None:
    """And after all that is the base's, in the same order every time."""
    base = small(tmp_path)
    twice = [
        rewritten(
            base, tmp_path / f"{i}.gguf", metadata=with_provenance(base.metadata, MADE)
        ).read_bytes()
        for i in range(2)
    ]
    assert twice[0] == twice[1]
    keys = list(read_gguf(tmp_path / "0.gguf").metadata)
    assert keys[-10:] == [*SAID, "general.quantization_version", "general.file_type"]


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    """An adapter from elsewhere has no run, and files of the base may hold an older one's."""
    before = with_provenance(small(tmp_path).metadata, MADE)
    after = with_provenance(before, Provenance(base_digest="ef" * 32, seed=0))
    assert {key: after[key].value for key in after if key.startswith("general.ollama")} == {
        "general.ollama_trainer.version": __version__,
        "general.ollama_trainer.base.digest": "sha256:" + "ef" * 32,
        "general.ollama_trainer.seed": 0,
    }


def test_what_is_told_is_read_back(tmp_path: Path) -> None:
    """As Ollama's /api/show hands it out, which leaves out what is long."""
    after = with_provenance(small(tmp_path, name="Tiny").metadata, MADE)
    told = {key: entry.value for key, entry in after.items()} | {"tokenizer.ggml.tokens": None}
    assert told_by(told) == replace(MADE, job_id=in_a_line("Jöb 1\0\n'\\'"))
    assert told_by({"general.name": "Tiny", "general.ollama_trainers.run": "x"}) is None
    strange = {"general.ollama_trainer.model": 7, "general.ollama_trainer.seed": "x"}
    assert told_by(strange) == Provenance(tool_version="")


def test_the_base_becomes_the_parent(tmp_path: Path) -> None:
    """By the specification's own keys, which other programs show."""
    base = small(tmp_path, name="Tiny", organization="Oven", repo_url="https://oven.example/tiny")
    made = rewritten(base, tmp_path / "x.gguf", metadata=with_provenance(base.metadata, MADE))
    fields = read_by_gguf(made)
    assert {key: fields[key] for key in fields if key.startswith("general.base_model")} == {
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny",
        "general.base_model.0.organization": "Oven",
        "general.base_model.0.repo_url": "https://oven.example/tiny",
    }


@pytest.mark.parametrize("known", ["parents", "nothing", "no text"])
def test_parents_are_not_made_up(tmp_path: Path, known: str) -> None:
    """What the base says of its parents stays; a base without a name has nothing to say."""
    base = dict(small(tmp_path, name="Tiny").metadata)
    if known == "parents":
        base["general.base_model.count"] = uint32_entry("general.base_model.count", 2)
    elif known == "nothing":
        del base["general.name"]
    else:
        base["general.name"] = uint32_entry("general.name", 7)
    after = with_provenance(base, MADE)
    assert [key for key in after if key.startswith("general.base_model")] == [
        key for key in base if key.startswith("general.base_model")
    ]
    assert {key: after[key] for key in base} == base


def test_smollm2_becomes_a_parent() -> None:
    """The real base, which names its maker."""
    after = with_provenance(read_gguf(resolve_base("smollm2").gguf).metadata, MADE)
    assert after["general.base_model.0.organization"].value == "HuggingFaceTB"


def test_an_adapter_is_known_by_its_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    assert adapter_digest(tmp_path) == hashlib.sha256(b"weights").hexdigest()


def test_what_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    """A run directory that was pruned, say."""
    with pytest.raises(ExportError, match=r"adapter_model\.safetensors cannot be read"):
        adapter_digest(tmp_path)
