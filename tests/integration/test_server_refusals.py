"""Who is refused, and that a refusal is still seen by a client which only polls."""

import json

import pytest

from .conftest import Api, StartApi, WriteRows

JSON = {"Content-Type": "application/json"}


async def test_a_body_that_is_refused_is_stored_as_a_failed_run(api: Api, rows: WriteRows) -> None:
    good = {"jobId": "job", "datasetRef": rows()}
    faults: dict[str, dict[str, object]] = {
        "jobId": {"jobId": ""},
        "jobId ": {"jobId": 7},
        "jobId  ": {"jobId": "x" * 201},
        "datasetRef": {"datasetRef": None},
        "datasetRef ": {"datasetRef": ["/x"]},
        "publisher": {"publisher": "hub"},
        "baseModel": {"baseModel": ""},
        "steps": {"steps": 0},
        "learningRate": {"learningRate": "fast"},
        "experimentLabel": {"experimentLabel": {}},
        "quantization": {"quantization": "../x"},
    }
    for number, (field, fault) in enumerate(faults.items()):
        run_id = f"r{number}"
        code, reply = await api.post({**good, **fault, "runId": run_id})
        assert (code, reply["error_code"]) == (400, "invalid_request")
        assert f"'{field.strip()}'" in reply["error"]
        status = await api.end(run_id)
        assert (status["code"], status["status"]) == (200, "failed")
        assert status["error"] == reply["error"]
    assert api.starts() == []


async def test_a_missing_field_is_refused_and_stored(api: Api) -> None:
    for number, body in enumerate(({}, {"jobId": "job"}, {"datasetRef": "/x"})):
        code, reply = await api.post({**body, "runId": f"r{number}"})
        assert code == 400
        assert (await api.end(f"r{number}"))["error"] == reply["error"]


async def test_a_refused_body_does_not_touch_the_run_of_that_id(api: Api, rows: WriteRows) -> None:
    run_id = await api.submit(rows())
    code, _ = await api.post({"jobId": "", "datasetRef": "/x", "runId": run_id})
    assert code == 400
    assert (await api.end(run_id))["status"] == "completed"


async def test_a_refused_run_stays_failed(api: Api, rows: WriteRows) -> None:
    await api.post({"runId": "r1"})
    code, reply = await api.post({"jobId": "job", "datasetRef": rows(), "runId": "r1"})
    assert (code, reply["error_code"]) == (409, "run_id_taken")
    assert (await api.end("r1"))["status"] == "failed"


@pytest.mark.parametrize(
    "run_id", ["", "../../etc/passwd", "a/b", "a b", ".", "x" * 65, "\ud800", "a\0", None, 7, {}]
)
async def test_a_run_id_that_is_no_plain_identifier(
    api: Api, rows: WriteRows, run_id: object
) -> None:
    code, reply = await api.post({"jobId": "job", "datasetRef": rows(), "runId": run_id})
    assert code == 400
    assert "runId" in reply["error"]
    assert list((api.data_dir / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff", b"[" * 100_000, b"{" + b" " * 1000]
)
async def test_a_body_that_is_no_json_object(api: Api, raw: bytes) -> None:
    code, reply = await api.call("POST", "/train", data=raw, headers=JSON)
    assert (code, reply["error_code"]) == (400, "invalid_request")


async def test_a_body_that_is_too_large(api: Api) -> None:
    raw = json.dumps({"runId": "r1", "x": "y" * (1 << 20)}).encode()
    code, reply = await api.call("POST", "/train", data=raw, headers=JSON)
    assert code == 413
    assert "1 MB" in reply["error"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_another_content_type_is_refused_and_stored(
    api: Api, rows: WriteRows, content_type: str
) -> None:
    raw = json.dumps({"jobId": "job", "datasetRef": rows(), "runId": "r1"}).encode()
    headers = {"Content-Type": content_type}
    code, _ = await api.call("POST", "/train", data=raw, headers=headers)
    assert code == 415
    status = await api.end("r1")
    assert status["status"] == "failed"
    assert "application/json" in status["error"]


async def test_json_with_a_character_set_is_json(api: Api, rows: WriteRows) -> None:
    raw = json.dumps({"jobId": "job", "datasetRef": rows(), "runId": "r1"}).encode()
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert (await api.call("POST", "/train", data=raw, headers=headers))[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "localhost.evil.example", "a@localhost", "[::1", ""],
)
async def test_a_foreign_host_is_refused(api: Api, rows: WriteRows, host: str) -> None:
    body = {"jobId": "job", "datasetRef": rows(), "runId": "r1"}
    for method, path in (("POST", "/train"), ("GET", "/status/r1"), ("GET", "/health")):
        code, reply = await api.call(method, path, json=body, headers={"Host": host})
        assert (code, reply["error_code"]) == (403, "forbidden")
    assert (await api.status("r1"))["code"] == 404


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:8765", "[::1]:8765", "[::1]"]
)
async def test_a_loopback_host_is_served(api: Api, host: str) -> None:
    assert (await api.call("GET", "/health", headers={"Host": host}))[0] == 200


async def test_further_hosts_can_be_allowed(start_api: StartApi) -> None:
    api = await start_api(allowed_hosts=("Trainer.lan",), host="box.lan")
    for host in ("trainer.lan", "box.lan:8765"):
        assert (await api.call("GET", "/health", headers={"Host": host}))[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://localhost", "http://localhost:1", ""]
)
async def test_a_foreign_origin_is_refused(api: Api, rows: WriteRows, origin: str) -> None:
    body = {"jobId": "job", "datasetRef": rows(), "runId": "r1"}
    code, _ = await api.call("POST", "/train", json=body, headers={"Origin": origin})
    assert code == 403
    assert (await api.status("r1"))["code"] == 404


async def test_the_servers_own_origin_is_served(api: Api) -> None:
    assert (await api.call("GET", "/health", headers={"Origin": api.url}))[0] == 200


async def test_other_paths_and_methods_are_answered_in_json(api: Api) -> None:
    assert (await api.call("GET", "/nothing"))[0] == 404
    assert (await api.call("GET", "/train"))[0] == 405
    assert (await api.call("POST", "/status/r1", json={}))[0] == 405
