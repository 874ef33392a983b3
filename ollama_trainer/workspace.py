"""Where files lie, and how they come to lie there whole.

    <data dir>/
      trainer.db        runs (the server alone writes it)
      ballast           room for the database on a full disk
      server.lock       which process owns the directory, and where it listens
      runs/<run id>/    one directory a run: see RunDirectory
      cache/            what several runs share, by digest

A file appears under its final name only when it is complete: written beside it, fsynced, renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ollama_trainer.records import Event, Lease, RunResult, RunSpec

#: Files under this suffix are unfinished and may be deleted.
PARTIAL_SUFFIX = ".partial"
BALLAST = "ballast"


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yields a temporary path beside `final`; on success it is fsynced and takes the final name.

    On an error the temporary file is removed and the final name stays as it was.
    """
    partial = final.with_name(final.name + PARTIAL_SUFFIX)
    partial.unlink(missing_ok=True)
    try:
        yield partial
        with partial.open("r+b") as handle:
            os.fsync(handle.fileno())
        partial.replace(final)
        fsync_directory(final.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Like `atomic_path`, for a directory with files in it. An older one is replaced."""
    partial = final.with_name(final.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_files(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        fsync_directory(final.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fsync_directory(path: Path) -> None:
    """Makes a rename in `path` durable. Windows cannot open directories and needs no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(directory: Path) -> None:
    """Makes everything below a directory durable, and the directory itself."""
    for path in directory.rglob("*"):
        if path.is_dir():
            fsync_directory(path)
        else:
            with path.open("r+b") as handle:
                os.fsync(handle.fileno())
    fsync_directory(directory)


def write_text(final: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    with atomic_path(final) as partial:
        partial.write_text(text, encoding="utf-8")


def _ends_with_newline(handle: BinaryIO) -> bool:
    handle.seek(-1, os.SEEK_END)
    return handle.read(1) == b"\n"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The files of one run.

    The server writes spec.json, lease.json and dataset.jsonl with its manifest, and opens
    worker.log; the rest is the worker's.
    """

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def base(self) -> Path:
        """Which base the run has, settled by its first attempt (pipeline/base.py)."""
        return self.path / "base.json"

    @property
    def kept(self) -> Path:
        """Directory of second names for files of the base (pipeline/keep.py)."""
        return self.path / "base"

    @property
    def dataset(self) -> Path:
        """The snapshot of the caller's data set."""
        return self.path / "dataset.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty directory for temporary files, whatever a killed worker left in it."""
        path = self.path / f"scratch{PARTIAL_SUFFIX}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def dataset_report(self) -> Path:
        """What became of its rows, as JSON (records.DatasetReport)."""
        return self.path / "dataset.json"

    @property
    def log(self) -> Path:
        """Everything that the worker printed."""
        return self.path / "worker.log"

    @property
    def lease(self) -> Path:
        return self.path / "lease.json"

    @property
    def heartbeat(self) -> Path:
        """An empty file that a living worker touches every few seconds."""
        return self.path / "heartbeat"

    @property
    def publishing(self) -> Path:
        """Written before anything is left with a publisher: what may have to be taken back."""
        return self.path / "publishing.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def manifest(self, stage: str) -> Path:
        """Says that a stage is done (see manifests.py)."""
        return self.path / "stages" / f"{stage}.json"

    def result_of(self, task: str) -> Path:
        """The last word of a worker at this task (see `records.Lease`)."""
        return self.path / ("result.json" if task == "run" else f"{task}-result.json")

    @property
    def result(self) -> Path:
        return self.result_of("run")

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def statistics(self) -> Path:
        """Second moments of the layers' inputs (gguf/statistics.py)."""
        return self.path / "statistics"

    @property
    def gguf(self) -> Path:
        return self.path / "model.gguf"

    @property
    def modelfile(self) -> Path:
        return self.path / "Modelfile"

    def read_spec(self) -> RunSpec:
        return RunSpec.model_validate_json(self.spec.read_bytes())

    def write_spec(self, spec: RunSpec) -> None:
        write_text(self.spec, spec.model_dump_json(indent=2) + "\n")

    def read_lease(self) -> Lease:
        return Lease.model_validate_json(self.lease.read_bytes())

    def write_lease(self, lease: Lease) -> None:
        write_text(self.lease, lease.model_dump_json() + "\n")

    def append_event(self, event: Event) -> None:
        line = event.model_dump_json(exclude_none=True).encode() + b"\n"
        with self.events.open("a+b") as handle:
            if handle.tell() and not _ends_with_newline(handle):
                # An earlier worker was killed in the middle of a line.
                line = b"\n" + line
            handle.write(line)

    def read_result(self, task: str = "run") -> RunResult | None:
        """The worker's result, or None while there is none."""
        try:
            return RunResult.model_validate_json(self.result_of(task).read_bytes())
        except FileNotFoundError:
            return None

    def write_result(self, result: RunResult, task: str = "run") -> None:
        write_text(self.result_of(task), result.model_dump_json(indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The directory that one server owns."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / "trainer.db"

    @property
    def ballast(self) -> Path:
        """Room for the database on a full disk."""
        return self.path / BALLAST

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    def run(self, run_id: str) -> RunDirectory:
        """`run_id` must have passed `names.check_run_id`."""
        return RunDirectory(self.path / "runs" / run_id)

    def create(self) -> None:
        for path in (self.path / "runs", self.cache):
            path.mkdir(parents=True, exist_ok=True)
