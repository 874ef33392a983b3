"""What is made of bases is kept up to a limit; what was used last stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ollama_trainer.bases.caches import mark_used, prune


def made(cache: Path, name: str, n_bytes: int, age_s: int) -> Path:
    """A cached directory if its name says so, else a file."""
    path = cache / name
    if name.startswith("dequantized-"):
        path.mkdir(parents=True)
        (path / "model-00001.safetensors").write_bytes(b"\0" * n_bytes)
    else:
        path.write_bytes(b"\0" * n_bytes)
    os.utime(path, (1_000_000 - age_s,) * 2)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path


def test_what_was_used_longest_ago_makes_way(cache: Path) -> None:
    old = made(cache, "dequantized-old", 60, 300)
    middle = made(cache, "scales-middle.gguf", 30, 200)
    new = made(cache, "converted-new.gguf", 60, 100)
    assert prune(cache, 100) == [old]
    assert sorted(cache.iterdir()) == sorted([middle, new])


def test_using_something_keeps_it(cache: Path) -> None:
    old = made(cache, "dequantized-old", 60, 300)
    new = made(cache, "converted-new.gguf", 60, 100)
    mark_used(old)
    assert prune(cache, 100) == [new]
    assert old.is_dir()


def test_within_the_limit_nothing_is_removed(cache: Path) -> None:
    made(cache, "dequantized-a", 50, 1)
    made(cache, "scales-b.gguf", 50, 2)
    assert prune(cache, 100) == []


def test_small_things_are_never_removed(cache: Path) -> None:
    """Texts that the base wrote cost a minute and take some kilobytes."""
    replayed = made(cache, "replay-1-abc.json", 1000, 500)
    assert prune(cache, 0) == []
    assert replayed.exists()


def test_no_cache_yet_is_no_error(tmp_path: Path) -> None:
    assert prune(tmp_path / "none", 0) == []
