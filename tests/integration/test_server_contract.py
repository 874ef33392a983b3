"""The two calls that the app makes, answered as it reads them."""

import asyncio
import subprocess
import sys
import uuid

from .conftest import Api, StartApi, WriteRows
from .stand_in_worker import FIDELITY


async def test_a_run_ends_as_a_model_and_names_none_before(api: Api, rows: WriteRows) -> None:
    run_id = str(uuid.uuid4())
    go = api.data_dir / "go"
    body = {"jobId": "My job", "datasetRef": rows("hold", until=str(go)), "runId": run_id}
    code, reply = await api.post(body)
    assert (code, reply) == (200, {"run_id": run_id, "id": run_id, "status": "pending"})
    while not (status := await api.status(run_id)).get("progress"):
        assert status["status"] in ("pending", "running")
        assert not {"output_model_ref", "outputModelRef", "error"} & status.keys()
    assert status["progress"]["stage"] == "train"
    go.touch()
    status = await api.end(run_id)
    assert status["status"] == "completed"
    assert status["output_model_ref"] == status["outputModelRef"]
    assert status["output_model_ref"].startswith("tuned-my-job-")
    assert status["output_model_ref"].endswith(f":{run_id}")
    assert status["result"]["metrics"]["next_command"].startswith("ollama run tuned-my-job-")
    assert status["fidelity"] == FIDELITY.model_dump(mode="json")
    assert "error" not in status


async def test_a_failure_says_cause_and_remedy(api: Api, rows: WriteRows) -> None:
    status = await api.end(await api.submit(rows("fail")))
    assert (status["code"], status["status"]) == (200, "failed")
    assert (status["error"], status["error_code"]) == (
        "no good row. Label some rows good.",
        "dataset",
    )
    assert not {"output_model_ref", "fidelity"} & status.keys()


async def test_the_apps_own_end_to_end_sequence(api: Api, rows: WriteRows) -> None:
    """Two earlier runs, one of them on an empty file, then the one that is polled."""
    empty = api.data_dir / "empty.jsonl"
    empty.touch()
    assert (await api.call("GET", "/health"))[0] == 200
    others = [await api.submit(str(empty)), await api.submit(rows())]
    assert (await api.end(await api.submit(rows())))["status"] == "completed"
    assert [(await api.end(run))["status"] for run in others] == ["failed", "completed"]


async def test_an_unknown_run_is_404_as_json(api: Api) -> None:
    for run_id in (
        str(uuid.uuid4()),
        "..%2F..%2Fetc",
        "%00",
        "%ff",
        "a%20b",
        "x" * 1000,
        "%F0%9F%8D",
    ):
        status = await api.status(run_id)
        assert (status["code"], status["error_code"]) == (404, "unknown_run")


async def test_slashes_that_a_base_url_leaves_are_merged(api: Api, rows: WriteRows) -> None:
    body = {"jobId": "job", "datasetRef": rows(), "runId": "r1"}
    assert (await api.call("POST", "//train", json=body))[0] == 200
    for path in ("//status/r1", "/status//r1/", "//health", "/health/"):
        assert (await api.call("GET", path))[0] == 200


async def test_the_same_request_again_is_the_same_run(api: Api, rows: WriteRows) -> None:
    body = {"jobId": "job", "datasetRef": rows(), "runId": "r1"}
    replies = await asyncio.gather(*(api.post(body) for _ in range(100)))
    assert {code for code, _ in replies} == {200}
    assert {reply["run_id"] for _, reply in replies} == {"r1"}
    assert (await api.end("r1"))["status"] == "completed"
    assert (await api.post(body))[1]["status"] == "completed"
    assert api.starts() == ["r1"]


async def test_another_request_with_the_same_id_is_409(api: Api, rows: WriteRows) -> None:
    body = {"jobId": "job", "datasetRef": rows(), "runId": "r1"}
    await api.post(body)
    for other in ({"jobId": "other"}, {"datasetRef": "/x"}, {"runId": "R1"}, {"steps": 3}):
        code, reply = await api.post({**body, **other})
        assert (code, reply["error_code"]) == (409, "run_id_taken")
    assert (await api.end("r1"))["status"] == "completed"
    assert (await api.status("r1"))["job_id"] == "job"


async def test_known_extra_fields_settle_the_run_and_others_are_named(
    start_api: StartApi, rows: WriteRows
) -> None:
    api = await start_api(base="configured", steps=7, alpha=4)
    extra = {
        "baseModel": "llama3.2",
        "publisher": "folder",
        "experimentLabel": "summer",
        "learningRate": 0.001,
        "steps": None,
        "rank": 8,
    }
    body = {"jobId": "job", "datasetRef": rows(), "runId": "r1", "systemPrompt": "x", **extra}
    code, reply = await api.post(body)
    assert (code, reply["ignored"]) == (200, ["systemPrompt"])
    assert (await api.end("r1"))["experiment_label"] == "summer"
    spec = (api.data_dir / "runs/r1/spec.json").read_text()
    for part in ('"llama3.2"', '"folder"', '"learning_rate": 0.001', '"rank": 8', '"steps": 7'):
        assert part in spec
    assert '"alpha": 4' in spec


async def test_the_server_stays_light(rows: WriteRows) -> None:
    """A server that answered, failed and finished runs has loaded nothing that trains."""
    program = f"""
import asyncio, sys, tempfile
from pathlib import Path
from aiohttp.test_utils import TestClient, TestServer
from ollama_trainer import cli, client
from ollama_trainer.executors.local import LocalExecutor
from ollama_trainer.server import create_app
from ollama_trainer.settings import Settings

async def main():
    with tempfile.TemporaryDirectory() as data_dir:
        app = create_app(Settings(data_dir=Path(data_dir)), LocalExecutor(["false"]))
        async with TestClient(TestServer(app, host="127.0.0.1")) as api:
            body = {{"jobId": "j", "datasetRef": {rows()!r}, "runId": "r1"}}
            assert (await api.post("/train", json=body)).status == 200
            assert (await api.get("/health")).status == 200
            while True:
                status = await (await api.get("/status/r1")).json()
                if status["status"] == "failed":
                    break
                await asyncio.sleep(0.02)
    print(*sorted({{name.partition(".")[0] for name in sys.modules}}))

asyncio.run(main())
"""
    command = (sys.executable, "-c", program)
    output = await asyncio.to_thread(subprocess.check_output, command, text=True)
    heavy = {"torch", "unsloth", "transformers", "trl", "peft", "datasets", "numpy", "llama_cpp"}
    assert not heavy & set(output.split())
    assert "aiohttp" in output.split()
