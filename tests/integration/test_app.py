"""The app behind the contract, whatever happens: its polling ends, with a word that it knows.

It ignores the reply of POST /train; it polls only while its own row says pending or running; it
takes any status from a 2xx reply as it is, and nothing from any other; it takes the model's name
once, at completion.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from .conftest import Api, Connect, ServerProcess, StartApi, WriteRows, until

WORDS = {"pending", "running", "completed", "failed"}


class TheApp:
    """Does what the app does, and nothing more."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._url = base_url
        #: Its row: status and model.
        self.status, self.model = "pending", None

    async def train(self, dataset_ref: str, run_id: str, job_id: str = "job", **more: object
    ) -> None:  # fmt: skip
        body = {"jobId": job_id, "datasetRef": dataset_ref, "runId": run_id, **more}
        url = URL(f"{self._url}/train", encoded=True)
        try:
            async with self._session.post(url, json=body) as reply:
                await reply.read()
        except aiohttp.ClientError:
            return

    async def poll(self, run_id: str) -> None:
        """Once."""
        url = URL(f"{self._url}/status/{quote(run_id, safe='')}", encoded=True)
        timeout = aiohttp.ClientTimeout(10)
        try:
            async with self._session.get(url, timeout=timeout) as reply:
                if not reply.ok:
                    return
                said: dict[str, Any] = await reply.json()
        except (aiohttp.ClientError, TimeoutError):
            return
        assert said["status"] in WORDS, "any other word ends the polling without an end"
        if said["status"] != "completed":
            assert "output_model_ref" not in said
            assert "outputModelRef" not in said
        else:
            assert said["output_model_ref"] == said["outputModelRef"]
            assert said["output_model_ref"], "an empty name would be registered as one"
            self.model = said.get("output_model_ref") or said.get("outputModelRef")
        self.status = said["status"]

    async def poll_until_its_end(self, run_id: str) -> str:
        while self.status in ("pending", "running"):
            await self.poll(run_id)
            await asyncio.sleep(0.02)
        return self.status


@pytest.fixture
def app(session: aiohttp.ClientSession, api: Api) -> TheApp:
    return TheApp(session, api.url)


PATHS: dict[str, tuple[Callable[[Path, WriteRows], str], str]] = {
    "trained": (lambda _, rows: rows(), "completed"),
    "nothing to train on": (lambda _, rows: rows("fail"), "failed"),
    "worker that dies each time": (lambda _, rows: rows("die"), "failed"),
    "worker that dies and has saved": (lambda _, rows: rows("save", times=2), "completed"),
    "out of memory at first": (lambda _, rows: rows("memory"), "completed"),
    "no file": (lambda folder, _: str(folder / "never-written.jsonl"), "failed"),
    "a folder": (lambda folder, _: str(folder), "failed"),
    "a relative path": (lambda _, __: "data/feedback.jsonl", "failed"),
    "no path": (lambda _, __: "", "failed"),
}


@pytest.mark.parametrize("path", PATHS)
async def test_every_way_of_a_run_ends(
    app: TheApp, rows: WriteRows, tmp_path: Path, path: str
) -> None:
    dataset, word = PATHS[path]
    run = str(uuid.uuid4())
    await app.train(dataset(tmp_path, rows), run)
    assert await app.poll_until_its_end(run) == word
    assert (app.model is not None) is (word == "completed")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"jobId": ""}, "jobId"),
        ({"jobId": None}, "jobId"),
        ({"datasetRef": None}, "datasetRef"),
        ({"steps": "many"}, "steps"),
    ],
)
async def test_a_refused_request_ends_at_the_next_poll(
    app: TheApp, api: Api, rows: WriteRows, fault: dict[str, object], text: str
) -> None:
    run = str(uuid.uuid4())
    body = {"jobId": "job", "datasetRef": rows(), "runId": run, **fault}
    await api.post(body)
    await app.poll(run)
    assert app.status == "failed"
    assert text in (await api.status(run))["error"]


async def test_no_json_at_all_ends_only_where_it_was_asked_for(
    start_api: StartApi, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Such a body names no run that could be stored; `unknown_run` is for those who poll it."""
    strict = await start_api(data_dir=tmp_path / "strict")
    told = await start_api(data_dir=tmp_path / "told", unknown_run="failed")
    for api, word in ((strict, "pending"), (told, "failed")):
        app = TheApp(session, api.url)
        async with session.post(f"{api.url}/train", data=b"{") as reply:
            assert reply.status == 400
        await app.poll("r1")
        assert app.status == word


@pytest.mark.parametrize("run_id", ["a b", "../../etc/passwd", "é", "a/b", "%2e%2e"])
async def test_ids_that_are_none_are_refused_and_can_be_said_to_have_failed(
    start_api: StartApi, session: aiohttp.ClientSession, rows: WriteRows, run_id: str
) -> None:
    api = await start_api(unknown_run="failed")
    app = TheApp(session, api.url)
    await app.train(rows(), run_id)
    await app.poll(run_id)
    assert app.status == "failed"
    assert list((api.data_dir / "runs").iterdir()) == []


async def test_posting_twice_is_one_run_and_another_body_does_not_disturb_it(
    app: TheApp, api: Api, rows: WriteRows
) -> None:
    dataset = rows()
    await app.train(dataset, "r1")
    await app.train(dataset, "r1")
    await app.train(rows("fail"), "r1")
    assert await app.poll_until_its_end("r1") == "completed"
    assert api.starts() == ["r1"]


async def test_a_base_url_that_ends_with_a_slash(
    session: aiohttp.ClientSession, api: Api, rows: WriteRows
) -> None:
    app = TheApp(session, f"{api.url}/")
    await app.train(rows(), "r1")
    assert await app.poll_until_its_end("r1") == "completed"


async def test_a_hundred_runs_at_once_all_end(
    session: aiohttp.ClientSession, start_api: StartApi, api: Api, rows: WriteRows
) -> None:
    """Half of them on files that are not there, which hold up nobody."""
    dataset = rows("fail")
    apps = {f"r{n}": TheApp(session, api.url) for n in range(100)}
    await asyncio.gather(
        *(app.train(dataset if n % 10 == 0 else "/none", run)
          for n, (run, app) in enumerate(apps.items()))
    )  # fmt: skip
    assert api.data_dir.exists()
    _, listed = await api.call("GET", "/runs?limit=200")
    assert len(listed["runs"]) == 100
    words = await asyncio.gather(*(app.poll_until_its_end(run) for run, app in apps.items()))
    assert set(words) == {"failed"}
    assert len(api.starts()) == 10


Disaster = Callable[[Api, ServerProcess, str], Awaitable[None]]


async def kill_the_server(_: Api, server: ServerProcess, __: str) -> None:
    server.end(signal.SIGKILL)
    server.restart()


async def stop_the_server(_: Api, server: ServerProcess, __: str) -> None:
    server.end(signal.SIGTERM)
    server.restart()


async def kill_the_worker(api: Api, _: ServerProcess, __: str) -> None:
    os.kill(api.pids()[-1], signal.SIGKILL)


async def cancel(api: Api, _: ServerProcess, run: str) -> None:
    await api.call("POST", f"/runs/{run}/cancel")


@pytest.mark.parametrize(
    ("disaster", "word"),
    [
        (kill_the_server, "completed"),
        (stop_the_server, "completed"),
        (kill_the_worker, "completed"),
        (cancel, "failed"),
    ],
)
async def test_disasters_end_too(
    server_process: ServerProcess,
    connect: Connect,
    session: aiohttp.ClientSession,
    rows: WriteRows,
    tmp_path: Path,
    disaster: Disaster,
    word: str,
) -> None:
    go = tmp_path / "go"
    api = connect(server_process)
    app, run = TheApp(session, api.url), str(uuid.uuid4())
    await app.train(rows("hold", until=str(go)), run)
    await until(api.pids)
    await disaster(api, server_process, run)
    go.touch()
    # The app knows one address; the test's server takes a fresh port at each start.
    app._url = connect(server_process).url
    assert await app.poll_until_its_end(run) == word


async def test_an_ollama_that_is_away_is_never_called_a_failure_before_its_deadline(
    session: aiohttp.ClientSession, start_api: StartApi, rows: WriteRows, tmp_path: Path
) -> None:
    api = await start_api(retry_for_s=4)
    back = tmp_path / "back"
    app, late = TheApp(session, api.url), TheApp(session, api.url)
    await app.train(rows("away", until=str(back)), "r1")
    await late.train(rows("away", until=str(tmp_path / "never")), "r2")
    while "waiting" not in json.dumps(await api.status("r2")):
        await app.poll("r1")
        assert app.status in ("pending", "running")
    back.touch()
    assert await app.poll_until_its_end("r1") == "completed"
    assert await late.poll_until_its_end("r2") == "failed"
