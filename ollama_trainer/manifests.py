"""What says that a stage's files are whole: a manifest, written after all of them.

A stage is done when its manifest is there, was written for the same inputs (`key`), and names files
that still have the sizes and hashes that it names. Everything else counts as never made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ollama_trainer.records import Manifest, OutputFile
from ollama_trainer.workspace import write_text

_CHUNK_BYTES = 1 << 20


def key_of(*parts: object) -> str:
    """SHA-256, hex, of everything that a stage's outputs follow from.

    Args:
        parts: anything that JSON can say; numbers, texts, lists and dictionaries.
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Lower-case hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_manifest(
    path: Path,
    key: str,
    root: Path,
    outputs: Iterable[Path],
    *,
    attempt: int = 0,
    versions: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes the manifest of files that are whole and synced already.

    Args:
        path: where the manifest goes.
        key: as of `key_of`.
        root: directory that the outputs' names are relative to.
        outputs: files, or directories that stand for all files in them.
        attempt: who made them.
        versions: of the programs that made them.
        data: what else a later attempt needs to know.
    """
    files = sorted(file for output in outputs for file in _files(output))
    manifest = Manifest(
        key=key,
        outputs={
            file.relative_to(root).as_posix(): OutputFile(
                n_bytes=file.stat().st_size, sha256=file_sha256(file)
            )
            for file in files
        },
        attempt=attempt,
        versions=dict(versions or {}),
        data=dict(data or {}),
        written_at=datetime.now(UTC),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def read_manifest(path: Path, key: str | None, root: Path) -> Manifest | None:
    """The manifest, if it and all that it names are whole and made for `key`; else None.

    Args:
        key: None takes any.
    """
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    whole = key in (None, manifest.key) and all(
        _is_whole(root / name, output) for name, output in manifest.outputs.items()
    )
    return manifest if whole else None


def _files(output: Path) -> Iterable[Path]:
    return (file for file in output.rglob("*") if file.is_file()) if output.is_dir() else [output]


def _is_whole(file: Path, output: OutputFile) -> bool:
    try:
        # The size first: it costs nothing, and most damage shows there.
        return file.stat().st_size == output.n_bytes and file_sha256(file) == output.sha256
    except OSError:
        return False
