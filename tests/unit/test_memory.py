"""The estimate of what memory a training takes, beside trainings that were measured."""

from __future__ import annotations

import dataclasses

import pytest

from ollama_trainer.bases import resolve_base
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.pipeline.memory import needed_bytes, parameter_count
from ollama_trainer.records import TrainingOptions


@pytest.fixture(scope="module")
def smollm2() -> GgufFile:
    return read_gguf(resolve_base("smollm2").gguf)


@pytest.mark.parametrize(
    ("batch_size", "tokens", "layers", "measured"),
    [
        # What the process had for itself at its peak, and the weights, which it shares with a file.
        (8, 64, "auto", 1.52e9 + 0.27e9),
        (8, 256, "auto", 3.19e9 + 0.27e9),
        (16, 256, "auto", 5.14e9 + 0.27e9),
        (8, 256, "all", 5.32e9 + 0.27e9),
    ],
)
def test_it_is_near_what_was_measured(
    smollm2: GgufFile, batch_size: int, tokens: int, layers: str, measured: float
) -> None:
    options = TrainingOptions.model_validate(
        {"batch_size": batch_size, "max_length": tokens, "layers": layers}
    )
    assert needed_bytes(smollm2, options) == pytest.approx(measured, rel=0.1)


def test_it_counts_the_whole_model(smollm2: GgufFile) -> None:
    assert parameter_count(smollm2) == 134_515_008


def test_longer_rows_are_not_foreseen(smollm2: GgufFile) -> None:
    """Nobody knows them before a data set is read."""
    options = TrainingOptions()
    assert options.max_length > 256
    shorter = options.model_copy(update={"max_length": 256})
    assert needed_bytes(smollm2, options) == needed_bytes(smollm2, shorter)


def test_a_higher_rank_takes_more(smollm2: GgufFile) -> None:
    small, large = (needed_bytes(smollm2, TrainingOptions(rank=rank)) for rank in (8, 512))
    # 15 layers of 10,176 inputs and outputs, 16 bytes each.
    assert large - small == 504 * 15 * 10_176 * 16


def test_the_file_alone_decides(smollm2: GgufFile) -> None:
    renamed = dataclasses.replace(smollm2, path=smollm2.path.with_name("other.gguf"))
    assert needed_bytes(renamed, TrainingOptions()) == needed_bytes(smollm2, TrainingOptions())
