"""What trains: one file a backend, all of them behind one function.

    train(job, report) -> Adapter

A backend is imported only inside the worker process: Unsloth patches transformers, TRL and PEFT
for the whole process, and torch holds hundreds of megabytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from ollama_trainer.errors import BackendUnavailable
from ollama_trainer.records import Adapter, BaseGguf, Method, Progress, ReplayText, TokenizedExample

#: Names that `backend` may have, each a module of this package.
BACKENDS = ("unsloth",)
#: How they can train.
METHODS: tuple[Method, ...] = ("sft",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every hyperparameter of a run, settled: nothing is left to a library's default."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    #: Indices of the layers whose modules are trained.
    layers: tuple[int, ...]
    #: Peak learning rate.
    learning_rate: float
    #: Optimiser steps, warm-up included.
    steps: int
    warmup_steps: int
    #: Examples on the device at once.
    batch_size: int
    #: Batches whose gradients are summed up for a step.
    accumulation: int = 1
    #: Longest example in tokens.
    max_length: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """How a training is held to its base; a weight of 0 means that it is not."""

    #: Texts that are read together, of about one length.
    batches: tuple[tuple[ReplayText, ...], ...] = ()
    #: The penalty's factor beside the loss of the examples, on average over the steps.
    weight: float = 0.0
    #: It is computed at one step in so many, for the batches in turns.
    every: int = 1

    @property
    def is_on(self) -> bool:
        return self.weight > 0

    def batch_of(self, step: int) -> tuple[ReplayText, ...] | None:
        """What is replayed at optimiser step `step`, if anything is."""
        turn, rest = divmod(step, self.every)
        return self.batches[turn % len(self.batches)] if self.is_on and rest == 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What a backend gets."""

    base: BaseGguf
    examples: tuple[TokenizedExample, ...]
    recipe: Recipe
    replay: ReplayPlan = ReplayPlan()
    #: What the trained model is asked to read at the end; never trained on.
    held_out: tuple[TokenizedExample, ...] = ()
    probe: tuple[TokenizedExample, ...] = ()
    #: Directory for the adapter; does not exist yet.
    out: Path
    #: Directory for statistics of the layers' inputs; does not exist yet. None: none are gathered.
    statistics: Path | None = None
    #: Directory for what several runs share.
    cache: Path
    #: Directory for checkpoints; a training goes on from the newest whole one that it holds. None:
    #: none are made.
    checkpoints: Path | None = None
    #: SHA-256 of everything that the training follows from; checkpoints of another are not used.
    key: str = ""
    #: Seconds of training between two checkpoints; 0: one after every step.
    checkpoint_every_s: float = 30.0
    #: Called with the step of each checkpoint, once it would survive a crash.
    saved: Callable[[int], None] = lambda _step: None


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeMemory:
    """What is free where a backend trains."""

    n_bytes: int
    #: Whether that is a device's own memory, not the machine's.
    on_gpu: bool


class Backend(Protocol):
    """A module of this package."""

    def free_memory(self, cache: Path) -> FreeMemory:
        """What is free just now where it would train.

        Args:
            cache: directory for what several runs share.

        Raises:
            BackendUnavailable: its packages are not installed.
        """
        ...

    def train(self, job: TrainJob, report: Callable[[Progress], None]) -> Adapter: ...


def get(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BackendUnavailable: there is no such backend, or its packages are not installed.
    """
    if name not in BACKENDS:
        raise BackendUnavailable(
            f"The backend {name!r} is unknown", f"Use one of: {', '.join(BACKENDS)}."
        )
    return cast(Backend, importlib.import_module(f"{__name__}.{name}"))
