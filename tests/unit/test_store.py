"""The store of runs: nothing that is finished changes, nothing that is accepted is lost."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ollama_trainer.errors import DatasetError, InvalidRequest, ServerError
from ollama_trainer.queue.database import connect, migrate, migrations
from ollama_trainer.queue.rows import Run, RunIdTaken, Submission
from ollama_trainer.queue.store import RunStore, StaleAttempt
from ollama_trainer.records import ErrorInfo, Progress, RunResult, RunSpec, RunState, Stage
from ollama_trainer.settings import Settings

RESULT = RunResult(status="completed", output_model_ref="tuned-job:r1")
ERROR = ErrorInfo(code="dataset", cause="no good row", remedy="Label some.")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RunStore]:
    store = RunStore(tmp_path / "trainer.db")
    yield store
    store.close()


def submission(run_id: str = "r1", fingerprint: str = "f") -> Submission:
    return Submission(run_id=run_id, job_id="job", dataset_ref="/d.jsonl", fingerprint=fingerprint)


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
        first = store.next_unfinished()
        assert first is not None
        assert first.run_id == run.run_id
        claimed = await store.claim(first)
        assert store.next_unfinished() == claimed
        await store.complete(claimed, RESULT)
    assert store.next_unfinished() is None


async def test_a_lost_attempt_can_write_nothing(store: RunStore) -> None:
    lost = await store.claim(await accept(store))
    await store.worker_started(lost, 1, 2.5)
    current = await store.claim(lost)
    assert (current.attempt, current.worker_pid) == (2, None)
    progress = Progress(stage=Stage.TRAIN)
    for write in (
        store.claim(lost),
        store.worker_started(lost, 9, 9.0),
        store.progress(lost, progress),
        store.complete(lost, RESULT),
        store.fail(lost, ERROR),
    ):
        with pytest.raises(StaleAttempt):
            await write
    assert store.get("r1") == current
    await store.progress(current, progress)
    await store.complete(current, RESULT)


async def test_losses_are_counted_and_deliberate_stops_are_not(store: RunStore) -> None:
    run = await store.claim(await accept(store))
    await store.worker_started(run, 1, 2.5)
    lost = await store.worker_lost(run)
    assert (lost.losses, lost.worker_pid) == (1, None)
    await store.worker_stopped(run)
    again = store.get("r1")
    assert again is not None
    assert again.losses == 1


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_a_finished_run_never_changes(store: RunStore, tmp_path: Path, end: str) -> None:
    run = await store.claim(await accept(store))
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
    run = await store.claim(await accept(store))
    with pytest.raises(sqlite3.IntegrityError):
        await store.complete(run, RunResult(status="completed", output_model_ref=""))
    current = store.get("r1")
    assert current is not None
    assert current.state is RunState.RUNNING


async def test_runs_outlive_the_store(store: RunStore, tmp_path: Path) -> None:
    run = await accept(store)
    again = RunStore(tmp_path / "trainer.db")
    try:
        assert again.get("r1") == run
        assert again.uncopied() == [run]
    finally:
        again.close()


def test_migrations_are_numbered_without_a_gap() -> None:
    numbers = [number for number, _ in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_migration_is_applied_once_and_the_disk_is_waited_for(tmp_path: Path) -> None:
    connection = connect(tmp_path / "x.db")
    assert migrate(connection) == migrate(connection) == len(migrations())
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    connection.close()


def test_a_newer_programs_database_is_left_alone(tmp_path: Path) -> None:
    connection = connect(tmp_path / "x.db")
    connection.execute("PRAGMA user_version = 1000")
    connection.close()
    with pytest.raises(ServerError, match="version 1000"):
        RunStore(tmp_path / "x.db")
