"""Two files are the same model, or the first difference is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ollama_trainer.gguf.file import GgufFile, read_gguf, string_entry, uint32_entry
from ollama_trainer.gguf.same import first_difference
from tests import small_gguf


@pytest.fixture
def one(tmp_path: Path) -> GgufFile:
    return read_gguf(small_gguf.write(tmp_path / "one.gguf", "Q8_0"))


def test_order_and_what_describes_it_do_not_count(one: GgufFile) -> None:
    """llama.cpp's own copy of a file is the same model in other bytes."""
    copy = small_gguf.copied(one.path)
    assert copy.read_bytes() != one.path.read_bytes()
    assert first_difference(one, read_gguf(copy)) is None


def test_one_byte_of_one_tensor(one: GgufFile, tmp_path: Path) -> None:
    data = bytearray(one.path.read_bytes())
    last = max(one.tensors, key=lambda tensor: tensor.offset)
    data[one.data_start + last.offset + last.n_bytes - 1] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    assert first_difference(one, read_gguf(other)) == f"its tensor {last.name!r} differs"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m | {"a.key": string_entry("a.key", "x")}, "its metadata 'a.key' was added"),
        (lambda m: {k: v for k, v in m.items() if k != "llama.block_count"},
         "its metadata 'llama.block_count' is missing"),
        (lambda m: m | {"llama.block_count": uint32_entry("llama.block_count", 7)},
         "its metadata 'llama.block_count' differs"),
    ],
)  # fmt: skip
def test_metadata(
    one: GgufFile, change: Callable[[dict[str, object]], dict[str, object]], words: str
) -> None:
    other = dataclasses.replace(one, metadata=change(dict(one.metadata)))  # type: ignore[arg-type]
    assert first_difference(one, other) == words


def test_tensors_that_are_missing_added_or_of_another_shape(one: GgufFile) -> None:
    fewer = dataclasses.replace(one, tensors=one.tensors[1:])
    name = one.tensors[0].name
    assert first_difference(one, fewer) == f"its tensor {name!r} is missing"
    assert first_difference(fewer, one) == f"its tensor {name!r} was added"
    first = one.by_name["token_embd.weight"]
    turned = dataclasses.replace(first, shape=(first.shape[0] // 2, 2))
    rest = tuple(tensor for tensor in one.tensors if tensor is not first)
    other = dataclasses.replace(one, tensors=(turned, *rest))
    assert first_difference(one, other) == "its tensor 'token_embd.weight' differs"
