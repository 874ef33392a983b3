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
from ollama_trainer.records import Adapter, BaseGguf, Progress, TokenizedExample

#: Names that `backend` may have, each a module of this package.
BACKENDS = ("unsloth",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every hyperparameter of a run, settled: nothing is left to a library's default."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    #: Peak learning rate.
    learning_rate: float
    #: Optimiser steps, warm-up included.
    steps: int
    warmup_steps: int
    #: Examples a step, on the device at once.
    batch_size: int
    #: Longest example in tokens.
    max_length: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What a backend gets."""

    base: BaseGguf
    examples: tuple[TokenizedExample, ...]
    recipe: Recipe
    #: Directory for the adapter; does not exist yet.
    out: Path
    #: Directory for what several runs share.
    cache: Path


class Backend(Protocol):
    """A module of this package."""

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
