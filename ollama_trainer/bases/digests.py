"""SHA-256 of files that are gigabytes: counted once, and again when a file has changed."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from ollama_trainer.errors import GgufError
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.workspace import write_text

_READ_BYTES = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


def sha256_of(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file, as lower-case hex.

    Args:
        cache: directory that remembers it, as long as inode, size and time of change stay what
            they are; None: it is counted.
    """
    return _remembered((path,), cache)


def digest_of(gguf: GgufFile, cache: Path | None = None) -> str:
    """SHA-256 of a model: of its file, or of all its files one after the other.

    It is what `sha256sum FILE` prints, or `cat PARTS | sha256sum`.

    Args:
        cache: as of `sha256_of`; a change of any part counts.

    Raises:
        GgufError: they cannot be read.
    """
    try:
        return _remembered(tuple(part.path for part in gguf.parts), cache)
    except OSError as error:
        raise GgufError(
            f"{error.filename or gguf.path} cannot be read: {error.strerror}"
        ) from error


def _remembered(paths: tuple[Path, ...], cache: Path | None) -> str:
    if cache is None:
        return _counted(paths)
    before = _identity(paths)
    known = cache / "digests" / hashlib.sha256(before.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        digest = known.read_text(encoding="ascii").strip()
        if _HEX.fullmatch(digest):
            return digest
    digest = _counted(paths)
    if _identity(paths) == before:
        # What cannot be remembered is counted again: nothing is lost.
        with contextlib.suppress(OSError):
            known.parent.mkdir(parents=True, exist_ok=True)
            write_text(known, digest + "\n")
    return digest


def _counted(paths: tuple[Path, ...]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while data := handle.read(_READ_BYTES):
                total.update(data)
    return total.hexdigest()


def _identity(paths: tuple[Path, ...]) -> str:
    return "\n".join(map(identity_of, paths))


def identity_of(path: Path) -> str:
    """What changes when a file's content does, as far as that can be seen without reading it."""
    found = path.stat()
    # Two names of one file are one; some network drives know no inodes.
    which = f"{found.st_dev} {found.st_ino}" if found.st_ino else str(path.resolve())
    return f"{which}\n{found.st_size}\n{found.st_mtime_ns}"
