"""SIGKILL of the worker, of the server and of both, at points all along a run's way.

Each run ends completed, with the very files of a run that nobody touched, and as one model.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ollama_trainer.testing.fake_ollama import FakeOllama

from .conftest import Recovered, go_through

WHO = ("worker", "server", "both")
#: Killed runs of a series: of the short ones (a real training takes a minute), and of the long one.
FEW, MANY = 12, 27


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("0.33") as fake:
        yield fake


@dataclass
class Untouched:
    """A run that nobody touched, and how many points its worker passed."""

    run: Recovered
    n_points: int


def untouched(folder: Path, recorded: Path, ollama: FakeOllama, **environment: str) -> Untouched:
    count = folder / "count"
    run = go_through(
        folder / "data", recorded, ollama, "untouched", FRAGILE_COUNT=str(count), **environment
    )
    assert run.status["status"] == "completed", run.status
    return Untouched(run, int(count.read_text()))


def check(killed: Recovered, whole: Recovered, who: str) -> None:
    status = killed.status
    assert status["status"] == "completed", status
    assert killed.gguf_sha256 == whole.gguf_sha256
    assert killed.adapter_sha256 == whole.adapter_sha256
    assert killed.models == [status["output_model_ref"]], "published once"
    # Killed when its result was whole already, it had nothing left to do.
    assert status["attempt"] in (1, 2)
    assert killed.starts == (1 if who == "worker" else 2)
    assert status["result"]["metrics"]["rows_used"] == 8
    assert status["fidelity"] == whole.status["fidelity"]
    ids = [event["id"] for event in killed.events]
    assert ids == sorted(set(ids))
    states = [event["data"]["state"] for event in killed.events if event["kind"] == "state"]
    assert states[0] == "pending"
    assert states[-1] == "completed"
    assert killed.events[-1]["kind"] == "state"
    assert states.count("completed") == 1


def series(
    folder: Path, recorded: Path, ollama: FakeOllama, n_kills: int, at_once: int, **film: str
) -> None:
    """Kills runs at points that are spread evenly over their way."""
    whole = untouched(folder / "untouched", recorded, ollama, **film)
    # How often progress is told depends on the time, so the last few points are not always there.
    last = whole.n_points - 8
    numbers = [round(1 + n * (last - 1) / (n_kills - 1)) for n in range(n_kills)]
    assert len(set(numbers)) == n_kills

    def kill(case: tuple[int, int]) -> tuple[str, Recovered]:
        index, number = case
        who = WHO[index % len(WHO)]
        kill = f"{number} {who}"
        name = f"killed-{number}-{who}"
        run = go_through(folder / name, recorded, ollama, name, FRAGILE_KILL=kill, **film)
        return who, run

    with ThreadPoolExecutor(at_once) as pool:
        killed = list(pool.map(kill, enumerate(numbers)))
    assert len(list(folder.glob("killed-*/runs/*/killed"))) == n_kills, "each was really killed"
    for who, run in killed:
        check(run, whole.run, who)
    assert sum(run.status["attempt"] == 2 for _, run in killed) >= n_kills - 3
    names = [model.short_name for model in ollama.store.models()]
    assert len(names) == n_kills + 2, "no name for trial is left, and one alias is there"


@pytest.mark.timeout(900)
def test_a_run_survives_a_kill_at_every_stage(
    tmp_path: Path, recorded: Path, ollama: FakeOllama
) -> None:
    series(tmp_path, recorded, ollama, FEW, at_once=2, FRAGILE_FILM=str(recorded))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_survives_a_kill_at_many_points(
    tmp_path: Path, recorded: Path, ollama: FakeOllama
) -> None:
    series(tmp_path, recorded, ollama, MANY, at_once=2, FRAGILE_FILM=str(recorded))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_real_training_survives_a_kill_at_every_stage(
    tmp_path: Path, recorded: Path, ollama: FakeOllama
) -> None:
    """The same with Unsloth: the adapter of a killed training is that of an untouched one."""
    series(tmp_path, recorded, ollama, FEW, at_once=1)
