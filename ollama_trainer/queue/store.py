"""The runs in SQLite: one writer, transactions, a terminal state that never changes.

Writes go one after another through a thread of their own and return when the disk has them. Reads
are single rows by key, answered on the caller's thread from a connection of their own, which the
write-ahead log never makes wait.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ollama_trainer.errors import DatasetError, TrainerError
from ollama_trainer.queue.database import connect, load_queries, migrate, transaction
from ollama_trainer.queue.rows import Run, RunIdTaken, Submission
from ollama_trainer.records import ErrorInfo, Progress, RunResult, RunSpec, RunState

_P = ParamSpec("_P")
_T = TypeVar("_T")


class StaleAttempt(Exception):
    """A write came from an attempt that is no longer the newest, or for a finished run."""


class RunStore:
    """Runs by id.

    Raises:
        ServerError: on opening, a newer program wrote the database.
    """

    def __init__(self, path: Path) -> None:
        self._sql = load_queries()
        self._writer = connect(path)
        migrate(self._writer)
        self._reader = connect(path, read_only=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runs-writer")

    def close(self) -> None:
        self._thread.shutdown()
        self._reader.close()
        self._writer.close()

    # Reads

    def get(self, run_id: str) -> Run | None:
        """The run with exactly this id."""
        run = _one(self._reader, self._sql["get"], run_id=run_id)
        return run if run is not None and run.run_id == run_id else None

    def next_unfinished(self) -> Run | None:
        """A running one if there is any, else the pending one that was accepted first."""
        return _one(self._reader, self._sql["next_unfinished"])

    def uncopied(self) -> list[Run]:
        """Pending runs without a copy of their data set, in the order of acceptance."""
        return [Run.of(row) for row in self._reader.execute(self._sql["uncopied"])]

    def queue_position(self, run: Run) -> int:
        """1 for the pending run that starts next."""
        row = self._reader.execute(self._sql["queue_position"], {"seq": run.seq}).fetchone()
        return int(row[0])

    def count_unfinished(self) -> dict[RunState, int]:
        counts = dict.fromkeys((RunState.PENDING, RunState.RUNNING), 0)
        for row in self._reader.execute(self._sql["count_unfinished"]):
            counts[RunState(row["state"])] = row["n"]
        return counts

    # Writes

    async def accept(self, submission: Submission, spec: RunSpec) -> tuple[Run, bool]:
        """Stores a run as pending. Returns it, and whether it is new.

        Raises:
            RunIdTaken: the id stands for another request (also one that differs only in the
                case of its id); that one is untouched.
        """
        return await self._write(self._accept, submission, spec)

    async def reject(self, submission: Submission, error: TrainerError) -> None:
        """Stores a refused request as a failed run, unless the id is taken already."""
        await self._write(self._insert, submission, RunState.FAILED, error=error)

    async def dataset_copied(self, run_id: str, sha256: str, n_bytes: int) -> None:
        await self._write(
            self._update, "dataset_copied", run_id=run_id, sha256=sha256, n_bytes=n_bytes
        )

    async def fail_pending(self, run_id: str, error: DatasetError) -> None:
        await self._write(
            self._update, "fail_pending", run_id=run_id, error=_error_json(error), now=_now()
        )

    async def claim(self, run: Run) -> Run:
        """Begins the next attempt of a pending or running run, and returns the run as it is then.

        Raises:
            StaleAttempt: somebody else did, or the run is finished.
        """
        return await self._write(self._attempt, "claim", run, now=_now())

    async def worker_started(self, run: Run, pid: int, started: float) -> None:
        await self._write(self._attempt, "worker_started", run, pid=pid, started=started)

    async def worker_stopped(self, run: Run) -> None:
        """The worker was stopped on purpose: its attempt does not count as lost."""
        await self._write(self._attempt, "worker_stopped", run)

    async def worker_lost(self, run: Run) -> Run:
        """The worker went away together with its server; returns the run with one more loss."""
        return await self._write(self._attempt, "worker_lost", run)

    async def progress(self, run: Run, progress: Progress) -> None:
        await self._write(
            self._attempt, "progress", run, progress=progress.model_dump_json(exclude_none=True)
        )

    async def complete(self, run: Run, result: RunResult) -> None:
        """Raises:
        StaleAttempt: the run's attempt is not the newest, or it is finished.
        """
        await self._write(
            self._attempt,
            "finish",
            run,
            state=RunState.COMPLETED,
            error=None,
            result=result.model_dump_json(),
            output_model_ref=result.output_model_ref,
            now=_now(),
        )

    async def fail(self, run: Run, error: ErrorInfo, result: RunResult | None = None) -> None:
        """Raises:
        StaleAttempt: the run's attempt is not the newest, or it is finished.
        """
        await self._write(
            self._attempt,
            "finish",
            run,
            state=RunState.FAILED,
            error=error.model_dump_json(),
            result=result.model_dump_json() if result else None,
            output_model_ref=None,
            now=_now(),
        )

    async def _write(
        self,
        step: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        def write() -> _T:
            with transaction(self._writer) as connection:
                return step(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._thread, write)

    def _accept(
        self, connection: sqlite3.Connection, submission: Submission, spec: RunSpec
    ) -> tuple[Run, bool]:
        new = self._insert(connection, submission, RunState.PENDING, spec=spec)
        run = _one(connection, self._sql["get"], run_id=submission.run_id)
        assert run is not None  # noqa: S101 - just inserted or in its way
        if (run.run_id, run.fingerprint) != (submission.run_id, submission.fingerprint):
            raise RunIdTaken(submission.run_id)
        return run, new

    def _insert(
        self,
        connection: sqlite3.Connection,
        submission: Submission,
        state: RunState,
        *,
        spec: RunSpec | None = None,
        error: TrainerError | None = None,
    ) -> bool:
        cursor = connection.execute(
            self._sql["insert"],
            {
                "run_id": submission.run_id,
                "job_id": submission.job_id,
                "dataset_ref": submission.dataset_ref,
                "experiment_label": submission.experiment_label,
                "fingerprint": submission.fingerprint,
                "spec": spec.model_dump_json() if spec else None,
                "state": state,
                "error": _error_json(error) if error else None,
                "now": _now(),
            },
        )
        return cursor.rowcount == 1

    def _update(self, connection: sqlite3.Connection, /, query: str, **values: object) -> None:
        connection.execute(self._sql[query], values)

    def _attempt(
        self, connection: sqlite3.Connection, /, query: str, run: Run, **values: object
    ) -> Run:
        """One statement on behalf of an attempt; a lost attempt changes nothing."""
        keys = {"run_id": run.run_id, "attempt": run.attempt}
        if connection.execute(self._sql[query], keys | values).rowcount != 1:
            raise StaleAttempt(f"{query} of run {run.run_id}, attempt {run.attempt}")
        found = _one(connection, self._sql["get"], run_id=run.run_id)
        assert found is not None  # noqa: S101 - just updated
        return found


def _one(connection: sqlite3.Connection, sql: str, **values: object) -> Run | None:
    row = connection.execute(sql, values).fetchone()
    return Run.of(row) if row is not None else None


def _error_json(error: TrainerError) -> str:
    return ErrorInfo.of(error).model_dump_json()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
