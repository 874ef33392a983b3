"""The store of runs: nothing that is finished changes, nothing that is accepted is lost."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from ollama_trainer.errors import DatasetError, InvalidRequest
from ollama_trainer.queue.database import Database
from ollama_trainer.queue.rows import Run, RunIdTaken, Submission
from ollama_trainer.queue.store import RunStore, StaleAttempt
from ollama_trainer.records import (
    ErrorInfo,
    Event,
    Progress,
    RunResult,
    RunSpec,
    RunState,
    Stage,
    Waiting,
)
from ollama_trainer.settings import Settings

RESULT = RunResult(status="completed", output_model_ref="tuned-job:r1")
ERROR = ErrorInfo(code="dataset", cause="no good row", remedy="Label some.")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RunStore]:
    database = Database(tmp_path / "trainer.db")
    yield RunStore(database)
    database.close()


def submission(run_id: str = "r1", fingerprint: str = "f") -> Submission:
    return Submission(run_id=run_id, job_id="job", dataset_ref="/d.jsonl", fingerprint=fingerprint)


def waiting(reason: Literal["ollama", "worker"] = "ollama", *, minutes: float = 0) -> Waiting:
    now = datetime.now(UTC)
    return Waiting(
        reason=reason,
        since=now,
        tries=1,
        until=now + timedelta(minutes=minutes),
        deadline=now + timedelta(hours=1),
        error=ERROR,
    )


def found(store: RunStore) -> Run:
    run = store.get("r1")
    assert run is not None
    return run


async def accept(store: RunStore, run_id: str = "r1", fingerprint: str = "f") -> Run:
    wanted = submission(run_id, fingerprint)
    run, _ = await store.accept(wanted, wanted.spec(Settings()))
    return run


async def test_an_accepted_run_is_stored_whole(store: RunStore) -> None:
    run = await accept(store)
    assert store.get("r1") == run
    assert (run.state, run.attempt, run.seq) == (RunState.PENDING, 0, 1)
    assert run.spec is not None
    assert run.spec.model_name == "tuned-job:r1"
    assert run.created_at.endswith("+00:00")


def test_a_runs_model_is_called_as_the_settings_say() -> None:
    settings = Settings(name_prefix="x-", name_template="me/{job}.{prefix}1:v-{run}")
    assert submission("R1").spec(settings).model_name == "me/job.x-1:v-r1"


def test_a_run_has_the_columns_of_its_table_in_their_order(store: RunStore, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "trainer.db") as other:
        columns = [name for _, name, *_ in other.execute("PRAGMA table_info (runs)")]
    assert columns == [name.removesuffix("_json") for name in Run._fields]


def test_a_run_keeps_the_settings_that_it_was_accepted_with() -> None:
    """What a model is judged by must not change while a run waits."""
    settings = Settings(
        min_agreement=0.5, max_unrelated_over_base=0.3, rounding="stochastic", replay=0.25
    )
    spec = RunSpec.model_validate_json(submission().spec(settings).model_dump_json())
    assert spec.fidelity == settings.fidelity
    assert (spec.fidelity.min_agreement, spec.fidelity.max_unrelated_over_base) == (0.5, 0.3)
    assert (spec.rounding, spec.training.replay) == ("stochastic", 0.25)


async def test_the_same_request_again_is_the_same_run(store: RunStore) -> None:
    first = await accept(store)
    wanted = submission()
    assert await store.accept(wanted, wanted.spec(Settings())) == (first, False)


async def test_another_request_leaves_the_first_untouched(store: RunStore) -> None:
    first = await accept(store)
    with pytest.raises(RunIdTaken):
        await accept(store, fingerprint="other")
    with pytest.raises(RunIdTaken):
        await accept(store, run_id="R1")
    assert store.get("r1") == first
    assert store.get("R1") is None


async def test_a_hundred_at_once_make_one_run(store: RunStore) -> None:
    wanted = submission()
    replies = await asyncio.gather(
        *(store.accept(wanted, wanted.spec(Settings())) for _ in range(100))
    )
    assert sum(new for _, new in replies) == 1
    assert {run.seq for run, _ in replies} == {1}


async def test_a_refused_request_is_a_failed_run(store: RunStore) -> None:
    await store.reject(submission(), InvalidRequest("jobId is missing", "Send one."))
    run = store.get("r1")
    assert run is not None
    assert (run.state, str(run.error)) == (RunState.FAILED, "jobId is missing. Send one.")
    await accept(store, "r2")
    await store.reject(submission("r2"), InvalidRequest("late"))
    kept = store.get("r2")
    assert kept is not None
    assert kept.state is RunState.PENDING


async def test_runs_are_taken_in_the_order_of_acceptance(store: RunStore) -> None:
    runs = [await accept(store, f"r{n}") for n in range(12)]
    assert [store.queue_position(run) for run in runs] == list(range(1, 13))
    for run in runs:
        first = store.next_pending()
        assert first is not None
        assert first.run_id == run.run_id
        claimed, _ = await store.claim(first)
        assert store.next_running() == claimed
        await store.complete(claimed, RESULT)
        assert store.next_running() is None
    assert store.next_pending() is None


async def test_a_lost_attempt_can_write_nothing(store: RunStore) -> None:
    lost, _ = await store.claim(await accept(store))
    current, token = await store.claim(lost)
    assert (current.attempt, token) == (2, 2)
    kept = store.get("r1"), store.attempts(current), store.events(current, 0, 100)
    for write in (
        store.claim(lost),
        store.record(lost, [Event.now("note", "late")], 5),
        store.wait(lost, waiting(), halvings=0),
        store.complete(lost, RESULT),
        store.fail(lost, ERROR),
    ):
        with pytest.raises(StaleAttempt):
            await write
    assert (store.get("r1"), store.attempts(current), store.events(current, 0, 100)) == kept
    await store.complete(current, RESULT)


async def test_losses_are_counted_until_something_is_saved(store: RunStore) -> None:
    run, _ = await store.claim(await accept(store))
    for losses in (1, 2):
        await store.wait(run, waiting("worker"), halvings=0)
        run = found(store)
        assert run.losses == losses
        run, _ = await store.claim(run)
    await store.record(run, [Event.now("progress", progress=Progress(stage=Stage.TRAIN))], 10)
    assert found(store).losses == 2
    await store.record(run, [Event.now("saved", "checkpoint at step 3")], 20)
    run = found(store)
    assert (run.losses, run.waiting, run.events_offset) == (0, None, 20)


async def test_a_run_waits_and_is_due_again(store: RunStore) -> None:
    run, _ = await store.claim(await accept(store))
    behind = await accept(store, "r2")
    await store.wait(run, waiting(minutes=1), halvings=1)
    run = found(store)
    assert (run.state, run.halvings, run.losses) == (RunState.RUNNING, 1, 0)
    assert store.next_running() is None
    assert store.next_pending() == behind
    assert 50 < (store.seconds_to_next() or 0) <= 60
    assert [a.outcome for a in store.attempts(run)] == ["failed"]
    await store.request_cancel("r1")
    assert store.next_running() is None
    (due,) = store.cancelled_waiting()
    assert due.cancel_requested_at is not None
    with pytest.raises(StaleAttempt):
        await store.claim(due)


async def test_the_last_event_is_the_end(store: RunStore, tmp_path: Path) -> None:
    run, _ = await store.claim(await accept(store))
    await store.record(run, [Event.now("stage", "train"), Event.now("note", "x", data={"a": 1})], 9)
    await store.complete(run, RESULT)
    events = store.events(run, 0, 100)
    assert [event.kind for event in events] == ["state", "state", "stage", "note", "state"]
    assert [event.id for event in events] == sorted(event.id for event in events)
    assert '"completed"' in events[-1].data_json
    assert store.events(run, events[2].id, 1) == [events[3]]
    with sqlite3.connect(tmp_path / "trainer.db") as other:
        for change in (
            "UPDATE events SET message = 'x'",
            "DELETE FROM events",
            "INSERT INTO events (run_seq, attempt, time, kind) VALUES (1, 1, '', 'note')",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                other.execute(change)


async def test_a_run_is_deleted_whole_and_only_when_it_has_ended(
    store: RunStore, tmp_path: Path
) -> None:
    run, _ = await store.claim(await accept(store))
    await store.delete("r1")
    assert store.get("r1") == run
    with (
        sqlite3.connect(tmp_path / "trainer.db") as other,
        pytest.raises(sqlite3.IntegrityError, match="unfinished"),
    ):
        other.execute("DELETE FROM runs")
    await store.fail(run, ERROR)
    await store.delete("r1")
    assert store.get("r1") is None
    with sqlite3.connect(tmp_path / "trainer.db") as other:
        for table in ("events", "attempts", "publications"):
            assert other.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
    assert (await accept(store)).seq == 2


async def test_pages_of_runs_by_job_and_state(store: RunStore) -> None:
    runs = [await accept(store, f"r{n}") for n in range(5)]
    ended, _ = await store.claim(runs[0])
    await store.fail(ended, ERROR)

    def ids(**query: Any) -> list[str]:
        return [run.run_id for run in store.page(**{"limit": 10, **query})]

    assert ids() == ["r4", "r3", "r2", "r1", "r0"]
    assert ids(limit=2, before=runs[4].seq) == ["r3", "r2"]
    assert ids(state=RunState.FAILED) == ["r0"]
    assert ids(job_id="job", state=RunState.PENDING, limit=3) == ["r4", "r3", "r2"]
    assert ids(job_id="job", limit=2) == ["r4", "r3"]
    assert ids(job_id="other") == []


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_a_finished_run_never_changes(store: RunStore, tmp_path: Path, end: str) -> None:
    run, _ = await store.claim(await accept(store))
    await (store.complete(run, RESULT) if end == "completed" else store.fail(run, ERROR))
    finished = store.get("r1")
    for write in (store.complete(run, RESULT), store.fail(run, ERROR), store.claim(run)):
        with pytest.raises(StaleAttempt):
            await write
    await store.fail_pending("r1", DatasetError("late"))
    with (
        sqlite3.connect(tmp_path / "trainer.db") as other,
        pytest.raises(sqlite3.IntegrityError, match="a finished run never changes"),
    ):
        other.execute("UPDATE runs SET job_id = 'x'")
    assert store.get("r1") == finished


@pytest.mark.parametrize(
    "change",
    [
        "state = 'completed', output_model_ref = 'x', finished_at = 'now'",
        "state = 'failed', finished_at = 'now'",
        "state = 'cancelled'",
        "output_model_ref = 'x'",
        "attempt = -1",
    ],
)
async def test_the_database_refuses_what_no_run_may_be(
    store: RunStore, tmp_path: Path, change: str
) -> None:
    await accept(store)
    with sqlite3.connect(tmp_path / "trainer.db") as other, pytest.raises(sqlite3.IntegrityError):
        other.execute(f"UPDATE runs SET {change}")  # noqa: S608


async def test_a_model_ref_that_is_empty_is_no_completion(store: RunStore) -> None:
    run, _ = await store.claim(await accept(store))
    with pytest.raises(sqlite3.IntegrityError):
        await store.complete(run, RunResult(status="completed", output_model_ref=""))
    current = store.get("r1")
    assert current is not None
    assert current.state is RunState.RUNNING


async def test_runs_outlive_the_store(store: RunStore, tmp_path: Path) -> None:
    run = await accept(store)
    again = Database(tmp_path / "trainer.db")
    try:
        assert RunStore(again).get("r1") == run
        assert RunStore(again).uncopied() == [run]
    finally:
        again.close()
