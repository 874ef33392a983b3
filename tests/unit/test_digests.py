"""Digests of large files: remembered as long as nothing about the file has changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ollama_trainer.bases import digests
from ollama_trainer.bases.digests import sha256_of
from ollama_trainer.manifests import file_sha256


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose digest was counted."""
    seen: list[Path] = []
    count = file_sha256

    def noted(path: Path) -> str:
        seen.append(path)
        return count(path)

    monkeypatch.setattr(digests, "file_sha256", noted)
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
