"""Digests of large files: remembered as long as nothing about the file has changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ollama_trainer.bases import digests
from ollama_trainer.bases.digests import digest_of, sha256_of
from ollama_trainer.errors import GgufError
from ollama_trainer.gguf.file import read_gguf
from tests.small_gguf import write


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose digest was counted."""
    seen: list[Path] = []
    count = digests._counted

    def noted(paths: tuple[Path, ...]) -> str:
        seen.extend(paths)
        return count(paths)

    monkeypatch.setattr(digests, "_counted", noted)
    return seen


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_it_is_counted_once(tmp_path: Path, counted: list[Path]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    for _ in range(2):
        assert sha256_of(path, tmp_path / "cache") == digest(b"content")
    assert counted == [path]
    assert sha256_of(path) == digest(b"content")
    assert counted == [path, path]


def test_a_changed_file_is_counted_again(tmp_path: Path, counted: list[Path]) -> None:
    """Also one of the same size, or in the place of the other with its times."""
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"content")
    sha256_of(path, cache)
    state = path.stat()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert sha256_of(path, cache) == digest(b"CONTENT")
    other = tmp_path / "other"
    other.write_bytes(b"another")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    other.replace(path)
    assert sha256_of(path, cache) == digest(b"another")
    assert len(counted) == 3


def test_another_name_of_a_file_is_known(tmp_path: Path, counted: list[Path]) -> None:
    """A run gives one to its base."""
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"content")
    sha256_of(path, cache)
    (tmp_path / "other").hardlink_to(path)
    assert sha256_of(tmp_path / "other", cache) == digest(b"content")
    assert counted == [path]


def test_a_damaged_memory_is_none(tmp_path: Path) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"content")
    sha256_of(path, cache)
    (known,) = (cache / "digests").iterdir()
    for damage in (b"", b"no digest", b"\xff" * 64):
        known.write_bytes(damage)
        assert sha256_of(path, cache) == digest(b"content")


def test_where_nothing_can_be_remembered_it_is_counted(tmp_path: Path, counted: list[Path]) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"content")
    cache.write_bytes(b"a file in the place of the directory")
    for _ in range(2):
        assert sha256_of(path, cache) == digest(b"content")
    assert len(counted) == 2


def split_model(folder: Path) -> list[Path]:
    """The files of a model in several."""
    write(folder / "model.gguf", split_max_tensors=5)
    parts = sorted(folder.glob("model-*.gguf"))
    assert len(parts) > 2
    return parts


def test_a_models_digest_is_what_sha256sum_prints(tmp_path: Path) -> None:
    """`sha256sum FILE`, or `cat PARTS | sha256sum`: nobody needs this program to check one."""
    whole = write(tmp_path / "whole.gguf")
    assert digest_of(read_gguf(whole)) == sha256_of(whole) == digest(whole.read_bytes())
    parts = split_model(tmp_path)
    expected = digest(b"".join(part.read_bytes() for part in parts))
    assert {digest_of(read_gguf(part)) for part in parts} == {expected}


@pytest.mark.parametrize("which", [0, 1, -1])
def test_every_part_of_a_model_counts(tmp_path: Path, counted: list[Path], which: int) -> None:
    """Counted once, and all of them again when one has changed."""
    parts, cache = split_model(tmp_path), tmp_path / "cache"
    model = read_gguf(parts[0])
    before = [digest_of(model, cache) for _ in range(2)]
    assert counted == parts
    data = parts[which].read_bytes()
    parts[which].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    expected = digest(b"".join(part.read_bytes() for part in parts))
    assert [digest_of(model, cache) for _ in range(2)] == [expected] * 2
    assert before[0] == before[1] != expected
    assert counted == parts * 2


@pytest.mark.parametrize("remembered", [True, False])
def test_a_model_that_cannot_be_read_has_no_digest(tmp_path: Path, remembered: bool) -> None:
    """A run directory that was pruned, say."""
    file = read_gguf(write(tmp_path / "x.gguf"))
    file.path.unlink()
    with pytest.raises(GgufError, match=r"x\.gguf cannot be read"):
        digest_of(file, tmp_path / "cache" if remembered else None)
