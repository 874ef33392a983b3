"""A training that was broken off goes on as if it had not been.

In processes of their own with the real Unsloth, and each broken-off training goes on in another
process than it began in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.backends import Recipe, TrainJob, _checkpoints
from ollama_trainer.backends._checkpoints import Checkpoints, open_checkpoints
from ollama_trainer.gguf.architectures import ARCHITECTURES
from ollama_trainer.records import BaseGguf
from tests.tiny_models import tiny_model, write_gguf

STEPS, STOPPED_AT = 12, 7
RECIPE: dict[str, Any] = {
    "rank": 4, "alpha": 12, "target_modules": ARCHITECTURES["llama"].target_modules,
    "layers": [0, 1], "learning_rate": 3e-3, "steps": STEPS, "warmup_steps": 2, "batch_size": 8,
    "max_length": 64, "seed": 11,
}  # fmt: skip
#: Three batches an epoch, the last of them smaller.
FACTS = [[f"q{n}?", f"a{n * 7 % 23} " * (n % 3 + 1)] for n in range(22)]
EQUALLY_LONG = [[f"q{n:02}?", f"a{n * 7 % 23:02}"] for n in range(22)]
WHOLE = {
    "recipe": RECIPE, "facts": FACTS, "held_out": FACTS[3:7], "probe": [["hm", "well"]],
    "replay": True, "statistics": True, "key": "k",
}  # fmt: skip
SAVING = WHOLE | {"checkpoints": True}
#: Bytes left on a full disk: none, too few for the adapter, for the optimiser, for the last files.
LITTLE_ROOM = (0, 20_000, 300_000, 470_000)
#: How the two checkpoints of a broken-off training are found, or what else is found.
FOUND = ("both whole", "newest damaged", "both damaged", "of another key", "beside half-made ones")


def equally_long(batch_size: int, accumulation: int) -> dict[str, Any]:
    sizes = {"batch_size": batch_size, "accumulation": accumulation}
    return WHOLE | {"facts": EQUALLY_LONG, "recipe": RECIPE | sizes}


class Trainings:
    """Trainings of one base; each job is a file, and its results lie beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base = write_gguf(tiny_model(), directory / "base.gguf", "Q8_0")

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def checkpoints(self, name: str) -> Path:
        return self.path(name).with_suffix(".checkpoints")

    def order(self, path: Path, job: dict[str, Any]) -> Path:
        path.write_text(json.dumps({"base": f"gguf:{self.base}", **job}))
        return path

    def start(self, paths: Sequence[Path]) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.integration.train_tiny", *map(str, paths)],
                # One thread: on a model this small two mostly wait for each other.
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=log,
            )

    def train(self, *paths: Path) -> None:
        """Trains one after the other in one process."""
        assert self.start(paths).wait() == 0, (self.directory / "log").read_text()[-5000:]

    def result(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.path(name).with_suffix(".result.json").read_text())
        return result

    def digest(self, name: str) -> str:
        weights = self.path(name).with_suffix(".adapter") / "adapter_model.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest()

    def saved(self, name: str) -> list[tuple[int, list[str]]]:
        """The step that was told of, and what lay there then."""
        lines = self.path(name).with_suffix(".saved").read_text().splitlines()
        return [tuple(json.loads(line)) for line in lines]

    def own_state(self, name: str, step: int) -> dict[str, Any]:
        path = self.checkpoints(name) / f"step-{step}/ours.json"
        state: dict[str, Any] = json.loads(path.read_text())
        return state

    def steps_made(self, name: str) -> list[int]:
        return [report["step"] for report in self.result(name)["reports"]]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A disk of its own that can be filled up, where mounting is allowed."""
    directory = tmp_path_factory.mktemp("disk")
    mount, umount = shutil.which("mount"), shutil.which("umount")
    size = ["-t", "tmpfs", "-o", "size=16m", "tmpfs", str(directory)]
    if not mount or not umount or subprocess.run([mount, *size], check=False).returncode:
        yield None
        return
    yield directory
    subprocess.run([umount, str(directory)], check=True)


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    """The training that the others are compared with, and those that are broken off."""
    all_ = Trainings(tmp_path_factory.mktemp("jobs"))
    jobs = {
        "never stopped": WHOLE,
        "saving": SAVING,
        "stopped": SAVING | {"stop_at": STOPPED_AT},
        "no memory": SAVING | {"stop_at": 1, "stop_by": "memory"},
    }
    all_.train(*(all_.order(all_.path(name), job) for name, job in jobs.items()))

    killed = all_.start([all_.order(all_.path("killed"), SAVING)])
    while not (all_.checkpoints("killed") / "step-3").exists():
        assert killed.poll() is None, (all_.directory / "log").read_text()[-5000:]
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    return all_


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    """Trainings in batches of several sizes; one of them was broken off."""
    all_ = Trainings(tmp_path_factory.mktemp("accumulated"))
    threes = equally_long(3, 3)
    jobs = {
        "8 at once": equally_long(8, 1),
        "4 and 4": equally_long(4, 2),
        "4 at once": equally_long(4, 1),
        "3, 3, and 3": threes,
        "3, 3, and 3 stopped": threes | {"checkpoints": True, "stop_at": STOPPED_AT},
    }
    all_.train(*(all_.order(all_.path(name), job) for name, job in jobs.items()))
    all_.train(all_.order(all_.path("3, 3, and 3 stopped"), threes | {"checkpoints": True}))
    return all_


@pytest.fixture(scope="module")
def out_of_room(broken_off: Trainings, small_disk: Path | None) -> Trainings:
    """Trainings whose disk is full for a while; one of them goes on."""
    if small_disk is None:
        pytest.skip("nothing may be mounted here")
    paths = [
        broken_off.order(small_disk / f"{room}.json", SAVING | {"fill_at": 2, "leave_bytes": room})
        for room in LITTLE_ROOM
    ]
    broken_off.train(*paths)
    kept = (small_disk / f"{LITTLE_ROOM[2]}.json").with_suffix(".checkpoints")
    shutil.copytree(kept, broken_off.checkpoints("room again"))
    broken_off.train(broken_off.order(broken_off.path("room again"), SAVING))
    return broken_off


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lay_out(checkpoints: Path, found: str) -> None:
    """What a training finds that goes on."""
    newest, older = checkpoints / f"step-{STOPPED_AT}", checkpoints / f"step-{STOPPED_AT - 1}"
    if "damaged" in found:
        flip_a_bit(newest / "optimizer.pt")
    if found == "both damaged":
        flip_a_bit(older / "adapter_model.safetensors")
    if found == "beside half-made ones":
        partial = checkpoints.with_name(checkpoints.name + ".partial")
        shutil.copytree(older, partial / "checkpoint-9")
        shutil.copytree(older, checkpoints / "step-9.partial")
        shutil.copytree(older, checkpoints / "step-9")
        (checkpoints / "step-9" / "manifest.json").unlink()


@pytest.fixture(scope="module")
def gone_on(broken_off: Trainings) -> Trainings:
    """The trainings that go on, in a process that has not begun any of them."""
    all_ = broken_off
    paths = [all_.path("killed")]
    for found in FOUND:
        shutil.copytree(all_.checkpoints("stopped"), all_.checkpoints(found))
        lay_out(all_.checkpoints(found), found)
        key = {"key": "another" if found == "of another key" else SAVING["key"]}
        paths.append(all_.order(all_.path(found), SAVING | key))
    all_.train(*paths)
    return all_


def losses_of(result: dict[str, Any]) -> list[float]:
    return [report["loss"] for report in result["reports"]]


def check_same(all_: Trainings, name: str, as_: str = "never stopped") -> None:
    """That a training came out as one that was never broken off."""
    assert all_.digest(name) == all_.digest(as_)
    own, wanted = all_.result(name), all_.result(as_)
    for key in ("final_loss", "steps", "held_out_losses", "divergence", "held_out", "unrelated"):
        assert own["adapter"][key] == wanted["adapter"][key] is not None
    for key in ("divergences", "rates", "optimizer"):
        assert own[key] == wanted[key]
    made = len(own["reports"])
    assert losses_of(own) == losses_of(wanted)[-made:]
    statistics = all_.path(as_).with_suffix(".statistics")
    files = sorted(path.name for path in statistics.iterdir())
    assert files
    for file in files:
        other = all_.path(name).with_suffix(".statistics") / file
        assert other.read_bytes() == (statistics / file).read_bytes()
    assert not list(all_.directory.glob(f"{name}*.partial"))


def test_saving_changes_nothing(broken_off: Trainings) -> None:
    """The reference is the training without any checkpoint."""
    check_same(broken_off, "saving")
    assert not broken_off.checkpoints("never stopped").exists()


def test_the_newest_two_are_kept_and_all_are_whole_when_told(broken_off: Trainings) -> None:
    """The state after the last step is the adapter itself."""
    saved = broken_off.saved("saving")
    assert [step for step, _ in saved] == list(range(1, STEPS))
    for step, names in saved:
        assert set(names) == {f"step-{n}" for n in (step - 1, step) if n}
    assert broken_off.result("stopped") == {"error": "stopped", "cause": str(STOPPED_AT)}
    left = {path.name for path in broken_off.checkpoints("stopped").iterdir()}
    assert left == {f"step-{STOPPED_AT - 1}", f"step-{STOPPED_AT}"}
    assert not list(broken_off.directory.glob("stopped*.partial"))


@pytest.mark.parametrize(
    ("found", "first"),
    [
        ("both whole", STOPPED_AT + 1),
        ("newest damaged", STOPPED_AT),
        ("both damaged", 1),
        ("of another key", 1),
        ("beside half-made ones", STOPPED_AT + 1),
    ],
)
def test_a_training_goes_on_from_the_newest_whole_checkpoint(
    gone_on: Trainings, found: str, first: int
) -> None:
    """In the middle of an epoch or at its end, with some of the penalties and readings behind."""
    check_same(gone_on, found)
    assert gone_on.steps_made(found) == list(range(first, STEPS + 1))
    left = {path.name for path in gone_on.checkpoints(found).iterdir()}
    assert left == {f"step-{STEPS - 2}", f"step-{STEPS - 1}"}


def test_a_killed_training_goes_on_to_the_same_end(gone_on: Trainings) -> None:
    """Whatever it was doing when it was killed."""
    check_same(gone_on, "killed")
    assert gone_on.steps_made("killed")[0] > 3


@pytest.mark.slow
def test_accumulated_batches_go_on_to_the_same_end(accumulated: Trainings) -> None:
    """Eight batches an epoch: the third step of each has two, the others three."""
    check_same(accumulated, "3, 3, and 3 stopped", as_="3, 3, and 3")
    assert accumulated.steps_made("3, 3, and 3 stopped")[0] == STOPPED_AT + 1


def test_seconds_add_up_and_rates_are_of_this_process(gone_on: Trainings) -> None:
    """The time left would be a lie if steps of an earlier process counted as made in no time."""
    before = gone_on.own_state("stopped", STOPPED_AT)
    after = gone_on.own_state("both whole", STEPS - 1)
    result = gone_on.result("both whole")
    seconds = result["adapter"]["seconds"]
    took = result["told_at"][-1] - result["told_at"][0]
    assert seconds["steps"] >= before["seconds"] + took
    assert seconds["replay"] > before["replay"]["seconds"] > 0
    # What a third process would add to.
    took_by_then = result["told_at"][-2] - result["told_at"][0]
    assert after["seconds"] >= before["seconds"] + took_by_then
    first = result["reports"][0]
    assert first["step"] == STOPPED_AT + 1
    own_steps = STEPS - STOPPED_AT
    tokens = first["tokens_per_s"] * first["left_s"] / (own_steps - 1)
    assert tokens / result["reports"][-1]["tokens_per_s"] * own_steps >= took


def tokens_a_step(result: dict[str, Any]) -> float:
    """Of the first step, by its own figures."""
    report = result["reports"][0]
    return float(report["tokens_per_s"] * report["left_s"] / (report["steps"] - report["step"]))


@pytest.mark.slow
def test_accumulated_batches_are_one_batch(accumulated: Trainings) -> None:
    """Where memory is short, the same training in smaller batches."""
    at_once, in_two, fewer = (
        accumulated.result(name) for name in ("8 at once", "4 and 4", "4 at once")
    )
    assert losses_of(in_two) == pytest.approx(losses_of(at_once), abs=0.03)
    assert losses_of(fewer) != pytest.approx(losses_of(at_once), abs=0.1)
    assert in_two["arguments"]["per_device_train_batch_size"] == 4
    assert tokens_a_step(in_two) == pytest.approx(tokens_a_step(at_once))
    assert tokens_a_step(fewer) == pytest.approx(tokens_a_step(at_once) / 2)


@pytest.mark.slow
def test_replay_is_computed_once_a_step(accumulated: Trainings) -> None:
    """Twice as strong, or for twice the time, if each batch had its own."""
    at_once, in_two = (accumulated.result(name) for name in ("8 at once", "4 and 4"))
    assert len(in_two["divergences"]) == len(at_once["divergences"]) == STEPS // 2
    assert in_two["divergences"] == pytest.approx(at_once["divergences"], rel=0.1)


def test_memory_that_runs_out_is_told_with_the_batch_size(broken_off: Trainings) -> None:
    """It is the setting that whoever reads this can change."""
    result = broken_off.result("no memory")
    assert result["error"] == "out_of_memory"
    assert "batch_size of 8" in result["cause"]


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_what_was_whole(
    out_of_room: Trainings, small_disk: Path | None
) -> None:
    """Whichever file it is that finds no room."""
    assert small_disk is not None
    told = set()
    for room in LITTLE_ROOM:
        path = small_disk / f"{room}.json"
        result = json.loads(path.with_suffix(".result.json").read_text())
        assert result["error"] == "disk_full", result
        told.add(result["cause"].split(":")[0])
        left = {found.name for found in path.with_suffix(".checkpoints").iterdir()}
        assert left == {"step-1", "step-2"}
        assert not path.with_suffix(".adapter").exists()
    assert not list(small_disk.glob("*.partial"))
    assert len(told) == 3, "the system, safetensors, and torch"
    check_same(out_of_room, "room again")
    assert out_of_room.steps_made("room again")[0] == 3


class Control:
    should_save = should_training_stop = False


class State:
    def __init__(self, step: int) -> None:
        self.global_step = step


class Time:
    """A clock that stands still unless it is told otherwise."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(_checkpoints, "time", clock)
    return clock


def job(directory: Path, every_s: float, **more: Any) -> TrainJob:
    return TrainJob(
        base=BaseGguf(name="none", gguf=Path("none"), digest="0" * 64),
        examples=(),
        recipe=Recipe(**RECIPE),
        out=directory / "adapter",
        cache=directory,
        checkpoints=directory / "checkpoints",
        key="k",
        checkpoint_every_s=every_s,
        **more,
    )


def steps_saved(checkpoints: Checkpoints, clock: Time, saving_s: float) -> list[float]:
    """When something is saved in 400 steps of a second."""
    callback: Any = checkpoints.callback()
    control, saved = Control(), []
    callback.on_train_begin(None, State(0), control)
    began = clock.now
    for step in range(1, 401):
        clock.now += 1
        callback.on_log(None, State(step), control)
        if control.should_save:
            control.should_save = False
            saved.append(clock.now - began)
            (checkpoints.partial / f"checkpoint-{step}").mkdir()
            clock.now += saving_s
            callback.on_save(None, State(step), control)
    return saved


@pytest.mark.parametrize(
    ("every_s", "saving_s", "saved"),
    [
        (30, 0.0, list(range(30, 401, 30))),
        # 100 s after the end of each, since each takes two.
        (30, 2.0, [30, 132, 234, 336]),
        (0, 2.0, list(range(1, 1200, 3))),
    ],
)
def test_saving_takes_little_of_the_time(
    tmp_path: Path, clock: Time, every_s: float, saving_s: float, saved: list[float]
) -> None:
    """A checkpoint of a large model takes long, and few of them are as good as many."""
    with open_checkpoints(job(tmp_path, every_s)) as checkpoints:
        assert steps_saved(checkpoints, clock, saving_s) == saved
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_saved_at_the_end(tmp_path: Path) -> None:
    """Neither after the last step nor where a loss is no number."""
    with open_checkpoints(job(tmp_path, 0.0)) as checkpoints:
        callback: Any = checkpoints.callback()
        control = Control()
        control.should_training_stop = True
        callback.on_log(None, State(3), control)
        assert not control.should_save
