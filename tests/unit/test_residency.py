"""What is done before a training where Ollama holds memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from ollama_trainer.backends import FreeMemory
from ollama_trainer.errors import MemoryHeld, PublishError
from ollama_trainer.pipeline import residency
from ollama_trainer.pipeline.residency import Action, Mode, Shortage, decide

MODES: tuple[Mode, ...] = ("share", "unload", "wait")


def shortage(free: int, held: Mapping[str, int], needed: int = 100) -> Shortage:
    return Shortage(needed=needed, free=free, held=held)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("free", [100, 5000])
def test_enough_memory_is_all_that_counts(mode: Mode, free: int) -> None:
    assert decide(shortage(free, {"a": 60, "b": 9000}), mode) == "train"


@pytest.mark.parametrize(
    ("mode", "action"), [("share", "train anyway"), ("unload", "unload"), ("wait", "wait")]
)
@pytest.mark.parametrize("held", [{"a": 60}, {"a": 30, "b": 30}, {"a": 5000}])
def test_a_shortage_that_ollama_makes_is_settled_as_set(
    mode: Mode, action: Action, held: dict[str, int]
) -> None:
    assert decide(shortage(40, held), mode) == action


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("held", [{}, {"a": 59}, {"a": 29, "b": 30}])
def test_nobody_is_disturbed_where_it_would_not_help(mode: Mode, held: dict[str, int]) -> None:
    assert decide(shortage(40, held), mode) == "train anyway"


class Ollama:
    """What residency.py asks of one, with a clock that only its pauses move."""

    def __init__(self, sizes: dict[str, tuple[int, int]], free: int) -> None:
        #: Model -> bytes that it takes, and those of them on GPUs.
        self.sizes = sizes
        self.free = free
        #: Model -> seconds until it has answered; `inf`: it always answers somebody.
        self.answers_for_s: dict[str, float] = {}
        self.unknown: set[str] = set()
        self.asked: list[str] = []
        self.now = 0.0

    def held_bytes(self) -> dict[str, tuple[int, int]]:
        for model in self.asked:
            if self.now >= self.answers_for_s.get(model, 0.0) and model in self.sizes:
                self.free += self.sizes.pop(model)[0]
        return dict(self.sizes)

    def unload(self, model: str) -> None:
        if model in self.unknown:
            raise PublishError(f"model '{model}' not found")
        self.asked.append(model)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    def run(ollama: Ollama, mode: Mode = "unload", *, on_gpu: bool = True) -> list[str]:
        monkeypatch.setattr(time, "sleep", ollama.sleep)
        monkeypatch.setattr(time, "monotonic", lambda: ollama.now)
        notes: list[str] = []

        def note(message: str, data: Mapping[str, Any]) -> None:
            assert set(data) == {"needed_bytes", "free_bytes", "ollama_bytes"}
            notes.append(message)

        def measure() -> FreeMemory:
            return FreeMemory(n_bytes=ollama.free, on_gpu=on_gpu)

        residency._settle(cast("Any", ollama), mode, 100, measure, note)
        return notes

    return run


def test_idle_models_leave_and_it_is_noted(settle: Callable[..., list[str]]) -> None:
    ollama = Ollama({"a:1": (30, 30), "b:1": (40, 40)}, free=40)
    (note,) = settle(ollama)
    assert (ollama.asked, ollama.free) == (["a:1", "b:1"], 110)
    assert "a:1, b:1" in note
    assert "unloaded" in note


def test_an_answer_is_waited_for(settle: Callable[..., list[str]]) -> None:
    ollama = Ollama({"a:1": (80, 80)}, free=40)
    ollama.answers_for_s["a:1"] = 30.0
    settle(ollama)
    assert ollama.free == 120
    assert 30.0 <= ollama.now < 32.0


def test_a_model_that_stays_has_the_run_wait(settle: Callable[..., list[str]]) -> None:
    ollama = Ollama({"a:1": (80, 80), "b:1": (1, 1)}, free=40)
    ollama.answers_for_s["a:1"] = float("inf")
    with pytest.raises(MemoryHeld) as caught:
        settle(ollama)
    assert caught.value.retryable
    assert "a:1" in caught.value.cause
    assert "b:1" not in caught.value.cause, "it has left"
    assert "ollama stop a:1" in caught.value.remedy


def test_a_small_model_that_stays_is_no_reason_to_wait(settle: Callable[..., list[str]]) -> None:
    ollama = Ollama({"a:1": (80, 80), "b:1": (1, 1)}, free=40)
    ollama.answers_for_s["b:1"] = float("inf")
    settle(ollama)
    assert ollama.free == 120
    assert ollama.now < 1.0


def test_weights_whose_name_is_gone_cannot_be_asked_to_leave(
    settle: Callable[..., list[str]],
) -> None:
    ollama = Ollama({"gone:1": (80, 80), "b:1": (1, 1)}, free=40)
    ollama.unknown.add("gone:1")
    with pytest.raises(MemoryHeld, match="gone:1"):
        settle(ollama)
    assert ollama.asked == ["b:1"], "the others were asked all the same"


def test_memory_that_does_not_come_free_is_noted(settle: Callable[..., list[str]]) -> None:
    """What Ollama tells of a model is an estimate as well."""
    ollama = Ollama({"a:1": (80, 80)}, free=40)
    ollama.sizes["a:1"] = (30, 80)
    notes = settle(ollama)
    assert ollama.free == 70
    assert [note.split(":")[0] for note in notes] == [
        "models are unloaded from Ollama", "memory may be short",
    ]  # fmt: skip
    assert ollama.now < 10


@pytest.mark.parametrize("mode", MODES)
def test_only_what_lies_where_the_training_is_counts(
    settle: Callable[..., list[str]], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    in_memory = Ollama({"a:1": (80, 0), "b:1": (100, 50)}, free=40)
    assert settle(in_memory, mode, on_gpu=True)[0].startswith("memory may be short")
    on_gpu = Ollama({"a:1": (80, 80), "b:1": (80, 30)}, free=40)
    assert settle(on_gpu, mode, on_gpu=False)[0].startswith("memory may be short")
    assert in_memory.asked == on_gpu.asked == []


def test_a_mac_has_one_memory_for_both(
    settle: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(MemoryHeld):
        settle(Ollama({"a:1": (80, 80)}, free=40), "wait", on_gpu=False)
