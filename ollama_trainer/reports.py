"""What the commands `bases` and `doctor` tell, as it travels between processes and as JSON."""

from __future__ import annotations

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
