"""What commands that look at this machine tell, as it travels between processes and as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class LocalBase(_Report):
    """A model in Ollama, as a base."""

    #: Ollama's canonical name.
    name: str
    #: Of what Ollama keeps for it, in bytes.
    n_bytes: int
    #: SHA-256 of its manifest in Ollama, hex: the same for two names of one model.
    digest: str
    architecture: str = ""
    #: Type of most of its weights, in Ollama's words.
    quantization: str = ""
    n_parameters: int | None = None
    trainable: bool
    #: Why not, and what helps.
    reason: str = ""
    remedy: str = ""
    #: What is worth knowing of one that is.
    notes: tuple[str, ...] = ()
    #: Whether this program made it.
    tuned: bool = False
    #: Estimated memory that a training of it takes, in bytes (pipeline/memory.py).
    needs_bytes: int | None = None


class Memory(_Report):
    """What is free on this machine just now, in bytes."""

    free_bytes: int
    total_bytes: int
    #: Of the first GPU; None where there is none.
    gpu_free_bytes: int | None = None
    gpu_total_bytes: int | None = None
    gpu: str = ""

    @property
    def usable_bytes(self) -> int:
        """What a training has: the GPU's where there is one."""
        return self.free_bytes if self.gpu_free_bytes is None else self.gpu_free_bytes


class BasesReport(_Report):
    """The local models, and what room there is to train them."""

    #: Where Ollama answers.
    ollama: str
    memory: Memory
    models: tuple[LocalBase, ...]


class ModelVersion(_Report):
    """A model in Ollama that a run made."""

    #: Ollama's canonical name.
    name: str
    #: The job's alias, where that stands for this version.
    alias: str = ""
    #: Further names of it, that somebody else gave.
    copies: tuple[str, ...] = ()
    job: str
    run: str
    #: A name in Ollama, or what its file calls its base.
    base: str
    #: Of what Ollama keeps for it.
    n_bytes: int
    #: What removing it and its alias would free: nothing where another model has its weights.
    frees_bytes: int
    #: Of its upload, where Ollama wrote the file anew: it frees that only when it is restarted.
    upload_bytes: int = 0
    made_at: datetime
    #: Whether it is in memory now.
    loaded: bool


class ModelsReport(_Report):
    """The models of this program's in Ollama, job by job, the newest first."""

    #: Where Ollama answers.
    ollama: str
    models: tuple[ModelVersion, ...]


class Told(_Report):
    """A model, and something about it in words."""

    name: str
    what: str


class RemovalReport(_Report):
    """What was removed, or would be."""

    ollama: str
    dry_run: bool
    removed: tuple[str, ...]
    #: Those that stay, with the reason.
    kept: tuple[Told, ...] = ()
    #: Those that could not be removed, with the reason.
    failed: tuple[Told, ...] = ()
    freed_bytes: int
    #: What nothing uses any more and Ollama frees when it is restarted.
    at_restart_bytes: int


class Check(_Report):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warn", "fail"]
    #: What was found.
    found: str
    #: What to do about it; empty where nothing is to be done.
    remedy: str = ""


class DoctorReport(_Report):
    """Whether this machine can train, line by line."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        return any(check.state == "fail" for check in self.checks)
