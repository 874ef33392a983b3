"""A run that is cancelled ends within its bound, at every stage, and leaves nothing published."""

import signal
import sqlite3
import time
from pathlib import Path

import psutil
import pytest

from .conftest import Api, Connect, ServerProcess, StartApi, WriteRows, ended, until


async def cancel(api: Api, run: str) -> tuple[int, str]:
    code, reply = await api.call("POST", f"/runs/{run}/cancel")
    return code, str(reply.get("status", reply.get("error_code")))


async def test_a_waiting_run_is_cancelled_at_once(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    first = await api.submit(rows("hold", until=str(go)))
    second, third = await api.submit(rows()), await api.submit(rows())
    await api.until(first, "running")
    assert await cancel(api, second) == (200, "failed")
    assert (await api.status(third))["queue_position"] == 1
    status = await api.status(second)
    assert (status["error_code"], status["status"]) == ("cancelled", "failed")
    go.touch()
    assert [(await api.end(run))["status"] for run in (first, third)] == ["completed"] * 2
    assert second not in api.starts()


@pytest.mark.parametrize("do", ["hold", "ignore"])
async def test_a_worker_is_ended_and_the_queue_goes_on(
    api: Api, rows: WriteRows, tmp_path: Path, do: str
) -> None:
    run = await api.submit(rows(do, until=str(tmp_path / "never")))
    behind = await api.submit(rows())
    await until(api.pids)
    await api.until(run, "running")
    asked = time.monotonic()
    assert (await cancel(api, run))[0] == 202
    status = await api.end(run)
    assert time.monotonic() - asked < 10
    assert (status["status"], status["error_code"]) == ("failed", "cancelled")
    assert ended(api.pids()[0])
    assert (await api.end(behind))["status"] == "completed"
    _, detail = await api.call("GET", f"/runs/{run}")
    assert [attempt["outcome"] for attempt in detail["attempts"]] == ["cancelled"]
    _, events = await api.call("GET", f"/runs/{run}/events")
    assert events["events"][-1]["data"]["error_code"] == "cancelled"


async def test_cancelling_twice_is_no_error_and_a_finished_run_stays(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    run = await api.submit(rows("hold", until=str(tmp_path / "never")))
    await api.until(run, "running")
    for _ in range(3):
        assert (await cancel(api, run))[0] in (200, 202)
    await api.end(run)
    assert await cancel(api, run) == (200, "failed")
    done = await api.submit(rows())
    await api.end(done)
    assert await cancel(api, done) == (409, "conflict")
    assert (await api.status(done))["status"] == "completed"


async def test_what_was_published_is_taken_back(api: Api, rows: WriteRows, tmp_path: Path) -> None:
    run = await api.submit(rows("named", until=str(tmp_path / "never")))
    marker = api.data_dir / f"runs/{run}/publishing.json"
    await until(marker.exists)
    await cancel(api, run)
    assert (await api.end(run))["error_code"] == "cancelled"
    assert not marker.exists()
    _, detail = await api.call("GET", f"/runs/{run}")
    tasks = [(attempt["task"], attempt["outcome"]) for attempt in detail["attempts"]]
    assert tasks == [("run", "cancelled"), ("withdraw", "completed")]


async def test_what_could_not_be_taken_back_is_said(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    run = await api.submit(rows("named", until=str(tmp_path / "never"), withdraw="fails"))
    await until((api.data_dir / f"runs/{run}/publishing.json").exists)
    await cancel(api, run)
    status = await api.end(run)
    assert status["error_code"] == "cancelled"
    assert "could not be taken back" in status["error"]
    assert f"ollama rm tuned-job:{run}" in status["error"]


async def test_a_run_that_waits_for_ollama_is_cancelled_at_once(
    start_api: StartApi, rows: WriteRows, tmp_path: Path
) -> None:
    api = await start_api()
    run = await api.submit(rows("away", until=str(tmp_path / "never")))
    while "waiting" not in await api.status(run):
        pass
    await cancel(api, run)
    assert (await api.end(run))["error_code"] == "cancelled"


async def test_a_run_that_waits_is_cancelled_beside_one_that_trains(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    """Hours of somebody else's training are no reason to keep a cancelled run."""
    go = tmp_path / "go"
    waiting = await api.submit(rows("away", until=str(tmp_path / "never")))
    training = await api.submit(rows("hold", until=str(go)))
    await api.until(training, "running")
    while "waiting" not in await api.status(waiting):
        pass
    # What an attempt at publishing may have left is taken back beside the training, too.
    marker = api.data_dir / f"runs/{waiting}/publishing.json"
    marker.write_text('{"step": "trial"}')
    assert (await cancel(api, waiting))[0] == 202
    assert (await api.end(waiting))["error_code"] == "cancelled"
    assert not marker.exists()
    assert (await api.status(training))["status"] == "running"
    go.touch()
    assert (await api.end(training))["status"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_cancellation_of_a_waiting_run_outlives_the_server(
    server_process: ServerProcess,
    connect: Connect,
    rows: WriteRows,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    api = connect(server_process)
    run = await api.submit(rows("away", until=str(tmp_path / "never")))
    while "waiting" not in await api.status(run):
        pass
    server_process.end(number)
    with sqlite3.connect(api.data_dir / "trainer.db") as database:
        database.execute("UPDATE runs SET cancel_requested_at = 'now'")
    server_process.restart()
    assert (await connect(server_process).end(run))["error_code"] == "cancelled"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_cancellation_outlives_the_server(
    server_process: ServerProcess,
    connect: Connect,
    rows: WriteRows,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """Killed after the reply and before the end: the next server finishes it."""
    api = connect(server_process)
    run = await api.submit(rows("ignore", until=str(tmp_path / "never")))
    await until(api.pids)
    assert (await cancel(api, run))[0] == 202
    server_process.end(number)
    server_process.restart()
    api = connect(server_process)
    assert (await api.end(run))["error_code"] == "cancelled"
    assert not psutil.pid_exists(api.pids()[0]) or ended(api.pids()[0])
    assert api.starts() == [run]
