"""Models in several files: read as one, and refused where they are not one.

The files are split by gguf, as llama.cpp's converter does it; that they are what llama.cpp takes
for a model is shown by llama.cpp, which joins them while it copies.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.errors import GgufError
from ollama_trainer.gguf.file import read_gguf
from tests.small_gguf import NAMES, copied, digest, rewritten, write

WAYS: dict[str, dict[str, Any]] = {
    "five tensors in each": {"split_max_tensors": 5},
    "one tensor in each": {"split_max_tensors": 1},
    "no tensors in the first": {"split_max_tensors": 7, "small_first_shard": True},
    "by size": {"split_max_size": 9000},
}


def parts_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.gguf"))


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    """A model in four files."""
    write(tmp_path / "model.gguf", split_max_tensors=5)
    return parts_of(tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_split_model_is_the_model(tmp_path: Path, way: str) -> None:
    """What llama.cpp joins from the parts, byte for byte, whichever part is named."""
    (tmp_path / "split").mkdir()
    write(tmp_path / "split" / "model.gguf", **WAYS[way])
    parts = parts_of(tmp_path / "split")
    assert len(parts) > 1
    whole = read_gguf(write(tmp_path / "whole.gguf"))
    joined = copied(parts[0])
    for part in parts:
        file = read_gguf(part)
        assert (file.path, len(file.parts)) == (parts[0], len(parts))
        assert file.metadata == whole.metadata
        assert digest(rewritten(file, tmp_path / "ours.gguf")) == digest(joined)


def test_its_tensors_are_read_from_many_threads(split: list[Path], tmp_path: Path) -> None:
    """The merge works on several tensors at once; each must come from its own file."""
    file, whole = read_gguf(split[0]), read_gguf(write(tmp_path / "whole.gguf"))
    wrong: list[str] = []
    with file.open() as parts, whole.open() as one:
        expected = {info.name: one.read(info, 0, info.n_bytes) for info in whole.tensors}

        def read(start: int) -> None:
            wrong.extend(
                info.name
                for info in file.tensors * 20
                if parts.read(info, start, 16) != expected[info.name][start : start + 16]
            )

        threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(expected), wrong) == (len(NAMES), [])


def test_threads_share_a_reader_without_pread(
    split: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no call that reads at a place of its own."""
    monkeypatch.delattr("os.pread")
    test_its_tensors_are_read_from_many_threads(split, tmp_path)


def test_a_file_that_is_cut_while_it_is_read_is_told(split: list[Path]) -> None:
    """A pull of the same model in Ollama may be writing it."""
    file = read_gguf(split[0])
    last = file.tensors[-1]
    with file.open() as source:
        split[-1].write_bytes(split[-1].read_bytes()[:-64])
        with pytest.raises(GgufError, match=r"00004-of-00004\.gguf ended while it was read"):
            source.read(last, 0, last.n_bytes)


def without_second(parts: list[Path]) -> None:
    parts[1].unlink()


def renamed(parts: list[Path]) -> None:
    for part in parts:
        part.rename(part.with_name(part.name.replace("-of-00004", "")))


def numbered_otherwise(parts: list[Path]) -> None:
    for part in parts:
        part.rename(part.with_name(part.name.replace("-of-00004", "-of-00005")))


def in_another_order(parts: list[Path]) -> None:
    second = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(second)


def with_a_whole_file(parts: list[Path]) -> None:
    write(parts[2])


def with_a_part_of_a_longer_model(parts: list[Path]) -> None:
    replace_in(parts[2], TENSORS, entry("split.tensors.count", 5, "i", 20))


def with_a_part_of_another_model(parts: list[Path]) -> None:
    other = parts[0].parent / "other"
    other.mkdir()
    write(other / "model.gguf", seed=2, split_max_tensors=5)
    parts[2].write_bytes(parts_of(other)[2].read_bytes())


def all_of_a_longer_model(parts: list[Path]) -> None:
    for part in parts:
        replace_in(part, TENSORS, entry("split.tensors.count", 5, "i", 20))


def of_less_than_none(parts: list[Path]) -> None:
    replace_in(parts[0], COUNT, entry("split.count", 3, "h", -4))


def of_too_many(parts: list[Path]) -> None:
    replace_in(parts[0], COUNT, entry("split.count", 2, "H", 513))


def replace_in(part: Path, old: bytes, new: bytes) -> None:
    data = part.read_bytes()
    assert old in data
    part.write_bytes(data.replace(old, new))


def entry(key: str, kind: int, letter: str, value: int) -> bytes:
    return (
        struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind)
        + struct.pack("<" + letter, value)
    )  # fmt: skip


COUNT = entry("split.count", 2, "H", 4)
TENSORS = entry("split.tensors.count", 5, "i", len(NAMES))
#: What was done to the parts -> what is said of it.
BROKEN: dict[Callable[[list[Path]], None], str] = {
    without_second: "00002-of-00004.gguf is missing, which model-0000[134]-of-00004.gguf needs",
    renamed: "is one of 4 files of a model, and its name does not say so",
    numbered_otherwise: "is one of 4 files of a model, and its name does not say so",
    in_another_order: "has the split.no 2 where 1 is expected",
    with_a_whole_file: "has the split.count None where 4 is expected",
    with_a_part_of_a_longer_model: "00003-of-00004.gguf is of another model than",
    with_a_part_of_another_model: "both hold the tensor",
    all_of_a_longer_model: "hold 19 tensors, and 20 are expected",
    of_less_than_none: "says that it is one of -4 files",
    of_too_many: "says that it is one of 513 files",
}


@pytest.mark.parametrize("what", BROKEN, ids=lambda what: what.__name__)
def test_parts_that_make_no_model(split: list[Path], what: Callable[[list[Path]], None]) -> None:
    """A download that stopped between two files is the commonest; none may pass for a model."""
    what(split)
    with pytest.raises(GgufError, match=BROKEN[what]) as told:
        read_gguf(parts_of(split[0].parent)[0])
    assert told.value.remedy
