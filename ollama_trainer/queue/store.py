"""The runs in SQLite: one writer, transactions, a terminal state that never changes.

Writes go one after another through a thread of their own and return when the disk has them. Reads
are few rows by key, answered on the caller's thread from a connection of their own, which the
write-ahead log never makes wait.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ollama_trainer.errors import Cancelled, TrainerError
from ollama_trainer.queue.database import Database
from ollama_trainer.queue.rows import Attempt, Run, RunIdTaken, StoredEvent, Submission
from ollama_trainer.records import (
    ErrorInfo,
    Event,
    RunResult,
    RunSpec,
    RunState,
    Waiting,
)

#: After every seq that there can be.
_NO_SEQ = 1 << 62


class StaleAttempt(Exception):
    """A write came from an attempt that is no longer the newest, or for a finished run."""


class RunStore:
    """Runs by id, with their attempts and events.

    Every write raises `StoreUnavailable` when nothing can be written now, and those on behalf of an
    attempt raise `StaleAttempt` when it is not the newest or its run is finished.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.sql

    # Reads

    def get(self, run_id: str) -> Run | None:
        """The run with exactly this id."""
        row = self._database.row("get", run_id=run_id)
        return Run.of(row) if row is not None and row["run_id"] == run_id else None

    def page(
        self,
        *,
        job_id: str | None = None,
        state: RunState | None = None,
        before: int | None = None,
        limit: int,
    ) -> list[Run]:
        """Runs, the newest first.

        Args:
            before: only those whose `seq` is smaller.
        """
        query = "list" + "_job" * (job_id is not None) + "_state" * (state is not None)
        values = {"job_id": job_id, "state": state, "before": before or _NO_SEQ, "limit": limit}
        return [Run.of(row) for row in self._database.rows(query, **values)]

    def next_running(self) -> Run | None:
        """A running one to go on with: left by an earlier server, or due for the longest time."""
        row = self._database.row("next_running", now=now())
        return Run.of(row) if row is not None else None

    def cancelled_waiting(self) -> list[Run]:
        """Runs that wait and are to be cancelled."""
        return [Run.of(row) for row in self._database.rows("cancelled_waiting")]

    def next_pending(self) -> Run | None:
        """The pending one that was accepted first, those that wait for room left aside."""
        row = self._database.row("next_pending")
        return Run.of(row) if row is not None else None

    def seconds_to_next(self) -> float | None:
        """Until the next waiting run is due; None when none waits."""
        row = self._database.row("next_time")
        if row is None or row[0] is None:
            return None
        return max(0.0, (datetime.fromisoformat(row[0]) - datetime.now(UTC)).total_seconds())

    def uncopied(self) -> list[Run]:
        """Pending runs without a copy of their data set, in the order of acceptance."""
        return [Run.of(row) for row in self._database.rows("uncopied")]

    def queue_position(self, run: Run) -> int:
        """1 for the pending run that starts next."""
        row = self._database.row("queue_position", seq=run.seq)
        return int(row[0]) if row is not None else 0

    def count_unfinished(self) -> dict[RunState, int]:
        counts = dict.fromkeys((RunState.PENDING, RunState.RUNNING), 0)
        for row in self._database.rows("count_unfinished"):
            counts[RunState(row["state"])] = row["n"]
        return counts

    def attempts(self, run: Run) -> list[Attempt]:
        return [Attempt.of(row) for row in self._database.rows("attempts", seq=run.seq)]

    def open_attempt(self, run: Run) -> Attempt | None:
        """The attempt whose end is not stored yet."""
        row = self._database.row("attempt_open", seq=run.seq)
        return Attempt.of(row) if row is not None else None

    def events(self, run: Run, after: int, limit: int) -> list[StoredEvent]:
        rows = self._database.rows("events", seq=run.seq, after=after, limit=limit)
        return [StoredEvent.of(row) for row in rows]

    # Writes: before the first attempt

    async def accept(self, submission: Submission, spec: RunSpec) -> tuple[Run, bool]:
        """Stores a run as pending. Returns it, and whether it is new.

        Raises:
            RunIdTaken: the id stands for another request (also one that differs only in the
                case of its id); that one is untouched.
        """
        return await self._database.write(self._accept, submission, spec)

    async def reject(self, submission: Submission, error: TrainerError) -> None:
        """Stores a refused request as a failed run, unless the id is taken already."""
        await self._database.write(self._reject, submission, error)

    async def dataset_copied(self, run_id: str, sha256: str, n_bytes: int) -> None:
        await self._database.write(
            self._update, "dataset_copied", run_id=run_id, sha256=sha256, n_bytes=n_bytes
        )

    async def dataset_waits(self, run_id: str, waiting: Waiting) -> None:
        """The data set cannot be copied now."""
        await self._database.write(
            self._update,
            "dataset_waits",
            run_id=run_id,
            waiting=waiting.model_dump_json(),
            not_before=_iso(waiting.until),
        )

    async def fail_pending(self, run_id: str, error: TrainerError) -> bool:
        """Ends a run that no attempt was made at; returns whether it was one."""
        return await self._database.write(self._fail_pending, run_id, error)

    # Writes: attempts

    async def claim(self, run: Run) -> tuple[Run, int]:
        """Begins the next attempt of a pending or running run.

        Returns:
            the run as it is then, and the fencing token of its worker.

        Raises:
            StaleAttempt: somebody else did, it is to be cancelled, or it is finished.
        """
        return await self._database.write(self._claim, run)

    async def worker_started(self, token: int, pid: int, started: float) -> None:
        await self._database.write(
            self._update, "attempt_worker", token=token, pid=pid, started=started, now=now()
        )

    async def beat(self, token: int) -> None:
        """The worker gave a sign of life."""
        await self._database.write(self._update, "attempt_beat", token=token, now=now())

    async def record(self, run: Run, events: Sequence[Event], offset: int) -> None:
        """Stores what a worker told, and up to which byte of its file that is."""
        await self._database.write(self._record, run, events, offset)

    async def wait(self, run: Run, waiting: Waiting, *, halvings: int) -> None:
        """The attempt failed in a way that may pass; the run goes on later."""
        await self._database.write(self._wait, run, waiting, halvings)

    async def complete(self, run: Run, result: RunResult) -> None:
        await self._database.write(self._finish, run, "completed", RunState.COMPLETED, None, result)

    async def fail(self, run: Run, error: ErrorInfo, result: RunResult | None = None) -> None:
        outcome = {"cancelled": "cancelled", "worker_lost": "lost"}.get(error.code, "failed")
        await self._database.write(self._finish, run, outcome, RunState.FAILED, error, result)

    async def request_cancel(self, run_id: str) -> None:
        """Of a running run; its supervisor does the rest."""
        await self._database.write(self._update, "cancel", run_id=run_id, now=now())

    async def begin_errand(self, seq: int, task: str, attempt: int) -> int:
        """Begins a worker's task that is no attempt at training; returns its fencing token."""
        return await self._database.write(self._begin, seq, task, attempt)

    async def end_attempt(self, seq: int, outcome: str, error: ErrorInfo | None = None) -> None:
        """Ends what is open of a run's attempts, and leaves the run as it is."""
        await self._database.write(self._end_attempt, seq, outcome, error)

    async def delete(self, run_id: str) -> None:
        """Of a finished run, with all that is stored of it."""
        await self._database.write(self._update, "delete", run_id=run_id)

    # Steps of transactions

    def _accept(
        self, connection: sqlite3.Connection, submission: Submission, spec: RunSpec
    ) -> tuple[Run, bool]:
        new = self._insert(connection, submission, spec)
        run = self._get(connection, submission.run_id)
        if (run.run_id, run.fingerprint) != (submission.run_id, submission.fingerprint):
            raise RunIdTaken(submission.run_id)
        if new:
            self._say_state(connection, run, RunState.PENDING)
        return run, new

    def _reject(
        self, connection: sqlite3.Connection, submission: Submission, error: TrainerError
    ) -> None:
        if self._insert(connection, submission, None):
            self._fail_pending(connection, submission.run_id, error)

    def _insert(
        self, connection: sqlite3.Connection, submission: Submission, spec: RunSpec | None
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
                "now": now(),
            },
        )
        return cursor.rowcount == 1

    def _fail_pending(
        self, connection: sqlite3.Connection, run_id: str, error: TrainerError
    ) -> bool:
        row = connection.execute(self._sql["get"], {"run_id": run_id}).fetchone()
        if row is None or row["state"] != RunState.PENDING:
            return False
        run = Run.of(row)
        info = ErrorInfo.of(error)
        self._say_state(connection, run, RunState.FAILED, info)
        values = {"run_id": run_id, "error": info.model_dump_json(), "now": now()}
        connection.execute(self._sql["fail_pending"], values)
        return True

    def _claim(self, connection: sqlite3.Connection, run: Run) -> tuple[Run, int]:
        claimed = self._attempt(connection, "claim", run, now=now())
        token = self._begin(connection, run.seq, "run", claimed.attempt)
        self._say_state(connection, claimed, RunState.RUNNING)
        return claimed, token

    def _begin(self, connection: sqlite3.Connection, seq: int, task: str, attempt: int) -> int:
        values = {"seq": seq, "task": task, "attempt": attempt, "now": now()}
        token = connection.execute(self._sql["attempt_begin"], values).lastrowid
        assert token is not None  # noqa: S101 - just inserted
        return token

    def _record(
        self, connection: sqlite3.Connection, run: Run, events: Sequence[Event], offset: int
    ) -> None:
        told = [event.progress for event in events if event.progress is not None]
        self._attempt(
            connection,
            "recorded",
            run,
            progress=told[-1].model_dump_json(exclude_none=True) if told else None,
            offset=offset,
            saved=any(event.kind == "saved" for event in events),
        )
        for event in events:
            self._insert_event(connection, run, event)

    def _wait(
        self,
        connection: sqlite3.Connection,
        run: Run,
        waiting: Waiting,
        halvings: int,
    ) -> None:
        self._check_not_cancelled(self._get(connection, run.run_id))
        if waiting.reason == "worker":
            self._attempt(connection, "lost", run)
        self._attempt(
            connection,
            "wait",
            run,
            waiting=waiting.model_dump_json(),
            not_before=_iso(waiting.until),
            halvings=halvings,
        )
        outcome = "lost" if waiting.reason == "worker" else "failed"
        self._end_attempt(connection, run.seq, outcome, waiting.error)
        self._say_state(
            connection,
            run,
            run.state,
            waiting.error,
            waits_for=waiting.reason,
            tries=waiting.tries,
            until=_iso(waiting.until),
        )

    def _finish(
        self,
        connection: sqlite3.Connection,
        run: Run,
        outcome: str,
        state: RunState,
        error: ErrorInfo | None,
        result: RunResult | None,
    ) -> None:
        """Ends the attempt, tells the last event and makes the state terminal, all or nothing."""
        ref = result.output_model_ref if result and state is RunState.COMPLETED else None
        current = self._get(connection, run.run_id)
        if current.state.terminal or (current.seq, current.attempt) != (run.seq, run.attempt):
            raise StaleAttempt(f"{state.value} of run {run.run_id}, attempt {run.attempt}")
        if error is None or error.code != Cancelled.code:
            self._check_not_cancelled(current)
        self._say_state(connection, run, state, error, output_model_ref=ref)
        self._attempt(
            connection,
            "finish",
            run,
            state=state,
            error=error.model_dump_json() if error else None,
            result=result.model_dump_json() if result else None,
            output_model_ref=ref,
            now=now(),
        )
        self._end_attempt(connection, run.seq, outcome, error)

    def _check_not_cancelled(self, current: Run) -> None:
        """A cancellation that was answered holds, also when the end came with it."""
        if current.cancel_requested_at is not None:
            raise StaleAttempt(f"run {current.run_id} is to be cancelled")

    def _end_attempt(
        self, connection: sqlite3.Connection, seq: int, outcome: str, error: ErrorInfo | None
    ) -> None:
        self._update(
            connection,
            "attempt_end",
            seq=seq,
            outcome=outcome,
            error=error.model_dump_json() if error else None,
            now=now(),
        )

    def _say_state(
        self,
        connection: sqlite3.Connection,
        run: Run,
        state: RunState,
        error: ErrorInfo | None = None,
        **data: object,
    ) -> None:
        told: dict[str, Any] = {"state": state.value, **data}
        if error is not None:
            told |= {"error": str(error), "error_code": error.code}
        told = {name: value for name, value in told.items() if value is not None}
        self._insert_event(connection, run, Event.now("state", state.value, data=told))

    def _insert_event(self, connection: sqlite3.Connection, run: Run, event: Event) -> None:
        progress = event.progress
        values = {
            "seq": run.seq,
            "attempt": run.attempt,
            "time": event.time.isoformat(timespec="milliseconds"),
            "kind": event.kind,
            "message": event.message,
            "progress": progress.model_dump_json(exclude_none=True) if progress else None,
            "data": json.dumps(event.data),
        }
        connection.execute(self._sql["event_insert"], values)

    def _update(self, connection: sqlite3.Connection, /, query: str, **values: object) -> int:
        return connection.execute(self._sql[query], values).rowcount

    def _attempt(
        self, connection: sqlite3.Connection, /, query: str, run: Run, **values: object
    ) -> Run:
        """One statement on behalf of an attempt; a lost attempt changes nothing."""
        # By seq: a deleted run's id may have been submitted again.
        keys = {"seq": run.seq, "attempt": run.attempt}
        if connection.execute(self._sql[query], keys | values).rowcount != 1:
            raise StaleAttempt(f"{query} of run {run.run_id}, attempt {run.attempt}")
        return self._get(connection, run.run_id)

    def _get(self, connection: sqlite3.Connection, run_id: str) -> Run:
        row = connection.execute(self._sql["get"], {"run_id": run_id}).fetchone()
        if row is None:
            raise StaleAttempt(f"run {run_id} was deleted")
        return Run.of(row)


def now() -> str:
    return _iso(datetime.now(UTC))


def _iso(time: datetime) -> str:
    """Text that sorts as time does."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")
