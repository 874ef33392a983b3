"""Any order of submitting, claiming, telling, crashing, waiting, cancelling and publishing.

Hypothesis makes up the orders. A simple model says what must be true after each step; above all, a
finished run never changes, and a lost attempt is never heard.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from ollama_trainer.errors import Cancelled, DatasetError, InvalidRequest
from ollama_trainer.queue.database import Database
from ollama_trainer.queue.publications import PublicationStore
from ollama_trainer.queue.rows import Run, RunIdTaken, Submission
from ollama_trainer.queue.store import RunStore, StaleAttempt
from ollama_trainer.records import (
    ErrorInfo,
    Event,
    RunResult,
    RunState,
    Waiting,
)
from ollama_trainer.settings import Settings

T = TypeVar("T")
IDS = st.sampled_from(["r1", "r2"])
ERROR = ErrorInfo(code="training_failed", cause="it broke")
CANCELLED = ErrorInfo.of(Cancelled("cancelled"))
LEGAL = {
    (None, "pending"), ("pending", "running"), ("pending", "failed"),
    ("running", "completed"), ("running", "failed"),
}  # fmt: skip


@dataclass
class Model:
    """What must be true of one run."""

    state: str = "pending"
    seq: int = 0
    attempt: int = 0
    n_events: int = 0
    cancelling: bool = False
    #: The row as it was when the run ended.
    ended: Run | None = None
    states: list[str] = field(default_factory=lambda: ["pending"])


class Runs(RuleBasedStateMachine):
    """The store, and the model beside it."""

    #: Runs as they were claimed: handles of attempts, lost ones among them.
    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "trainer.db"
        self.runner = asyncio.Runner()
        self.model: dict[str, Model] = {}
        self._open()

    def _open(self) -> None:
        self.database = Database(self.path)
        self.store = RunStore(self.database)
        self.publications = PublicationStore(self.database)

    def teardown(self) -> None:
        self.database.close()
        self.runner.close()
        self.folder.cleanup()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def move(self, run_id: str, state: str) -> None:
        one = self.model[run_id]
        assert (one.state, state) in LEGAL
        one.state = state
        one.states.append(state)
        if state in ("completed", "failed"):
            one.ended = self.store.get(run_id)

    def current(self, run: Run) -> bool:
        """Whether this handle belongs to the newest attempt of a running run."""
        one = self.model.get(run.run_id)
        if one is None or one.state != "running":
            return False
        return (one.seq, one.attempt) == (run.seq, run.attempt)

    def on_behalf(self, run: Run, work: Coroutine[Any, Any, None], *, ends: bool = False) -> bool:
        """Does what only the newest attempt may; returns whether it was one.

        Args:
            ends: it would be another end, or a pause, than that of a cancellation.
        """
        if self.current(run) and not (ends and self.model[run.run_id].cancelling):
            self.do(work)
            return True
        with pytest.raises(StaleAttempt):
            self.do(work)
        return False

    @rule(run_id=IDS, fingerprint=st.sampled_from(["f", "g"]))
    def submit(self, run_id: str, fingerprint: str) -> None:
        wanted = Submission(run_id=run_id, job_id="job", dataset_ref="/d", fingerprint=fingerprint)
        before = self.store.get(run_id)
        work = self.store.accept(wanted, wanted.spec(Settings()))
        if before is not None and before.fingerprint != fingerprint:
            with pytest.raises(RunIdTaken):
                self.do(work)
            assert self.store.get(run_id) == before
            return
        run, new = self.do(work)
        assert new is (before is None)
        if new:
            self.model[run_id] = Model(seq=run.seq, n_events=1)

    @rule(run_id=IDS)
    def refuse(self, run_id: str) -> None:
        wanted = Submission(run_id=run_id, job_id="job", dataset_ref="/d", fingerprint="refused")
        self.do(self.store.reject(wanted, InvalidRequest("bad")))
        if run_id not in self.model:
            self.model[run_id] = Model(n_events=1)
            self.move(run_id, "failed")

    @rule(run_id=IDS, error=st.sampled_from([DatasetError("empty"), Cancelled("cancelled")]))
    def fail_before_it_began(self, run_id: str, error: DatasetError | Cancelled) -> None:
        if run_id not in self.model:
            return
        done = self.do(self.store.fail_pending(run_id, error))
        assert done is (self.model[run_id].state == "pending")
        if done:
            self.model[run_id].n_events += 1
            self.move(run_id, "failed")

    @rule(run_id=IDS, waits=st.booleans())
    def copy(self, run_id: str, waits: bool) -> None:
        work = (
            self.store.dataset_waits(run_id, waiting("disk"))
            if waits
            else self.store.dataset_copied(run_id, "00", 1)
        )
        self.do(work)

    @rule(target=handles, run_id=IDS)
    def claim(self, run_id: str) -> Run | None:
        run = self.store.get(run_id)
        if run is None:
            return None
        one = self.model[run_id]
        if one.state in ("completed", "failed") or one.cancelling:
            with pytest.raises(StaleAttempt):
                self.do(self.store.claim(run))
            return run
        claimed, token = self.do(self.store.claim(run))
        if one.state == "pending":
            self.move(run_id, "running")
        one.attempt += 1
        one.n_events += 1
        assert (claimed.attempt, claimed.not_before) == (one.attempt, None)
        newest = self.store.attempts(claimed)[-1]
        assert (newest.token, newest.outcome) == (token, None)
        return claimed

    @rule(run=handles)
    def claim_with_an_old_handle(self, run: Run | None) -> None:
        """Also a deleted run's, whose id came again."""
        pending = run is not None and self.store.get(run.run_id) == run
        if run is not None and not self.current(run) and not pending:
            with pytest.raises(StaleAttempt):
                self.do(self.store.claim(run))

    @rule(run=handles, kind=st.sampled_from(["note", "saved", "progress"]))
    def tell(self, run: Run | None, kind: Any) -> None:
        if run is not None and self.on_behalf(
            run, self.store.record(run, [Event.now(kind, "x")], run.events_offset + 1)
        ):
            self.model[run.run_id].n_events += 1

    @rule(run=handles, reason=st.sampled_from(["ollama", "worker", "disk", "memory"]))
    def wait(self, run: Run | None, reason: Any) -> None:
        if run is not None and self.on_behalf(
            run, self.store.wait(run, waiting(reason), halvings=0), ends=True
        ):
            self.model[run.run_id].n_events += 1

    @rule(run=handles, ref=st.sampled_from(["tuned:r", ""]))
    def complete(self, run: Run | None, ref: str) -> None:
        if run is None:
            return
        work = self.store.complete(run, RunResult(status="completed", output_model_ref=ref))
        if not ref and self.current(run) and not self.model[run.run_id].cancelling:
            with pytest.raises(sqlite3.IntegrityError):
                self.do(work)
        elif self.on_behalf(run, work, ends=True):
            self.model[run.run_id].n_events += 1
            self.move(run.run_id, "completed")

    @rule(run=handles, error=st.sampled_from([ERROR, CANCELLED]))
    def fail(self, run: Run | None, error: ErrorInfo) -> None:
        if run is not None and self.on_behalf(
            run, self.store.fail(run, error), ends=error is not CANCELLED
        ):
            self.model[run.run_id].n_events += 1
            self.move(run.run_id, "failed")

    @rule(run_id=IDS)
    def cancel(self, run_id: str) -> None:
        self.do(self.store.request_cancel(run_id))
        if run_id in self.model and self.model[run_id].state == "running":
            self.model[run_id].cancelling = True

    @rule(run_id=IDS, ends=st.booleans(), works=st.booleans())
    def publish_again(self, run_id: str, ends: bool, works: bool) -> None:
        run = self.store.get(run_id)
        if run is None or not run.state.terminal:
            return
        publication = self.do(self.publications.request(run, "folder"))
        assert self.do(self.publications.request(run, "ollama")).id == publication.id
        self.do(self.publications.started(publication))
        if ends:
            self.do(
                self.publications.finish(
                    publication, "/model.gguf" if works else None, None if works else ERROR
                )
            )
            self.do(self.publications.finish(publication, None, ERROR))
            (kept,) = [p for p in self.publications.of(run) if p.id == publication.id]
            assert kept.state is (RunState.COMPLETED if works else RunState.FAILED)

    @rule(run_id=IDS)
    def delete(self, run_id: str) -> None:
        self.do(self.store.delete(run_id))
        if run_id in self.model and self.model[run_id].ended is not None:
            del self.model[run_id]

    @rule()
    def crash(self) -> None:
        """The server goes away and another one opens what it left."""
        self.database.close()
        self._open()

    @rule(run_id=IDS, state=st.sampled_from(["pending", "running", "completed", "failed", "gone"]))
    def break_in(self, run_id: str, state: str) -> None:
        """Whoever writes past the store is stopped by the database itself."""
        one = self.model.get(run_id)
        if one is None or ((one.state, state) in LEGAL) or (one.state == state and not one.ended):
            return
        connection = sqlite3.connect(self.path)
        try:
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(
                    "UPDATE runs SET state = ?, output_model_ref = iif(? = 'completed', 'x', NULL),"
                    " error = '{}', finished_at = iif(? IN ('completed', 'failed'), 't', NULL)"
                    " WHERE run_id = ?",
                    (state, state, state, run_id),
                )
        finally:
            connection.close()

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        for run_id in ("r1", "r2"):
            run, one = self.store.get(run_id), self.model.get(run_id)
            if run is None or one is None:
                assert (run is None) == (one is None)
                continue
            assert (run.state, run.attempt) == (one.state, one.attempt)
            assert (run.cancel_requested_at is not None) is one.cancelling
            assert one.ended in (None, run)
            events = self.store.events(run, 0, 1000)
            assert len(events) == one.n_events
            assert [event.id for event in events] == sorted({event.id for event in events})
            if one.ended is not None:
                assert f'"state": "{one.state}"' in events[-1].data_json
                assert all(attempt.outcome for attempt in self.store.attempts(run)
                           if attempt.task == "run")  # fmt: skip
                assert run.not_before is None


def waiting(reason: Any) -> Waiting:
    now = datetime.now(UTC)
    later = now + timedelta(hours=1)
    return Waiting(reason=reason, since=now, tries=1, until=later, deadline=later, error=ERROR)


TestRuns = Runs.TestCase
TestRuns.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
