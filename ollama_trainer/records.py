"""The typed records that flow between the parts.

Records that are written to files or sent to clients are pydantic models, so that what is read
back is validated; records that stay inside one process are frozen dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ollama_trainer.errors import TrainerError


class RunState(StrEnum):
    """The four words that a client may see."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        return self in (RunState.COMPLETED, RunState.FAILED)


class Stage(StrEnum):
    """The stages of a run, in their order."""

    BASE = "base"
    DATASET = "dataset"
    TRAIN = "train"
    EXPORT = "export"
    VERIFY = "verify"
    PUBLISH = "publish"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingOptions(_Record):
    """What the trainer does where the run does not say otherwise.

    `None` means: chosen from the number of examples and the size of the base.
    """

    rank: int = Field(16, ge=1, le=512, description="Rank of the LoRA matrices.")
    alpha: int = Field(
        32, ge=1, le=1024, description="The adapter's output is scaled by alpha / rank."
    )
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak learning rate.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps.")
    batch_size: int | None = Field(None, ge=1, description="Examples a step.")
    max_length: int = Field(
        2048, ge=16, description="Longest example in tokens; longer ones are dropped by name."
    )
    seed: int = Field(1, ge=0, lt=2**32, description="Of everything that is drawn at random.")


class RunSpec(_Record):
    """All that a worker needs to know of a run, as it was settled when the run was accepted."""

    run_id: str
    job_id: str
    #: The path that the caller gave; the worker reads the snapshot in the run directory.
    dataset_ref: str
    base: str
    backend: str
    publisher: Literal["ollama", "folder"]
    quantization: str
    ollama_host: str
    #: Ollama's name for the result, `<prefix><job slug>:<run id>`, lower case.
    model_name: str
    #: Directory for what several runs share (caches by digest).
    cache_dir: Path
    training: TrainingOptions = TrainingOptions()


class ErrorInfo(_Record):
    """An error as it is stored and shown."""

    code: str
    cause: str
    remedy: str = ""
    retryable: bool = False

    @classmethod
    def of(cls, error: TrainerError) -> ErrorInfo:
        return cls(
            code=error.code, cause=error.cause, remedy=error.remedy, retryable=error.retryable
        )

    def __str__(self) -> str:
        return f"{self.cause}. {self.remedy}" if self.remedy else self.cause


class Progress(_Record):
    """How far a run is. Numbers are absent where they make no sense."""

    stage: Stage
    #: 0 to 1, of the stage.
    fraction: float = Field(0.0, ge=0, le=1)
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    #: Estimated seconds until the stage ends.
    left_s: float | None = None


class Event(_Record):
    """One line of a run's events.jsonl."""

    time: datetime
    kind: Literal["stage", "progress", "note"]
    message: str = ""
    progress: Progress | None = None
    data: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def now(
        cls,
        kind: Literal["stage", "progress", "note"],
        message: str = "",
        progress: Progress | None = None,
        **data: Any,
    ) -> Event:
        return cls(time=datetime.now(UTC), kind=kind, message=message, progress=progress, data=data)


class RunResult(_Record):
    """How a worker ended: the last file that it writes into the run directory."""

    status: Literal["completed", "failed"]
    #: Ollama's canonical name, or the GGUF's absolute path when the publisher is `folder`.
    output_model_ref: str | None = None
    gguf: Path | None = None
    modelfile: Path | None = None
    error: ErrorInfo | None = None
    #: Wall-clock seconds of each stage.
    seconds: dict[str, float] = Field(default_factory=dict)
    #: Figures worth keeping (rows used, final loss, bytes written, …).
    metrics: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One prompt with the answer to learn, as plain text."""

    prompt: str
    completion: str
    #: 1-based line in the data set.
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What was read from a data set file."""

    examples: tuple[Example, ...]
    rows_read: int
    #: Reason -> line numbers of the rows that were dropped for it.
    dropped: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedExample:
    """Token ids of prompt and answer; the loss is taken where `mask` is 1.

    `ids` and `mask` have the same length, shape (tokens,).
    """

    ids: tuple[int, ...]
    mask: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseGguf:
    """A base model on disk."""

    #: The name that the caller used.
    name: str
    gguf: Path
    #: SHA-256 of the GGUF file, lower-case hex.
    digest: str
    license: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A PEFT adapter directory (adapter_config.json, adapter_model.safetensors)."""

    path: Path
    #: Loss of the last logged step, in nats a token.
    final_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """Where the finished model can be found."""

    #: What the caller is told: Ollama's canonical name, or an absolute path.
    ref: str
    #: The line to type next.
    next_command: str
