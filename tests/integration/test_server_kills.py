"""Real processes, really killed: what was accepted ends."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from .conftest import Api, Connect, ServerProcess, WriteRows, ended, until
from .stand_in_server import COMMAND


async def started(api: Api, n: int = 1) -> int:
    """Waits for the n-th start of a worker; returns its pid."""
    await until(lambda: len(api.pids()) >= n)
    return api.pids()[n - 1]


def recorded(api: Api, run: str, attempt: int = 1) -> bool:
    """Whether the database knows the worker of this attempt."""
    database = sqlite3.connect(api.data_dir / "trainer.db")
    try:
        query = (
            "SELECT worker_pid FROM attempts JOIN runs ON seq = run_seq"
            " WHERE run_id = ? AND attempts.attempt = ?"
        )
        row = database.execute(query, (run, attempt)).fetchone()
        return row is not None and row[0] is not None
    finally:
        database.close()


def start_bystander() -> subprocess.Popen[bytes]:
    command = (sys.executable, "-c", "import time; time.sleep(1000)")
    return subprocess.Popen(command, start_new_session=True)


async def test_killed_right_after_the_reply_the_run_exists_and_ends(
    server_process: ServerProcess, connect: Connect, rows: WriteRows
) -> None:
    api = connect(server_process)
    runs = [await api.submit(rows()) for _ in range(5)]
    server_process.end(signal.SIGKILL)
    server_process.restart()
    api = connect(server_process)
    assert [(await api.end(run))["status"] for run in runs] == ["completed"] * 5


async def test_killed_while_training_the_worker_ends_too_and_the_run_goes_on(
    server_process: ServerProcess, connect: Connect, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    api = connect(server_process)
    run, behind = await api.submit(rows("hold", until=str(go))), await api.submit(rows())
    worker = await started(api)
    server_process.end(signal.SIGKILL)
    await until(lambda: ended(worker))
    server_process.restart()
    api = connect(server_process)
    await started(api, 2)
    status = await api.until(run, "running")
    assert status["attempt"] == 2
    go.touch()
    assert (await api.end(run))["status"] == "completed"
    assert (await api.end(behind))["status"] == "completed"
    assert api.starts() == [run, run, behind]


async def test_lost_three_times_the_run_is_given_up(
    server_process: ServerProcess, connect: Connect, rows: WriteRows, tmp_path: Path
) -> None:
    api = connect(server_process)
    run = await api.submit(rows("hold", until=str(tmp_path / "never")))
    behind = await api.submit(rows())
    for attempt in range(1, 4):
        await started(api, attempt)
        await until(partial(recorded, api, run, attempt))
        server_process.end(signal.SIGKILL)
        server_process.restart()
        api = connect(server_process)
    status = await api.end(run)
    assert (status["status"], status["error_code"]) == ("failed", "worker_lost")
    assert "3 times" in status["error"]
    assert (await api.end(behind))["status"] == "completed"
    assert api.starts() == [run, run, run, behind]


async def test_a_worker_that_survived_its_server_is_ended_first(
    server_process: ServerProcess, connect: Connect, rows: WriteRows, tmp_path: Path
) -> None:
    """The pipe that ends a worker with its server is taken from it by stopping it (SIGSTOP)."""
    go = tmp_path / "go"
    api = connect(server_process)
    run = await api.submit(rows("hold", until=str(go)))
    worker = await started(api)
    await until(lambda: recorded(api, run))
    os.kill(worker, signal.SIGSTOP)
    server_process.end(signal.SIGKILL)
    assert psutil.Process(worker).status() == psutil.STATUS_STOPPED
    server_process.restart()
    await until(lambda: ended(worker))
    go.touch()
    assert (await connect(server_process).end(run))["status"] == "completed"


async def test_a_process_that_took_over_a_pid_is_left_alone(
    server_process: ServerProcess, connect: Connect, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    run = await (api := connect(server_process)).submit(rows("hold", until=str(go)))
    await started(api)
    server_process.end(signal.SIGKILL)
    bystander = start_bystander()
    try:
        with sqlite3.connect(api.data_dir / "trainer.db") as database:
            database.execute(
                "UPDATE attempts SET worker_pid = ?, worker_started = 1", (bystander.pid,)
            )
        go.touch()
        server_process.restart()
        assert (await connect(server_process).end(run))["status"] == "completed"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_a_result_that_the_server_did_not_live_to_read_counts(
    server_process: ServerProcess, connect: Connect, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    api = connect(server_process)
    run = await api.submit(rows("hold", until=str(go)))
    await started(api)
    server_process.process.send_signal(signal.SIGSTOP)
    go.touch()
    result = api.data_dir / f"runs/{run}/result.json"
    await until(result.exists)
    server_process.end(signal.SIGKILL)
    server_process.restart()
    api = connect(server_process)
    assert (await api.end(run))["status"] == "completed"
    assert api.starts() == [run]


@pytest.mark.parametrize(
    ("number", "do", "stops"),
    # More often than a run may lose its worker; and once with a worker that will not end.
    [(signal.SIGTERM, "hold", 4), (signal.SIGINT, "hold", 1), (signal.SIGTERM, "ignore", 1)],
)
async def test_stopped_in_order_the_worker_ends_and_the_attempt_is_not_lost(
    server_process: ServerProcess,
    connect: Connect,
    rows: WriteRows,
    tmp_path: Path,
    number: signal.Signals,
    do: str,
    stops: int,
) -> None:
    go = tmp_path / "go"
    api = connect(server_process)
    run = await api.submit(rows(do, until=str(go)))
    for stop in range(1, stops + 1):
        worker = await started(api, stop)
        await until(partial(recorded, api, run, stop))
        assert server_process.end(number) == 0
        assert ended(worker)
        server_process.restart()
        api = connect(server_process)
    await started(api, stops + 1)
    go.touch()
    status = await api.end(run)
    assert (status["status"], status["attempt"]) == ("completed", stops + 1)


async def test_a_worker_killed_alone_is_followed_by_another(
    server_process: ServerProcess, connect: Connect, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    api = connect(server_process)
    run, behind = await api.submit(rows("hold", until=str(go))), await api.submit(rows())
    os.kill(await started(api), signal.SIGKILL)
    await started(api, 2)
    go.touch()
    status = await api.end(run)
    assert (status["status"], status["attempt"]) == ("completed", 2)
    assert (await api.end(behind))["status"] == "completed"
    assert api.starts() == [run, run, behind]


async def test_who_saves_something_each_time_is_never_given_up(
    server_process: ServerProcess, connect: Connect, rows: WriteRows
) -> None:
    """A training that is killed every hour still ends, if it gets further in each."""
    api = connect(server_process)
    status = await api.end(await api.submit(rows("save", times=4)))
    assert (status["status"], status["attempt"]) == ("completed", 5)


async def test_a_second_server_refuses_and_names_the_first(
    server_process: ServerProcess, connect: Connect, data_dir: Path
) -> None:
    connect(server_process)
    command = (*COMMAND, "serve", "--port", "0", "--data-dir", str(data_dir))
    second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"process {server_process.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr


async def test_a_data_directory_copied_while_it_works_recovers(
    server_process: ServerProcess, connect: Connect, rows: WriteRows, tmp_path: Path
) -> None:
    """As after a power cut: the files as they are at some instant are all that is left."""
    api = connect(server_process)
    runs = [await api.submit(rows()) for _ in range(3)]
    await started(api)
    copy = tmp_path / "copy"
    with suppress(shutil.Error):  # a file that took its final name meanwhile
        shutil.copytree(api.data_dir, copy)
    server_process.end(signal.SIGKILL)
    (copy / "server.lock").unlink()
    restored = ServerProcess(copy)
    try:
        api = connect(restored)
        for run in runs:
            assert (await api.end(run))["status"] == "completed"
    finally:
        restored.end(signal.SIGTERM)
