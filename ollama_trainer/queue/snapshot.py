"""The copy of a data set that a run keeps: whatever happens to the source later changes nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ollama_trainer.errors import (
    DatasetError,
    DiskFull,
    MachineBusy,
    is_disk_full,
    is_machine_busy,
)
from ollama_trainer.manifests import key_of, read_manifest, write_manifest
from ollama_trainer.workspace import RunDirectory, atomic_path

_CHUNK_BYTES = 1 << 20
_ROWS_HINT = "Give the absolute path of a JSONL file with one row a line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was copied."""

    #: Lower-case hex.
    sha256: str
    n_bytes: int


class SnapshotStopped(Exception):
    """The server stops; the copy is made again at its next start."""


def snapshot_once(
    dataset_ref: str,
    directory: RunDirectory,
    roots: Sequence[Path] = (),
    stopped: threading.Event | None = None,
) -> Snapshot:
    """The copy in a run directory, made unless an earlier server made it: its source may be gone.

    Raises:
        DatasetError, DiskFull, SnapshotStopped: as of `take_snapshot`.
    """
    path, key = directory.manifest("snapshot"), key_of("snapshot", dataset_ref)
    manifest = read_manifest(path, key, directory.path)
    if manifest is None:
        take_snapshot(dataset_ref, directory.dataset, roots, stopped)
        try:
            manifest = write_manifest(path, key, directory.path, [directory.dataset])
        except OSError as error:
            raise _failed(directory.dataset, error) from error
    (copy,) = manifest.outputs.values()
    return Snapshot(sha256=copy.sha256, n_bytes=copy.n_bytes)


def take_snapshot(
    dataset_ref: str,
    target: Path,
    roots: Sequence[Path] = (),
    stopped: threading.Event | None = None,
) -> Snapshot:
    """Copies a data set to `target`, counting its SHA-256 on the way.

    Args:
        dataset_ref: a path as the caller gave it.
        target: the copy; it appears there only when it is whole.
        roots: directories that the file must lie in, symbolic links resolved; none means anywhere.
        stopped: ends the copy when it is set.

    Raises:
        DatasetError: there is no such file, or it may not or cannot be read, or it is empty.
        DiskFull: there is no room for the copy.
        MachineBusy: the system lacks something just now.
        SnapshotStopped: `stopped` was set.
    """
    source = _locate(dataset_ref, roots)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _open_regular(source) as reader, atomic_path(target) as partial:
            with partial.open("wb") as writer:
                snapshot = _copy(reader, writer, stopped)
            if snapshot.n_bytes == 0:
                raise DatasetError(
                    f"the data set {source} is empty (0 bytes)",
                    "Collect feedback first, then train again.",
                )
    except OSError as error:
        raise _failed(source, error) from error
    return snapshot


def check_source(dataset_ref: str, roots: Sequence[Path] = ()) -> Path:
    """The file that a caller means, once it was seen to be one that can be read.

    Raises:
        DatasetError, MachineBusy: as of `take_snapshot`.
    """
    source = _locate(dataset_ref, roots)
    try:
        str(source).encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"the name of the data set {_shown(str(source))} is not UTF-8", "Rename it."
        ) from error
    try:
        _open_regular(source).close()
    except OSError as error:
        raise _failed(source, error) from error
    return source


def _locate(dataset_ref: str, roots: Sequence[Path]) -> Path:
    """The file that is meant, symbolic links resolved."""
    if not dataset_ref.strip():
        raise DatasetError("datasetRef is empty", f"{_ROWS_HINT}.")
    path = Path(dataset_ref)
    if not path.is_absolute():
        raise DatasetError(
            f"datasetRef {_shown(dataset_ref)} is not an absolute path", f"{_ROWS_HINT}."
        )
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DatasetError(
            f"datasetRef {_shown(dataset_ref)} is not a usable path ({error})", f"{_ROWS_HINT}."
        ) from error
    if roots and not any(resolved.is_relative_to(root.resolve()) for root in roots):
        raise DatasetError(
            f"the data set {_shown(dataset_ref)} lies outside of the directories that data sets "
            "may lie in",
            "Move it into one of them, or add its directory to the setting dataset_roots.",
        )
    return resolved


def _open_regular(path: Path) -> BinaryIO:
    """Opens without waiting (a named pipe would block for ever) and refuses all but plain files."""
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "not a plain file"
        raise DatasetError(f"the data set {path} is {kind}", f"{_ROWS_HINT}.")
    return os.fdopen(descriptor, "rb")


def _copy(reader: BinaryIO, writer: BinaryIO, stopped: threading.Event | None) -> Snapshot:
    digest = hashlib.sha256()
    n_bytes = 0
    while chunk := reader.read(_CHUNK_BYTES):
        if stopped is not None and stopped.is_set():
            raise SnapshotStopped
        digest.update(chunk)
        writer.write(chunk)
        n_bytes += len(chunk)
    return Snapshot(sha256=digest.hexdigest(), n_bytes=n_bytes)


def _failed(source: Path, error: OSError) -> DatasetError | DiskFull | MachineBusy:
    if is_machine_busy(error):
        return MachineBusy(f"the data set {source} cannot be copied now: {error}")
    if is_disk_full(error):
        return DiskFull(
            f"the disk is full: there is no room for the copy of {source}",
            "Make room where the data directory lies.",
        )
    if error.errno == errno.ENOENT and error.filename == str(source):
        return DatasetError(
            f"the data set {source} does not exist", "Create it, or correct datasetRef."
        )
    if error.filename in (None, str(source)):
        return DatasetError(
            f"the data set {source} cannot be read: {error.strerror or error}",
            "Make it readable for the user that runs the server.",
        )
    return DatasetError(
        f"the data set {source} cannot be copied into the data directory: "
        f"{error.strerror or error}",
        "Make sure that the data directory is writable and has room, then train again.",
    )


def _shown(text: str) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= 200 else quoted[:197] + "..."
