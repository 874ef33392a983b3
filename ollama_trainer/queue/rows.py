"""A run as it is stored, and what is stored when one is submitted."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Self

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.names import model_name
from ollama_trainer.records import (
    ErrorInfo,
    Progress,
    RunResult,
    RunSpec,
    RunState,
    TrainingOptions,
)
from ollama_trainer.settings import Settings
from ollama_trainer.workspace import DataDirectory


class RunIdTaken(InvalidRequest):
    """A run id came again with another request."""

    code = "run_id_taken"

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"runId '{run_id}' already stands for another request", "Submit with a fresh UUID."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a caller asked for."""

    run_id: str
    job_id: str
    #: As the caller gave it; not checked yet.
    dataset_ref: str
    #: SHA-256 of the request's meaning, hex: the same for a repeated request.
    fingerprint: str
    experiment_label: str | None = None
    #: None means: as the settings say.
    base: str | None = None
    publisher: str | None = None
    quantization: str | None = None
    training: TrainingOptions | None = None

    def spec(self, settings: Settings) -> RunSpec:
        """All that the worker needs, settled now: a later change of settings changes nothing."""
        return RunSpec.model_validate(
            {
                "run_id": self.run_id,
                "job_id": self.job_id,
                "dataset_ref": self.dataset_ref,
                "base": self.base or settings.base,
                "backend": settings.backend,
                "publisher": self.publisher or settings.publisher,
                "quantization": self.quantization or settings.quantization,
                "ollama_host": settings.ollama_host,
                "model_name": model_name(settings.name_prefix, self.job_id, self.run_id),
                "cache_dir": DataDirectory(settings.data_dir).cache,
                "training": self.training or settings.training,
                "fidelity": settings.fidelity,
                "rounding": settings.rounding,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of the table `runs`."""

    #: Order of acceptance, from 1.
    seq: int
    run_id: str
    job_id: str
    dataset_ref: str
    experiment_label: str | None
    fingerprint: str
    #: None where the request was refused.
    spec: RunSpec | None
    state: RunState
    #: Fencing number, 0 before the first attempt.
    attempt: int
    #: Attempts whose worker was lost together with its server.
    losses: int
    worker_pid: int | None
    #: Seconds since the epoch.
    worker_started: float | None
    #: Lower-case hex; None until the data set is copied.
    dataset_sha256: str | None
    dataset_bytes: int | None
    progress: Progress | None
    error: ErrorInfo | None
    result: RunResult | None
    #: Set exactly when the run is completed.
    output_model_ref: str | None
    #: Times are ISO 8601 in UTC.
    created_at: str
    started_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        values = dict(zip(row.keys(), row, strict=True))
        values["state"] = RunState(values["state"])
        for name, kind in _JSON_COLUMNS.items():
            if values[name] is not None:
                values[name] = kind.model_validate_json(values[name])
        return cls(**values)


_JSON_COLUMNS: dict[str, type[RunSpec | Progress | ErrorInfo | RunResult]] = {
    "spec": RunSpec,
    "progress": Progress,
    "error": ErrorInfo,
    "result": RunResult,
}
