"""Runs beyond the contract: list, look into, follow, publish again, delete."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from .conftest import Api, Connect, ServerProcess, StartApi, WriteRows, until


async def ids(api: Api, query: str = "") -> list[str]:
    code, reply = await api.call("GET", f"/runs{query}")
    assert code == 200
    return [run["run_id"] for run in reply["runs"]]


async def test_runs_are_listed_by_job_and_state_page_by_page(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    for number in range(3):
        await api.end(await api.submit(rows(), f"a{number}", jobId="first"))
    await api.end(await api.submit(rows("fail"), "b0", jobId="second"))
    await api.submit(rows("hold", until=str(go)), "b1", jobId="second")
    await api.until("b1", "running")
    assert await ids(api) == ["b1", "b0", "a2", "a1", "a0"]
    assert await ids(api, "?job=first") == ["a2", "a1", "a0"]
    assert await ids(api, "?job=second&state=failed") == ["b0"]
    assert await ids(api, "?state=running") == ["b1"]
    assert await ids(api, "?job=none") == []
    _, page = await api.call("GET", "/runs?limit=2")
    assert [run["run_id"] for run in page["runs"]] == ["b1", "b0"]
    _, page = await api.call("GET", f"/runs?limit=3&before={page['next']}")
    assert [run["run_id"] for run in page["runs"]] == ["a2", "a1", "a0"]
    _, page = await api.call("GET", f"/runs?limit=3&before={page['next']}")
    assert page == {"runs": [], "next": None}
    failed = (await api.call("GET", "/runs?state=failed"))[1]["runs"][0]
    assert failed["error"] == "no good row. Label some rows good."
    go.touch()
    await api.end("b1")


@pytest.mark.parametrize(
    "query", ["?state=cancelled", "?limit=0", "?limit=999", "?before=x", "?colour=red", "?limit=a"]
)
async def test_a_query_that_means_nothing_is_refused(api: Api, query: str) -> None:
    code, reply = await api.call("GET", f"/runs{query}")
    assert (code, reply["error_code"]) == (400, "invalid_request")
    assert query[1:].partition("=")[0] in reply["error"]


async def test_a_run_is_told_in_full(api: Api, rows: WriteRows) -> None:
    dataset = rows()
    run = await api.submit(dataset)
    status = await api.end(run)
    code, detail = await api.call("GET", f"/runs/{run}")
    assert code == 200
    assert {name: detail[name] for name in status if name != "code"} == {
        name: value for name, value in status.items() if name != "code"
    }
    assert detail["spec"]["base"] == "smollm2"
    assert detail["dataset_ref"] == dataset
    assert len(detail["dataset_sha256"]) == 64
    (attempt,) = detail["attempts"]
    assert (attempt["task"], attempt["attempt"], attempt["outcome"]) == ("run", 1, "completed")
    assert attempt["pid"] in api.pids()
    assert detail["files"]["dataset.jsonl"] == detail["dataset_bytes"]
    assert detail["files"]["model.gguf"] == 4
    assert detail["publications"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("", "/events", "/log")),
        *(("POST", path) for path in ("/cancel", "/publish")),
        ("DELETE", ""),
    ],
)
async def test_a_run_that_nobody_submitted_is_404(api: Api, method: str, path: str) -> None:
    for run_id in ("r1", "..%2F..%2Fx", "%00"):
        code, reply = await api.call(method, f"/runs/{run_id}{path}")
        assert (code, reply["error_code"]) == (404, "unknown_run")


async def test_events_are_told_in_order_and_from_any_place_on(api: Api, rows: WriteRows) -> None:
    run = await api.submit(rows())
    await api.end(run)
    _, reply = await api.call("GET", f"/runs/{run}/events")
    events = reply["events"]
    states = [event["data"]["state"] for event in events if event["kind"] == "state"]
    assert states == ["pending", "running", "completed"]
    assert events[-1]["data"]["output_model_ref"].startswith("tuned-job")
    fractions = [event["progress"]["fraction"] for event in events if "progress" in event]
    assert fractions[-1] == 1.0, "the last progress before the end is always told"
    assert reply["last"] == events[-1]["id"]
    _, rest = await api.call("GET", f"/runs/{run}/events?after={events[1]['id']}&limit=2")
    assert rest["events"] == events[2:4]
    _, rest = await api.call("GET", f"/runs/{run}/events?after={reply['last']}")
    assert rest == {"events": [], "last": reply["last"]}


class Stream:
    """A reader of Server-Sent Events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[tuple[int, str, dict[str, object]]]:
        fields: dict[str, str] = {}
        async for raw in self._response.content:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif fields:
                yield int(fields["id"]), fields["event"], json.loads(fields["data"])
                fields = {}


SSE = {"Accept": "text/event-stream"}


async def test_a_stream_tells_a_run_while_it_goes_on_and_ends_with_it(
    api: Api, rows: WriteRows, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    run = await api.submit(rows("hold", until=str(go)))
    url = f"{api.url}/runs/{run}/events"
    seen = []
    async with session.get(url, headers=SSE) as response:
        assert response.content_type == "text/event-stream"
        async for event in Stream(response):
            seen.append(event)
            if event[1] == "progress":
                go.touch()
    _, reply = await api.call("GET", f"/runs/{run}/events")
    assert [data for _, _, data in seen] == reply["events"]
    assert [number for number, _, _ in seen] == [event["id"] for event in reply["events"]]

    again = {**SSE, "Last-Event-ID": str(seen[1][0])}
    async with session.get(url, headers=again) as response:
        assert [event async for event in Stream(response)] == seen[2:]
    async with session.get(url, headers={**SSE, "Last-Event-ID": str(seen[-1][0])}) as response:
        assert response.status == 204, "a browser stops asking"


async def test_a_stream_does_not_keep_the_server_from_stopping(
    server_process: ServerProcess,
    connect: Connect,
    rows: WriteRows,
    session: aiohttp.ClientSession,
    tmp_path: Path,
) -> None:
    api = connect(server_process)
    run = await api.submit(rows("hold", until=str(tmp_path / "never")))
    async with session.get(f"{api.url}/runs/{run}/events", headers=SSE) as response:
        async for _ in Stream(response):
            break
        server_process.process.terminate()
        async for _ in Stream(response):
            pass
    assert await asyncio.to_thread(server_process.process.wait) == 0


async def test_the_log_is_text_whole_or_its_end(
    api: Api, rows: WriteRows, session: aiohttp.ClientSession
) -> None:
    run = await api.submit(rows())
    await api.end(run)
    path = api.data_dir / f"runs/{run}/worker.log"
    path.write_text("first\n" + "x" * 5000 + "\nlast but one\nlast é\n", encoding="utf-8")
    url = f"{api.url}/runs/{run}/log"
    async with session.get(url) as response:
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert await response.text() == path.read_text("utf-8")
    async with session.get(f"{url}?tail=2") as response:
        assert await response.text() == "last but one\nlast é\n"
    async with session.get(url, headers={"Range": "bytes=0-4"}) as response:
        assert (response.status, await response.text()) == (206, "first")
    path.unlink()
    async with session.get(url) as response:
        assert (response.status, await response.text()) == (200, "")


async def published(api: Api, run: str) -> dict[str, Any]:
    """All of a run, once its last publication has ended."""
    while True:
        _, detail = await api.call("GET", f"/runs/{run}")
        if detail["publications"][-1]["status"] in ("completed", "failed"):
            return detail
        await asyncio.sleep(0.02)


async def test_a_model_is_published_again_without_training(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    run = await api.submit(rows())
    before = await api.end(run)
    other = await api.submit(rows("hold", until=str(go)))
    await api.until(other, "running")
    code, first = await api.call("POST", f"/runs/{run}/publish", json={"publisher": "folder"})
    assert (code, first["status"], first["publisher"]) == (202, "pending", "folder")
    code, same = await api.call("POST", f"/runs/{run}/publish")
    assert (code, same["id"]) == (202, first["id"]), "one at a time"
    assert (await api.call("DELETE", f"/runs/{run}"))[0] == 409
    go.touch()
    await api.end(other)
    detail = await published(api, run)
    assert detail["publications"][0]["output_model_ref"].endswith("-again")
    assert [attempt["task"] for attempt in detail["attempts"]] == ["run", "publish"]
    assert await api.status(run) == before, "the run itself never changes"


async def test_what_cannot_be_published_is_said(api: Api, rows: WriteRows, tmp_path: Path) -> None:
    go = tmp_path / "go"
    failed = await api.submit(rows("fail"))
    await api.end(failed)
    going = await api.submit(rows("hold", until=str(go)))
    for run, words in ((failed, "no finished model"), (going, "has not ended")):
        code, reply = await api.call("POST", f"/runs/{run}/publish")
        assert (code, reply["error_code"]) == (409, "conflict")
        assert words in reply["error"]
    code, _ = await api.call("POST", f"/runs/{failed}/publish", json={"publisher": "hub"})
    assert code == 400
    go.touch()
    await api.end(going)


async def test_a_finished_run_is_deleted_with_its_files(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    run = await api.submit(rows("hold", until=str(go)), "r1")
    assert (await api.call("DELETE", f"/runs/{run}"))[0] == 409
    go.touch()
    await api.end(run)
    assert (await api.call("DELETE", f"/runs/{run}"))[0] == 200
    assert (await api.status(run))["code"] == 404
    assert list((api.data_dir / "runs").iterdir()) == []
    assert (await api.call("DELETE", f"/runs/{run}"))[0] == 404


async def test_old_runs_lose_their_big_files_and_keep_their_records(
    start_api: StartApi, rows: WriteRows
) -> None:
    api = await start_api(keep_last=2)
    for number in range(4):
        await api.end(await api.submit(rows(), f"r{number}"))
    await api.end(await api.submit(rows(), "other", jobId="other"))
    ggufs = [api.data_dir / f"runs/r{number}/model.gguf" for number in range(4)]
    await until(lambda: [path.exists() for path in ggufs] == [False, False, True, True])
    assert (api.data_dir / "runs/other/model.gguf").exists()
    assert (api.data_dir / "runs/r0/dataset.jsonl").exists()
    assert (await api.status("r0"))["status"] == "completed"
    code, reply = await api.call("POST", "/runs/r0/publish")
    assert (code, reply["error_code"]) == (409, "conflict")
    assert "removed" in reply["error"]


async def test_the_run_that_was_published_last_keeps_its_model(
    start_api: StartApi, rows: WriteRows
) -> None:
    api = await start_api(keep_last=0)
    await api.end(await api.submit(rows(), "r0"))
    for number in range(1, 3):
        await api.end(await api.submit(rows("fail"), f"r{number}"))
    await api.end(await api.submit(rows(), "other", jobId="other"))
    assert (api.data_dir / "runs/r0/model.gguf").exists()
    await api.end(await api.submit(rows(), "r9"))
    await until(lambda: not (api.data_dir / "runs/r0/model.gguf").exists())
    assert (api.data_dir / "runs/r9/model.gguf").exists()


async def test_an_unknown_run_can_be_said_to_have_failed(start_api: StartApi) -> None:
    """For a client that goes on polling at every reply but the contract's words."""
    api = await start_api(unknown_run="failed")
    for run_id in ("r1", "..%2F..%2Fetc", "%00"):
        status = await api.status(run_id)
        assert (status["code"], status["status"]) == (200, "failed")
        assert status["error_code"] == "unknown_run"
    assert (await api.call("GET", "/runs/r1"))[0] == 404
