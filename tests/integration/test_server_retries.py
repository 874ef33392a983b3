"""What may pass is waited for, under the same word `running`; what will not pass fails at once."""

import errno
import os
import signal
import sqlite3
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from ollama_trainer.executors.local import LocalExecutor, LocalWorker
from ollama_trainer.server import create_app
from ollama_trainer.server.routes import QUEUE
from ollama_trainer.settings import Settings

from .conftest import Api, StartApi, WriteRows, ended, until
from .stand_in_server import WORKER_COMMAND, executor


async def waits(api: Api, run: str) -> dict[str, object]:
    """The status once it says what the run waits for."""
    while "waiting" not in (status := await api.status(run)):
        assert status["status"] in ("pending", "running")
    return status


async def test_an_ollama_that_comes_back_gets_the_model(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    run, behind = await api.submit(rows("away", until=str(back))), await api.submit(rows())
    status = await waits(api, run)
    assert status["status"] == "running"
    assert isinstance(status["waiting"], dict)
    assert status["waiting"]["for"] == "ollama"
    assert status["waiting"]["error"] == "no Ollama answers. Start it."
    assert status["waiting"]["until"] <= status["waiting"]["deadline"]
    assert not {"error", "output_model_ref"} & status.keys()
    assert (await api.end(behind))["status"] == "completed", "it holds up nobody"
    back.touch()
    status = await api.end(run)
    assert status["status"] == "completed"
    assert "waiting" not in status


async def test_an_ollama_that_stays_away_fails_the_run_at_its_deadline(
    start_api: StartApi, rows: WriteRows, tmp_path: Path
) -> None:
    api = await start_api(retry_for_s=2.5)
    run = await api.submit(rows("away", until=str(tmp_path / "never")))
    status = await api.end(run)
    assert (status["status"], status["error_code"]) == ("failed", "ollama_unreachable")
    tries = len(api.starts())
    assert tries >= 2
    assert f"tried {tries} times in" in status["error"]


async def test_nothing_is_waited_for_when_nobody_wants_it(
    start_api: StartApi, rows: WriteRows, tmp_path: Path
) -> None:
    api = await start_api(retry_for_s=0)
    status = await api.end(await api.submit(rows("away", until=str(tmp_path / "never"))))
    assert (status["status"], status["error_code"]) == ("failed", "ollama_unreachable")
    assert len(api.starts()) == 1


@pytest.mark.slow
async def test_runs_that_wait_leave_the_others_their_turn(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    """With enough of them one is always due."""
    never = str(tmp_path / "never")
    away = [await api.submit(rows("away", until=never)) for _ in range(8)]
    for run in away:
        await waits(api, run)
    for _ in range(3):
        assert (await api.end(await api.submit(rows())))["status"] == "completed"


async def test_a_machine_that_lacks_something_is_waited_for(
    data_dir: Path, session: aiohttp.ClientSession, rows: WriteRows
) -> None:
    """No worker can be started, for want of descriptors or processes; later one can."""

    class Busy(LocalExecutor):
        tries = 0

        async def start(self, run_directory: Path) -> LocalWorker:
            Busy.tries += 1
            if Busy.tries < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return await super().start(run_directory)

    app = create_app(Settings(data_dir=data_dir), Busy(WORKER_COMMAND))
    async with TestServer(app, host="127.0.0.1") as server:
        api = Api(session, str(server.make_url("/")).rstrip("/"), data_dir)
        run = await api.submit(rows())
        status = await waits(api, run)
        assert isinstance(status["waiting"], dict)
        assert status["waiting"]["for"] == "machine"
        assert "Too many open files" in status["waiting"]["error"]
        assert (await api.end(run))["status"] == "completed"


@pytest.mark.slow
async def test_a_disk_that_cannot_be_read_for_a_moment_ends_no_supervisor(
    data_dir: Path,
    session: aiohttp.ClientSession,
    rows: WriteRows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = create_app(Settings(data_dir=data_dir), executor())
    async with TestServer(app, host="127.0.0.1") as server:
        api = Api(session, str(server.make_url("/")).rstrip("/"), data_dir)
        assert (await api.end(await api.submit(rows())))["status"] == "completed"
        database = app[QUEUE]._database
        connection, failures = database._reader, []

        class Failing:
            def execute(self, *_: object) -> None:
                failures.append(1)
                raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(database, "_reader", Failing())
        code, reply = await api.call("GET", "/health")
        assert (code, reply["error_code"]) == (503, "store_unavailable")
        # What its job has settled for it cannot be read, so it cannot be taken as it is meant.
        code, reply = await api.post({"jobId": "job", "datasetRef": rows(), "runId": "r2"})
        assert (code, reply["error_code"]) == (503, "store_unavailable")
        await until(lambda: len(failures) > 3)
        monkeypatch.setattr(database, "_reader", connection)
        assert (await api.end(await api.submit(rows())))["status"] == "completed"


async def test_out_of_memory_is_tried_once_more_with_half_the_batch(
    api: Api, rows: WriteRows
) -> None:
    status = await api.end(await api.submit(rows("memory"), "r1"))
    assert (status["status"], status["attempt"]) == ("completed", 2)
    assert '"halvings":1' in (api.data_dir / "runs/r1/lease.json").read_text()


async def test_a_full_disk_is_waited_for(api: Api, rows: WriteRows, tmp_path: Path) -> None:
    room = tmp_path / "room"
    run = await api.submit(rows("full", until=str(room)))
    status = await waits(api, run)
    assert isinstance(status["waiting"], dict)
    assert (status["status"], status["waiting"]["for"]) == ("running", "disk")
    room.touch()
    assert (await api.end(run))["status"] == "completed"


@pytest.mark.parametrize("ending", ["fail", "exit"])
async def test_an_error_of_the_user_is_never_tried_again(
    api: Api, rows: WriteRows, ending: str
) -> None:
    status = await api.end(await api.submit(rows(ending, code=3)))
    assert status["status"] == "failed"
    assert len(api.starts()) == {"fail": 1, "exit": 3}[ending]


async def test_a_worker_that_gives_no_sign_of_life_is_replaced(
    start_api: StartApi, rows: WriteRows, tmp_path: Path
) -> None:
    api = await start_api(lease_s=1.5)
    run = await api.submit(rows("mute", until=str(tmp_path / "never")))
    status = await api.end(run)
    assert (status["status"], status["error_code"]) == ("failed", "worker_lost")
    assert "no sign of life for 1.5 s" in status["error"]
    assert all(ended(pid) for pid in api.pids())
    assert len(api.starts()) == 3


async def test_a_stopped_worker_is_replaced_and_never_speaks_again(
    start_api: StartApi, rows: WriteRows, tmp_path: Path
) -> None:
    """SIGSTOP: it lives, and does nothing. Two of them never work at once."""
    go = tmp_path / "go"
    api = await start_api(lease_s=3)
    run = await api.submit(rows("hold", until=str(go)))
    await until(api.pids)
    os.kill(api.pids()[0], signal.SIGSTOP)
    await until(lambda: len(api.pids()) == 2)
    assert ended(api.pids()[0])
    go.touch()
    status = await api.end(run)
    assert (status["status"], status["attempt"]) == ("completed", 2)


async def test_a_worker_that_lives_and_tells_nothing_is_replaced(
    start_api: StartApi, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    api = await start_api(stall_s=2)
    run = await api.submit(rows("hold", until=str(go)))
    await until(lambda: len(api.pids()) == 2)
    go.touch()
    assert (await api.end(run))["status"] == "completed"
    _, detail = await api.call("GET", f"/runs/{run}")
    assert "told nothing for 2 s" in detail["attempts"][0]["error"]
