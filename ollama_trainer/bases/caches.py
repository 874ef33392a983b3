"""What is made of bases and kept: gigabytes that can be made again, up to a limit."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path

#: Beginnings of the names of what is large. Small things (replayed texts, losses) stay.
_LARGE = ("dequantized-", "converted-", "scales-")
_log = logging.getLogger(__name__)


def mark_used(path: Path) -> None:
    """Notes that `path` was of use now; as its time of access, since it was not changed."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def prune(cache: Path, limit: int) -> list[Path]:
    """Removes what was used longest ago, until the rest takes at most `limit` bytes.

    To be called where nothing of the cache is in use. What is half-made by a process that was
    killed goes, too.

    Returns:
        What was removed.
    """
    entries = [path for path in _entries(cache) if path.name.startswith(_LARGE)]
    entries.sort(key=lambda path: path.stat().st_atime, reverse=True)
    removed, total = [], 0
    for path in entries:
        total += _size(path)
        if total > limit:
            _log.info("%s is removed: the cache is to hold %d MB", path, limit // 1_000_000)
            _remove(path)
            removed.append(path)
    return removed


def _entries(cache: Path) -> list[Path]:
    try:
        return list(cache.iterdir())
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.iterdir())
    return path.stat().st_size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
