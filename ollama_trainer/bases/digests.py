"""SHA-256 of files that are gigabytes: counted once, and again when a file has changed."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from ollama_trainer.manifests import file_sha256
from ollama_trainer.workspace import write_text

_HEX = re.compile(r"[0-9a-f]{64}")


def sha256_of(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file, as lower-case hex.

    Args:
        cache: directory that remembers it, as long as inode, size and time of change stay what
            they are; None: it is counted.
    """
    if cache is None:
        return file_sha256(path)
    known = cache / "digests" / hashlib.sha256(identity_of(path).encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        digest = known.read_text(encoding="ascii").strip()
        if _HEX.fullmatch(digest):
            return digest
    before = identity_of(path)
    digest = file_sha256(path)
    if identity_of(path) == before:
        # What cannot be remembered is counted again: nothing is lost.
        with contextlib.suppress(OSError):
            known.parent.mkdir(parents=True, exist_ok=True)
            write_text(known, digest + "\n")
    return digest


def identity_of(path: Path) -> str:
    """What changes when a file's content does, as far as that can be seen without reading it."""
    found = path.stat()
    # Two names of one file are one; some network drives know no inodes.
    which = f"{found.st_dev} {found.st_ino}" if found.st_ino else str(path.resolve())
    return f"{which}\n{found.st_size}\n{found.st_mtime_ns}"
