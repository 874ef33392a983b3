"""Jobs: what is settled for one holds for its runs where they ask for nothing else."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from .conftest import Api, Connect, ServerProcess, StartApi, WriteRows


async def put(api: Api, job_id: str, body: object) -> tuple[int, dict[str, Any]]:
    return await api.call("PUT", f"/jobs/{quote(job_id, safe='')}", json=body)


async def get(api: Api, job_id: str) -> tuple[int, dict[str, Any]]:
    return await api.call("GET", f"/jobs/{quote(job_id, safe='')}")


async def spec_of(api: Api, run_id: str) -> dict[str, Any]:
    spec: dict[str, Any] = (await api.call("GET", f"/runs/{run_id}"))[1]["spec"]
    return spec


@pytest.fixture
async def api(start_api: StartApi) -> Api:
    return await start_api(base="by-setting", quantization="q6_k", rank=4, method="sft")


async def test_a_request_goes_before_its_job_and_the_job_before_the_settings(
    api: Api, rows: WriteRows
) -> None:
    assert (await put(api, "job", {"baseModel": "by-job", "steps": 7, "secrets": "off"}))[0] == 200
    asked = await spec_of(api, await api.submit(rows(), baseModel="by-request"))
    left_open = await spec_of(api, await api.submit(rows(), baseModel=None, steps=9))
    other = await spec_of(api, await api.submit(rows(), jobId="other"))
    assert [spec["base"] for spec in (asked, left_open, other)] == [
        "by-request", "by-job", "by-setting",
    ]  # fmt: skip
    assert [spec["training"]["steps"] for spec in (asked, left_open, other)] == [7, 9, None]
    for spec in (asked, left_open, other):
        assert spec["quantization"] == "q6_k"
        assert spec["training"]["rank"] == 4
        assert spec["dataset"]["method"] == "sft"
    assert (asked["dataset"]["secrets"], other["dataset"]["secrets"]) == ("off", "redact")


async def test_every_option_of_a_run_can_be_settled(api: Api, rows: WriteRows) -> None:
    options = {
        "baseModel": "qwen3:0.6b", "publisher": "folder", "quantization": "f16", "rank": 2,
        "alpha": 3, "layers": 1, "learningRate": 0.5, "steps": 5, "batchSize": 6, "maxLength": 77,
        "replay": 0.25, "seed": 8, "method": "kto", "secrets": "refuse", "redactEmails": True,
        "corrections": True,
    }  # fmt: skip
    code, reply = await put(api, "job", options)
    assert (code, reply["options"]) == (200, options)
    spec = await spec_of(api, await api.submit(rows()))
    settled = {**spec, **spec["training"], **spec["dataset"]}
    for name, value in options.items():
        field = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
        assert settled["base" if name == "baseModel" else field] == value, name


async def test_what_is_put_takes_the_place_of_what_was(api: Api, rows: WriteRows) -> None:
    await put(api, "job", {"baseModel": "first", "steps": 7})
    await put(api, "job", {"steps": 8, "rank": None})
    assert (await get(api, "job"))[1]["options"] == {"steps": 8}
    run = await api.submit(rows())
    await put(api, "job", {})
    spec = await spec_of(api, run)
    assert (spec["base"], spec["training"]["steps"]) == ("by-setting", 8)
    assert (await get(api, "job"))[1]["options"] == {}
    assert (await spec_of(api, await api.submit(rows())))["training"]["steps"] is None


async def test_a_repeated_request_is_the_same_after_the_job_has_changed(
    api: Api, rows: WriteRows
) -> None:
    """A caller that got no reply sends again, and must not be refused."""
    body = {"jobId": "job", "datasetRef": rows(), "runId": "again"}
    await put(api, "job", {"baseModel": "first"})
    assert (await api.post(body))[0] == 200
    await put(api, "job", {"baseModel": "second"})
    assert (await api.post(body))[0] == 200
    assert (await spec_of(api, "again"))["base"] == "first"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"baseModel": ""}, "'baseModel'"),
        ({"steps": "many"}, "'steps'"),
        ({"steps": 0}, "'steps'"),
        ({"secrets": "maybe"}, "'secrets'"),
        ({"datasetRef": "/x"}, "'datasetRef' cannot be settled for a job"),
        ({"base_model": "x"}, "'base_model' cannot be settled"),
        ([], "not a JSON object"),
    ],
)
async def test_what_is_not_valid_is_refused_and_changes_nothing(
    api: Api, body: object, words: str
) -> None:
    await put(api, "job", {"steps": 7})
    code, reply = await put(api, "job", body)
    assert (code, reply["error_code"]) == (400, "invalid_request")
    assert words in reply["error"]
    assert (await get(api, "job"))[1]["options"] == {"steps": 7}


async def test_a_page_of_another_site_cannot_settle_anything(api: Api) -> None:
    code, _ = await api.call("PUT", "/jobs/job", data=b"{}", headers={"Content-Type": "text/plain"})
    assert code == 400
    code, _ = await api.call(
        "PUT", "/jobs/job", json={"steps": 1}, headers={"Origin": "https://evil.example"}
    )
    assert code == 403
    assert (await get(api, "job"))[0] == 404


@pytest.mark.parametrize(
    "job_id", ["a/b", "..", "a b", "ä\u2028", "%2F", "{x}", "'; DROP TABLE jobs", "j" * 200]
)
async def test_any_id_of_a_job_is_taken_as_it_is(api: Api, rows: WriteRows, job_id: str) -> None:
    """They are the caller's own, and POST /train takes any."""
    code, reply = await put(api, job_id, {"steps": 3})
    assert (code, reply["job_id"]) == (200, job_id)
    spec = await spec_of(api, await api.submit(rows(), jobId=job_id))
    assert (spec["job_id"], spec["training"]["steps"]) == (job_id, 3)


async def test_a_job_that_nobody_knows_is_none(api: Api, rows: WriteRows) -> None:
    code, reply = await get(api, "job")
    assert (code, reply["error_code"]) == (404, "unknown_job")
    await api.submit(rows())
    assert await get(api, "job") == (200, {"job_id": "job", "options": {}})
    assert (await get(api, "j" * 201))[0] == 400


async def test_what_is_settled_outlives_the_server(
    server_process: ServerProcess, connect: Connect
) -> None:
    before = connect(server_process)
    _, settled = await put(before, "job", {"baseModel": "qwen3:0.6b"})
    server_process.end()
    server_process.restart()
    assert await get(connect(server_process), "job") == (200, settled)
