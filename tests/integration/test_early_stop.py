"""The end of a training whose rows are learned and that learns no more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.backends import Recipe, TrainJob
from ollama_trainer.backends._early_stop import early_stop_callback, may_end
from ollama_trainer.records import BaseGguf, TokenizedExample
from tests.tiny_models import tiny_model

ROW = TokenizedExample(ids=tuple(range(5, 30)), mask=(0,) * 10 + (1,) * 15)


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 2.0, 1.0, 0.5, 0.3], False),
        # Two in a row without a new best.
        ([3.0, 1.0, 1.1], False),
        ([3.0, 1.0, 1.1, 1.2], True),
        ([3.0, 1.0, 1.1, 0.9], False),
        # Better by less than a fiftieth is no new best.
        ([1.0, 0.995, 0.985], True),
        ([1.0, 0.97, 0.94, 0.91, 0.88], False),
        # Nothing is left to learn.
        ([3.0, 0.001], True),
        ([0.001], True),
    ],
)
def test_when_a_training_may_end(losses: list[float], ends: bool) -> None:
    """Too early, and something is not learned; too late, and rows are learned by heart."""
    assert may_end(losses, rows=0.001) is ends
    assert not may_end(losses, rows=0.05), "the rows are what was asked for"
    assert not may_end(losses, rows=math.nan)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a model this small two mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))


def job(steps: int = 60, *held_out: TokenizedExample) -> TrainJob:
    recipe = Recipe(
        rank=4, alpha=8, target_modules=("q_proj",), layers=(0, 1), learning_rate=1e-3, steps=steps,
        warmup_steps=1, batch_size=1, max_length=64, seed=1,
    )  # fmt: skip
    return TrainJob(
        base=BaseGguf(name="none", gguf=Path("none"), digest="0" * 64),
        examples=(ROW,),
        recipe=recipe,
        held_out=held_out,
        out=Path("none"),
        cache=Path("none"),
    )


class Control:
    should_training_stop = False


class State:
    def __init__(self, step: int, loss: float = 0.001) -> None:
        self.global_step = step
        self.log_history = [{"loss": loss}] * (step - 1)


@pytest.mark.parametrize(("steps", "every"), [(20, 5), (60, 12), (400, 80)])
def test_the_held_out_rows_are_read_five_times_at_most(model: Any, steps: int, every: int) -> None:
    """Each reading costs as much as a step or two."""
    held_out: list[float] = []
    callback: Any = early_stop_callback(model, job(steps, ROW), held_out)
    read_at = []
    for step in range(1, steps + 1):
        before = len(held_out)
        callback.on_step_end(None, State(step), Control())
        if len(held_out) > before:
            read_at.append(step)
    assert read_at == list(range(every, steps + 1, every))


@pytest.mark.parametrize(("loss", "ends"), [(0.001, True), (0.05, False)])
def test_a_training_ends_when_it_learns_no_more(model: Any, loss: float, ends: bool) -> None:
    """The model does not change here, so two readings after the first say so."""
    control = Control()
    callback: Any = early_stop_callback(model, job(100, ROW), [])
    for step in range(1, 61):
        assert not control.should_training_stop
        callback.on_step_end(None, State(step, loss), control)
    assert control.should_training_stop is ends


def test_without_held_out_rows_a_training_goes_to_its_end(model: Any) -> None:
    """There is nothing to judge it by."""
    control = Control()
    held_out: list[float] = []
    callback: Any = early_stop_callback(model, job(), held_out)
    for step in range(1, 61):
        callback.on_step_end(None, State(step), control)
    assert not control.should_training_stop
    assert held_out == []
