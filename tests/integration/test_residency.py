"""A run that needs memory which Ollama holds waits for it, and goes on by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_trainer import backends
from ollama_trainer.backends import FreeMemory, ReplayPlan, TrainJob
from ollama_trainer.errors import MemoryHeld
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.pipeline import attempt
from ollama_trainer.pipeline import run as pipeline
from ollama_trainer.pipeline.memory import needed_bytes
from ollama_trainer.pipeline.plan import recipe_for
from ollama_trainer.records import Adapter, BaseGguf, Lease, Progress, RunSpec
from ollama_trainer.testing import tiny_gguf
from ollama_trainer.testing.fake_ollama import FakeOllama
from ollama_trainer.workspace import RunDirectory
from tests.ollama_models import create

from .conftest import StartApi, WriteRows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    tiny_gguf.write_tiny(path)
    return path


@pytest.fixture
def ollama(model: Path) -> Iterator[FakeOllama]:
    """With one model in memory."""
    with FakeOllama("0.40") as fake:
        create(fake.url, "chat:1b", model)
        generate(fake)
        yield fake


def generate(ollama: FakeOllama, **body: Any) -> None:
    with httpx.Client(base_url=ollama.url, trust_env=False) as client:
        sent = {"model": "chat:1b", "stream": False, **body}
        client.post("/api/generate", json=sent).raise_for_status()


async def test_it_waits_and_goes_on_when_the_model_leaves(
    start_api: StartApi, rows: WriteRows, ollama: FakeOllama
) -> None:
    api = await start_api(ollama_host=ollama.url, ollama_memory="wait")
    run = await api.submit(rows("beside", needed=1000, free=999))
    while "waiting" not in (status := await api.status(run)):
        assert status["status"] in ("pending", "running")
    waiting = status["waiting"]
    assert (status["status"], waiting["for"]) == ("running", "machine")
    assert waiting["error_code"] == "memory_held"
    assert "chat:1b" in waiting["error"]
    assert "ollama stop chat:1b" in waiting["error"]
    generate(ollama, keep_alive=0)
    assert (await api.end(run))["status"] == "completed"


async def test_it_does_not_wait_where_it_has_the_model_unloaded(
    start_api: StartApi, rows: WriteRows, ollama: FakeOllama
) -> None:
    """By default."""
    api = await start_api(ollama_host=ollama.url)
    run = await api.submit(rows("beside", needed=1000, free=999))
    status = await api.end(run)
    assert (status["status"], status["attempt"]) == ("completed", 1)
    _, told = await api.call("GET", f"/runs/{run}/events")
    (note,) = [one for one in told["events"] if "unloaded from Ollama" in one["message"]]
    assert note["data"]["needed_bytes"] == 1000
    assert list(note["data"]["ollama_bytes"]) == ["chat:1b"]


class Backend:
    """Trains nothing, on a device with so much free memory."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.trained: list[TrainJob] = []

    def free_memory(self, cache: Path) -> FreeMemory:
        return FreeMemory(n_bytes=self.free, on_gpu=False)

    def train(self, job: TrainJob, report: Callable[[Progress], None]) -> Adapter:
        self.trained.append(job)
        job.out.mkdir()
        return Adapter(path=job.out)


def test_the_memory_is_looked_at_before_the_training(
    ollama: FakeOllama, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the batch that is trained with: it may have been halved."""
    gguf = read_gguf(model)
    spec = RunSpec(
        run_id="r1", job_id="j1", dataset_ref="", base="", backend="none", publisher="folder",
        quantization="same", ollama_host=ollama.url, model_name="tuned-j1:r1",
        cache_dir=tmp_path / "cache", rounding="stochastic", ollama_memory="wait",
    )  # fmt: skip
    directory = RunDirectory(tmp_path)
    directory.write_lease(Lease(token=1))
    run = attempt.Run(directory, spec, Lease(token=1))
    recipe = recipe_for(gguf, spec.training.model_copy(update={"batch_size": 4}), 10)
    needed = needed_bytes(gguf, spec.training.model_copy(update={"batch_size": 4}))
    backend = Backend(needed - 1)
    monkeypatch.setattr(backends, "get", lambda _: backend)
    monkeypatch.setattr(pipeline, "_replay", lambda *_: ReplayPlan())
    base = BaseGguf(name="chat:1b", gguf=model, digest="0" * 64)
    data: Any = type("Data", (), {"examples": (), "held_out": (), "probe": ()})

    with pytest.raises(MemoryHeld):
        pipeline._train(run, "key", base, data, recipe)
    assert backend.trained == []
    backend.free = needed
    pipeline._train(run, "key", base, data, recipe)
    assert len(backend.trained) == 1
    backend.free = needed - 1
    generate(ollama, keep_alive=0)
    directory.adapter.rmdir()
    pipeline._train(run, "key", base, data, recipe)
    assert len(backend.trained) == 2
