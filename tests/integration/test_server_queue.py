"""Runs in their order, each to an end, whatever the ones before it did."""

import os
from pathlib import Path

import pytest

from .conftest import Api, StartApi, WriteRows, until


async def test_one_at_a_time_in_the_order_of_acceptance(api: Api, rows: WriteRows) -> None:
    go = api.data_dir / "go"
    runs = [await api.submit(rows("hold", until=str(go))) for _ in range(4)]
    await api.until(runs[0], "running")
    positions = [(await api.status(run)).get("queue_position") for run in runs]
    assert positions == [None, 1, 2, 3]
    go.touch()
    assert [(await api.end(run))["status"] for run in runs] == ["completed"] * 4
    assert api.starts() == runs


@pytest.mark.parametrize("ending", ["fail", "exit", "die"])
async def test_a_failing_run_holds_nothing_up(api: Api, rows: WriteRows, ending: str) -> None:
    bad, good = await api.submit(rows(ending, code=3)), await api.submit(rows())
    assert (await api.end(good))["status"] == "completed"
    assert (await api.end(bad))["status"] == "failed"


@pytest.mark.parametrize(("ending", "cause"), [("exit", "exit code 3"), ("die", "SIGKILL")])
async def test_a_worker_without_a_result_is_told_with_its_last_words(
    api: Api, rows: WriteRows, ending: str, cause: str
) -> None:
    status = await api.end(await api.submit(rows(ending, code=3), "r1"))
    assert (status["status"], status["error_code"]) == ("failed", "worker_lost")
    assert cause in status["error"]
    assert str(api.data_dir / "runs/r1/worker.log") in status["error"]
    if ending == "exit":
        assert "no words left" in status["error"]


async def test_a_data_set_that_cannot_be_read_fails_at_once_behind_a_long_queue(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    go = api.data_dir / "go"
    waiting = [await api.submit(rows("hold", until=str(go))) for _ in range(3)]
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    faults = {
        "": "empty",
        "relative.jsonl": "not an absolute path",
        str(tmp_path / "missing.jsonl"): "does not exist",
        str(tmp_path): "is a directory",
        str(empty): "0 bytes",
        "/x\0": "not a usable path",
        "/\ud800": "does not exist",
    }
    for dataset_ref, cause in faults.items():
        status = await api.end(await api.submit(dataset_ref))
        assert (status["status"], status["error_code"]) == ("failed", "dataset")
        assert cause in status["error"]
        assert status["error"].count(". ") >= 1
    assert (await api.status(waiting[-1]))["status"] == "pending"
    go.touch()
    assert [(await api.end(run))["status"] for run in waiting] == ["completed"] * 3
    assert list(api.data_dir.rglob("*.partial")) == []


async def test_roots_bound_what_may_be_read(
    start_api: StartApi, rows: WriteRows, tmp_path: Path
) -> None:
    api = await start_api(dataset_roots=(tmp_path / "allowed",))
    status = await api.end(await api.submit(rows()))
    assert status["status"] == "failed"
    assert "outside of the directories" in status["error"]


async def test_the_source_may_change_after_the_copy(api: Api, rows: WriteRows) -> None:
    go = api.data_dir / "go"
    first = await api.submit(rows("hold", until=str(go)))
    dataset = rows()
    second = await api.submit(dataset, "r2")
    await until((api.data_dir / "runs/r2/dataset.jsonl").exists)
    os.unlink(dataset)  # noqa: PTH108
    go.touch()
    assert (await api.end(first))["status"] == "completed"
    assert (await api.end(second))["status"] == "completed"
