"""The schema in its versions, and a database on a disk that is full."""

import re
import shutil
import sqlite3
from pathlib import Path
from unittest import mock

import pytest

from ollama_trainer.errors import ServerError
from ollama_trainer.queue.database import (
    Ballast,
    Database,
    connect,
    load_queries,
    migrate,
    migrations,
    split_statements,
)
from ollama_trainer.queue.rows import Submission
from ollama_trainer.queue.store import RunStore
from ollama_trainer.records import RunState
from ollama_trainer.settings import Settings


def submission(run_id: str) -> Submission:
    return Submission(run_id=run_id, job_id="job", dataset_ref="/d.jsonl", fingerprint="f")


def database_of_version(path: Path, version: int) -> sqlite3.Connection:
    """A database as the program of that version left it, open."""
    connection = sqlite3.connect(path, isolation_level=None)
    for number, sql in migrations()[:version]:
        for statement in split_statements(sql):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
    return connection


def test_migrations_are_numbered_without_a_gap() -> None:
    numbers = [number for number, _ in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_migration_is_applied_once_and_the_disk_is_waited_for(tmp_path: Path) -> None:
    connection = connect(tmp_path / "x.db")
    assert migrate(connection) == migrate(connection) == len(migrations())
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    connection.close()


def schema(path: Path) -> set[tuple[str, str, str]]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    return {(kind, name, " ".join((sql or "").split())) for kind, name, sql in rows}


@pytest.mark.parametrize("version", range(1, len(migrations())))
def test_every_older_version_becomes_the_same_schema(tmp_path: Path, version: int) -> None:
    database_of_version(tmp_path / "old.db", version).close()
    for name in ("old.db", "blank.db"):
        Database(tmp_path / name).close()
    assert schema(tmp_path / "old.db") == schema(tmp_path / "blank.db")


async def test_runs_of_the_first_version_are_all_there(tmp_path: Path) -> None:
    """In every state, with a worker that may still live, and with the order of acceptance."""
    spec = submission("r2").spec(Settings()).model_dump_json(exclude={"checkpoint_every_s"})
    old = database_of_version(tmp_path / "trainer.db", 1)
    insert = (
        "INSERT INTO runs (seq, run_id, job_id, dataset_ref, fingerprint, spec, state, attempt,"
        " losses, worker_pid, worker_started, dataset_sha256, error, output_model_ref, created_at,"
        " started_at, finished_at) VALUES (?, ?, 'job', '/d', 'f', ?, ?, ?, ?, ?, ?, ?, ?, ?,"
        " 't0', ?, ?)"
    )
    error = '{"code": "dataset", "cause": "no good row"}'
    for row in (
        (3, "r1", None, "failed", 0, 0, None, None, None, error, None, None, "t9"),
        (4, "r2", spec, "completed", 1, 0, None, None, "aa", None, "tuned:r2", "t1", "t9"),
        (5, "r3", spec, "running", 2, 1, 77, 8.5, "aa", None, None, "t1", None),
        (7, "r4", spec, "pending", 0, 0, None, None, None, None, None, None, None),
    ):
        old.execute(insert, row)
    old.close()
    database = Database(tmp_path / "trainer.db")
    store = RunStore(database)
    states = {run.run_id: run.state.value for run in store.page(limit=10)}
    assert states == {"r4": "pending", "r3": "running", "r2": "completed", "r1": "failed"}
    running = store.next_running()
    assert running is not None
    assert (running.run_id, running.attempt, running.losses) == ("r3", 2, 1)
    left = store.open_attempt(running)
    assert left is not None
    assert (left.task, left.worker_pid, left.worker_started) == ("run", 77, 8.5)
    assert [run.run_id for run in store.uncopied()] == ["r4"]
    run, _ = await store.accept(submission("r5"), submission("r5").spec(Settings()))
    assert (run.seq, run.state) == (8, RunState.PENDING)
    database.close()


def test_no_query_goes_through_a_whole_table(tmp_path: Path) -> None:
    """However many runs are stored; the partial index holds unfinished publications alone."""
    connection = connect(tmp_path / "x.db")
    migrate(connection)
    for name, sql in load_queries().items():
        values = dict.fromkeys(re.findall(r":(\w+)", sql), 1)
        plan = [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        scans = [step for step in plan if step.startswith("SCAN")]
        assert all("publications_unfinished" in step for step in scans), (name, plan)
    connection.close()


def test_a_newer_programs_database_is_left_alone(tmp_path: Path) -> None:
    connection = connect(tmp_path / "x.db")
    connection.execute("PRAGMA user_version = 1000")
    connection.close()
    with pytest.raises(ServerError, match="version 1000"):
        Database(tmp_path / "x.db")


def test_ballast_is_taken_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = Ballast(tmp_path / "ballast", 1000)
    assert not ballast.drop()
    ballast.put()
    assert (tmp_path / "ballast").stat().st_size == 1000
    assert not ballast.drop(), "there is room"
    full = mock.Mock(return_value=mock.Mock(free=0))
    monkeypatch.setattr(shutil, "disk_usage", full)
    assert ballast.drop()
    assert not (tmp_path / "ballast").exists()
