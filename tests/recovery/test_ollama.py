"""An Ollama that fails a finished training in every way: no training is lost, nothing half-made."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.testing.fake_ollama import FakeOllama

from . import film
from .conftest import Keeper


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("0.40") as fake:
        yield fake


@pytest.fixture(scope="module")
def keeper(
    tmp_path_factory: pytest.TempPathFactory, recorded: Path, ollama: FakeOllama
) -> Iterator[Keeper]:
    data = tmp_path_factory.mktemp("ollama") / "data"
    shutil.copytree(recorded / "cache", data / "cache")
    with Keeper(data, recorded, ollama.url, FRAGILE_FILM=str(recorded)) as one:
        yield one


@pytest.fixture
def run(keeper: Keeper, ollama: FakeOllama, tmp_path: Path) -> Iterator[str]:
    """The id of a run that is to be submitted; afterwards Ollama is well again."""
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text(film.rows(), encoding="utf-8")
    yield str(uuid.uuid4())
    for name, value in (("vanish_at", ""), ("create_error", ""), ("create_ends", False),
                        ("blob_reset", ""), ("delay_s", 0.0)):  # fmt: skip
        setattr(ollama.faults, name, value)
    for model in ollama.store.models():
        ollama.store.delete(model.short_name)


def submit(keeper: Keeper, run: str, tmp_path: Path) -> None:
    keeper.submit(tmp_path / "rows.jsonl", run)


def waits(keeper: Keeper, run: str) -> dict[str, Any]:
    while True:
        status = keeper.status(run) or {}
        assert status.get("status") in ("pending", "running"), status
        if "waiting" in status:
            return status
        time.sleep(0.05)


def events(keeper: Keeper, run: str) -> list[dict[str, Any]]:
    told = keeper.call(f"/runs/{run}/events?limit=2000")
    assert told is not None
    found: list[dict[str, Any]] = told["events"]
    return found


def names(ollama: FakeOllama) -> list[str]:
    """All but the job's alias."""
    found = [model.short_name for model in ollama.store.models()]
    return [name for name in found if name != "tuned-job:latest"]


def test_away_at_the_end_costs_no_training(
    keeper: Keeper, ollama: FakeOllama, run: str, tmp_path: Path
) -> None:
    ollama.go_away()
    try:
        submit(keeper, run, tmp_path)
        waiting = waits(keeper, run)["waiting"]
        assert waiting["for"] == "ollama"
        assert "ollama serve" in waiting["error"]
        while waits(keeper, run)["waiting"]["tries"] < 3:
            time.sleep(0.1)
    finally:
        ollama.come_back()
    status = keeper.end(run)
    assert (status["status"], status["attempt"]) == ("completed", 4)
    assert names(ollama) == [status["output_model_ref"]]
    told = events(keeper, run)
    assert [event["message"] for event in told if event["kind"] == "saved"][-2:] == [
        "modelfile", "publish",
    ]  # fmt: skip
    stages = [event["message"] for event in told if event["kind"] == "stage"]
    assert stages.count("train") == 1
    assert stages.count("publish") == 4


@pytest.mark.parametrize("path", ["create", "copy"])
def test_gone_in_the_middle_of_publishing(
    keeper: Keeper, ollama: FakeOllama, run: str, tmp_path: Path, path: str
) -> None:
    ollama.faults.vanish_at = f"/api/{path}"
    submit(keeper, run, tmp_path)
    waits(keeper, run)
    assert all("untried" in name for name in names(ollama)), "no half-made model has the name"
    ollama.faults.vanish_at = ""
    ollama.come_back()
    status = keeper.end(run)
    assert status["status"] == "completed"
    assert names(ollama) == [status["output_model_ref"]]
    stages = [event["message"] for event in events(keeper, run) if event["kind"] == "stage"]
    assert stages.count("train") == 1


@pytest.mark.parametrize("fault", ["create_error", "create_ends"])
def test_a_refusal_fails_the_run_and_its_model_can_be_published_later(
    keeper: Keeper, ollama: FakeOllama, run: str, tmp_path: Path, fault: str
) -> None:
    setattr(ollama.faults, fault, "no such thing" if fault == "create_error" else True)
    submit(keeper, run, tmp_path)
    status = keeper.end(run)
    assert (status["status"], status["error_code"]) == ("failed", "publish")
    assert names(ollama) == []
    setattr(ollama.faults, fault, "" if fault == "create_error" else False)
    assert keeper.call(f"/runs/{run}/publish", {}) is not None
    publication: dict[str, Any] = {"status": "pending"}
    while publication["status"] in ("pending", "running"):
        detail = keeper.call(f"/runs/{run}")
        assert detail is not None
        publication = detail["publications"][-1]
    assert publication["status"] == "completed", publication
    assert names(ollama) == [publication["output_model_ref"]] == [f"tuned-job:{run}"]
    assert (keeper.status(run) or {})["status"] == "failed", "what is over stays so"


@pytest.mark.parametrize("fault", ["blob_reset", "delay_s"])
def test_what_can_be_borne_is_borne(
    keeper: Keeper, ollama: FakeOllama, run: str, tmp_path: Path, fault: str
) -> None:
    setattr(ollama.faults, fault, {"blob_reset": "after", "delay_s": 0.3}[fault])
    submit(keeper, run, tmp_path)
    status = keeper.end(run)
    assert (status["status"], status["attempt"]) == ("completed", 1)


def test_cancelled_while_it_publishes_nothing_remains(
    keeper: Keeper, ollama: FakeOllama, run: str, tmp_path: Path
) -> None:
    ollama.faults.delay_s = 0.7
    submit(keeper, run, tmp_path)
    marker = keeper.data_dir / "runs" / run / "publishing.json"
    while not (marker.exists() and names(ollama)):
        time.sleep(0.02)
    asked = time.monotonic()
    keeper.call(f"/runs/{run}/cancel", {})
    status = keeper.end(run)
    assert (status["status"], status["error_code"]) == ("failed", "cancelled")
    assert names(ollama) == []
    assert not marker.exists()
    # Taking back takes four slow answers of Ollama here, beside the ten seconds for the worker.
    assert time.monotonic() - asked < 20
