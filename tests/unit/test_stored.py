"""safetensors files: what safetensors writes is read, and any other file is refused at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ollama_trainer.gguf.stored import StoredArrays

TENSORS = {
    "matrix": torch.arange(12.0).reshape(3, 4),
    "halves": torch.tensor([0.5, -2.0, 65504.0]).half(),
    "brain": torch.tensor([[1.0, -3e38, float("inf"), 1e-40]]).bfloat16(),
    "whole": torch.tensor([1, -2], dtype=torch.int32),
    "one": torch.tensor(7.0),
    "none": torch.zeros(0, 4),
}


def stored(directory: Path) -> Path:
    save_file(TENSORS, directory / "x.safetensors", metadata={"format": "pt"})
    return directory / "x.safetensors"


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    """safetensors itself is the oracle, and its metadata is no array."""
    found = StoredArrays(stored(tmp_path))
    assert found.keys() == TENSORS.keys()
    assert len(found) == len(TENSORS)
    for name, tensor in TENSORS.items():
        wanted = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert found.shape(name) == wanted.shape
        assert found[name].dtype == wanted.dtype
        np.testing.assert_array_equal(found[name], wanted)


def test_parts_of_an_array(tmp_path: Path) -> None:
    """Large arrays are read piece by piece; a piece never reaches into the next array."""
    found = StoredArrays(stored(tmp_path))
    np.testing.assert_array_equal(found.part("matrix", 5, 3), [5, 6, 7])
    np.testing.assert_array_equal(found.part("brain", 1, 1), TENSORS["brain"][0, 1:2].float())
    assert found.part("matrix", 12, 0).size == 0
    with pytest.raises(ValueError, match="ends before"):
        found.part("matrix", 11, 2)


def with_header(path: Path, header: Any, n_bytes: int = 48) -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(n_bytes))
    return path


GOOD = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}


def test_the_good_entry_is_good(tmp_path: Path) -> None:
    """Or the refusals below would prove nothing."""
    assert StoredArrays(with_header(tmp_path / "x", {"a": GOOD}))["a"].shape == (3, 4)


@pytest.mark.parametrize(
    "header",
    [
        b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"a":' * 100_000,
        {"a": 3}, {"a": None}, {"a": {}},
        {"a": GOOD | {"dtype": "I64"}}, {"a": GOOD | {"dtype": 3}}, {"a": GOOD | {"dtype": []}},
        {"a": GOOD | {"shape": 12}}, {"a": GOOD | {"shape": [12.0]}}, {"a": GOOD | {"shape": "34"}},
        {"a": GOOD | {"shape": [-3, -4]}}, {"a": GOOD | {"shape": [3, True, 4]}},
        {"a": GOOD | {"shape": [3, 5]}}, {"a": GOOD | {"shape": [1 << 62, 4]}},
        {"a": GOOD | {"data_offsets": [0]}}, {"a": GOOD | {"data_offsets": [0, 24, 48]}},
        {"a": GOOD | {"data_offsets": [1, 49]}}, {"a": GOOD | {"data_offsets": [-48, 0]}},
        {"a": GOOD | {"data_offsets": [48, 0]}}, {"a": GOOD | {"data_offsets": "ab"}},
        {"a": GOOD | {"data_offsets": [0.0, 48.0]}},
    ],
    ids=lambda header: str(header)[:60],
)  # fmt: skip
def test_headers_that_are_none(tmp_path: Path, header: Any) -> None:
    """An adapter may come from anywhere; whoever opens it catches ValueError and OSError."""
    with pytest.raises(ValueError, match=r"header|entry|type|bytes|end"):
        StoredArrays(with_header(tmp_path / "x", header))


@pytest.mark.parametrize("length", [0, 1 << 20, 1 << 63, (1 << 64) - 1])
def test_a_header_that_is_longer_than_the_file(tmp_path: Path, length: int) -> None:
    """Room for it must not even be asked for."""
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="header"):
        StoredArrays(tmp_path / "x")


@given(position=st.integers(0, 400), byte=st.integers(0, 255), keep=st.integers(0, 900))
@settings(max_examples=200, deadline=None)
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, keep: int
) -> None:
    """Whatever is in it, the file ends in arrays of the promised shapes or in one of two errors."""
    path = stored(tmp_path_factory.getbasetemp())
    data = bytearray(path.read_bytes())
    data[position] = byte
    path.write_bytes(data[:keep])
    try:
        found = StoredArrays(path)
    except ValueError:
        return
    for name, array in found.items():
        assert array.shape == found.shape(name)
