"""What the tests of server and command line share: data sets for the stand-in, servers to call."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp.test_utils import TestServer
from yarl import URL

from ollama_trainer.queue.lock import read_holder
from ollama_trainer.server import create_app
from ollama_trainer.settings import Settings

from .stand_in_server import COMMAND, executor

#: Writes a data set whose first row tells the stand-in worker what to do; returns its path.
WriteRows = Callable[..., str]
#: Starts the application in this process, with these settings.
StartApi = Callable[..., Awaitable["Api"]]
#: Waits until a server process listens.
Connect = Callable[["ServerProcess"], "Api"]


async def until(condition: Callable[[], object]) -> None:
    """Waits until something holds; the test's own time limit is the only one."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.02)


def ended(pid: int) -> bool:
    """Whether a process has ended, also one that nobody has waited for."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("OLLAMA"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OLLAMA_TRAINER_BASE", "smollm2")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def rows(tmp_path: Path) -> WriteRows:
    def write(do: str = "complete", **order: object) -> str:
        path = tmp_path / f"{do}-{uuid.uuid4()}.jsonl"
        path.write_text(json.dumps({"do": do, **order}) + "\n", encoding="utf-8")
        return str(path)

    return write


class Api:
    """Calls a server as the app does."""

    def __init__(self, session: aiohttp.ClientSession, url: str, data_dir: Path) -> None:
        self._session = session
        self.url = url
        self.data_dir = data_dir

    async def call(self, method: str, path: str, **request: Any) -> tuple[int, dict[str, Any]]:
        """Status code and JSON; the path travels as it is written."""
        url = URL(self.url + path, encoded=True)
        async with self._session.request(method, url, **request) as reply:
            return reply.status, await reply.json()

    async def post(self, body: object) -> tuple[int, dict[str, Any]]:
        return await self.call("POST", "/train", json=body)

    async def submit(self, dataset_ref: str, run_id: str | None = None, **extra: object) -> str:
        """Posts as the app does: whatever is answered, it goes on polling."""
        run_id = run_id or str(uuid.uuid4())
        await self.post({"jobId": "job", "datasetRef": dataset_ref, "runId": run_id, **extra})
        return run_id

    async def status(self, run_id: str) -> dict[str, Any]:
        code, status = await self.call("GET", f"/status/{run_id}")
        return {"code": code, **status}

    async def until(self, run_id: str, *words: str) -> dict[str, Any]:
        """Polls until the status is one of these words."""
        while True:
            status = await self.status(run_id)
            if status.get("status") in words:
                return status
            await asyncio.sleep(0.02)

    async def end(self, run_id: str) -> dict[str, Any]:
        """Polls as the app does, only while it reads pending or running; returns the last one."""
        while True:
            status = await self.status(run_id)
            if status.get("status") not in ("pending", "running"):
                return status
            await asyncio.sleep(0.02)

    def starts(self) -> list[str]:
        """The run ids that a worker was started for, in order, repeated for each attempt."""
        return [line.split()[0] for line in self._starts()]

    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in self._starts()]

    def _starts(self) -> list[str]:
        path = self.data_dir / "cache/starts"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def start_api(data_dir: Path, session: aiohttp.ClientSession) -> AsyncIterator[StartApi]:
    servers: list[TestServer] = []

    async def start(**settings: Any) -> Api:
        app = create_app(Settings(**{"data_dir": data_dir, **settings}), executor())
        servers.append(TestServer(app, host="127.0.0.1"))
        await servers[-1].start_server()
        return Api(session, str(servers[-1].make_url("/")).rstrip("/"), data_dir)

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def api(start_api: StartApi) -> Api:
    return await start_api()


class ServerProcess:
    """`ollama-trainer serve` as a process, with the stand-in for the worker."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with (self.data_dir / "server.log").open("ab") as log:
            arguments = ("serve", "--port", "0", "--data-dir", str(self.data_dir))
            return subprocess.Popen((*COMMAND, *arguments), stdout=log, stderr=log)

    @property
    def url(self) -> str:
        """Waits until the server listens."""
        while (holder := read_holder(self.data_dir)).get("pid") != self.process.pid or (
            "url" not in holder
        ):
            assert self.process.poll() is None, (self.data_dir / "server.log").read_text()
            time.sleep(0.02)
        return str(holder["url"])

    def end(self, number: int = signal.SIGKILL) -> int:
        """Signals the server; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait()

    def restart(self) -> None:
        self.process = self._start()


@pytest.fixture
def server_process(data_dir: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(data_dir)
    yield server
    if server.process.poll() is None:
        server.end(signal.SIGTERM)


@pytest.fixture
def connect(data_dir: Path, session: aiohttp.ClientSession) -> Connect:
    return lambda server: Api(session, server.url, data_dir)
