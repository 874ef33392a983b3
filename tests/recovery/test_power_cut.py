"""The files as they were at some instant are all that is left; a server that finds them goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ollama_trainer.testing.fake_ollama import FakeOllama
from ollama_trainer.workspace import DataDirectory

from . import film
from .conftest import Keeper, sha256


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("0.33") as fake:
        yield fake


class Camera:
    """Copies a data directory while nothing in it moves, as a power cut leaves it."""

    def __init__(self, keeper: Keeper, folder: Path, seed: int) -> None:
        self._keeper = keeper
        self._folder = folder
        self._chance = random.Random(seed)
        #: Copies, with the runs that had been accepted by then.
        self.shots: list[tuple[Path, list[str]]] = []

    def shoot(self, accepted: list[str]) -> None:
        time.sleep(self._chance.uniform(0, 0.4))
        target = self._folder / f"shot-{len(self.shots)}"
        server = psutil.Process(self._keeper.pid)
        everyone = [server, *server.children(recursive=True)]
        for process in everyone:
            _signal(process, signal.SIGSTOP)
        try:
            shutil.copytree(self._keeper.data_dir, target)
        finally:
            for process in everyone:
                _signal(process, signal.SIGCONT)
        (target / "server.lock").unlink()
        # What nobody waited for to be on the disk may be gone: the ends of logs and events.
        for path in target.glob("runs/*/events.jsonl"):
            os.truncate(path, self._chance.randint(0, path.stat().st_size))
        for path in target.glob("runs/*/worker.log"):
            os.truncate(path, 0)
        self.shots.append((target, list(accepted)))


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def cut(folder: Path, recorded: Path, ollama: FakeOllama, n_cuts: int) -> None:
    data = folder / "data"
    shutil.copytree(recorded / "cache", data / "cache")
    dataset = folder / "rows.jsonl"
    dataset.write_text(film.rows(), encoding="utf-8")
    environment = {"FRAGILE_FILM": str(recorded)}
    accepted: list[str] = []
    with Keeper(data, recorded, ollama.url, **environment) as keeper:
        camera = Camera(keeper, folder, seed=1)
        while len(camera.shots) < n_cuts:
            if not accepted or (keeper.status(accepted[-1]) or {}).get("status") == "completed":
                accepted.append(f"run-{len(accepted)}")
                keeper.submit(dataset, accepted[-1])
            camera.shoot(accepted)
        first = keeper.end(accepted[0])
        keeper.end(accepted[-1])
    wanted = sha256(DataDirectory(data).run(accepted[0]).gguf)
    assert first["status"] == "completed"
    dataset.unlink()
    for copy, runs in camera.shots:
        with Keeper(copy, recorded, ollama.url, **environment) as keeper:
            for run in runs:
                status = keeper.end(run)
                assert status["status"] == "completed", (copy, status)
            gguf = DataDirectory(copy).run(runs[-1]).gguf
            assert sha256(gguf) == wanted
        shutil.rmtree(copy)
    assert sorted(model.short_name for model in ollama.store.models()) == sorted(
        f"tuned-job:{tag}" for tag in [*accepted, "latest"]
    )


@pytest.mark.timeout(900)
def test_a_power_cut_costs_no_run(tmp_path: Path, recorded: Path, ollama: FakeOllama) -> None:
    cut(tmp_path, recorded, ollama, n_cuts=6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_power_cuts_cost_no_run(tmp_path: Path, recorded: Path, ollama: FakeOllama) -> None:
    cut(tmp_path, recorded, ollama, n_cuts=50)
