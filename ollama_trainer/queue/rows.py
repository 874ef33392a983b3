"""A run as it is stored, and what is stored when one is submitted."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.names import model_name
from ollama_trainer.records import (
    DatasetOptions,
    ErrorInfo,
    Progress,
    RunResult,
    RunSpec,
    RunState,
    TrainingOptions,
    Waiting,
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
    dataset: DatasetOptions | None = None

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
                "name_prefix": settings.name_prefix,
                "model_name": model_name(
                    settings.name_prefix, self.job_id, self.run_id, settings.name_template
                ),
                "cache_dir": DataDirectory(settings.data_dir).cache,
                "training": self.training or settings.training,
                "dataset": self.dataset or settings.dataset,
                "fidelity": settings.fidelity,
                "rounding": settings.rounding,
                "checkpoint_every_s": settings.checkpoint_every_s,
                "cache_gigabytes": settings.cache_gigabytes,
                "ollama_memory": settings.ollama_memory,
            }
        )


class Run(NamedTuple):
    """One row of the table `runs`, its columns in their order.

    What is stored as JSON is read when it is asked for: most readers want one part of a run. A
    tuple, since one is made for every request, and a frozen dataclass takes several times as long.
    """

    #: Order of acceptance, from 1.
    seq: int
    run_id: str
    job_id: str
    dataset_ref: str
    experiment_label: str | None
    fingerprint: str
    spec_json: str | None
    state: RunState
    #: Fencing number, 0 before the first attempt.
    attempt: int
    #: Workers lost in a row since something was saved last.
    losses: int
    #: How often the batch was halved because memory ran out.
    halvings: int
    waiting_json: str | None
    #: While the run waits: no attempt begins before.
    not_before: str | None
    cancel_requested_at: str | None
    #: Bytes of the worker's events that are stored.
    events_offset: int
    #: Lower-case hex; None until the data set is copied.
    dataset_sha256: str | None
    dataset_bytes: int | None
    progress_json: str | None
    error_json: str | None
    result_json: str | None
    #: Set exactly when the run is completed.
    output_model_ref: str | None
    #: Times are ISO 8601 in UTC.
    created_at: str
    started_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        values = list(row)
        values[_STATE] = RunState(values[_STATE])
        return cls._make(values)

    @property
    def spec(self) -> RunSpec | None:
        """None where the request was refused."""
        return RunSpec.model_validate_json(self.spec_json) if self.spec_json else None

    @property
    def waiting(self) -> Waiting | None:
        """What went wrong in a way that may pass, since the run got further last."""
        return Waiting.model_validate_json(self.waiting_json) if self.waiting_json else None

    @property
    def progress(self) -> Progress | None:
        return Progress.model_validate_json(self.progress_json) if self.progress_json else None

    @property
    def error(self) -> ErrorInfo | None:
        return ErrorInfo.model_validate_json(self.error_json) if self.error_json else None

    @property
    def result(self) -> RunResult | None:
        return RunResult.model_validate_json(self.result_json) if self.result_json else None


_STATE = Run._fields.index("state")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One row of the table `attempts`: one start of a worker."""

    token: int
    run_seq: int
    task: Literal["run", "publish", "withdraw"]
    attempt: int
    worker_pid: int | None
    #: Seconds since the epoch.
    worker_started: float | None
    started_at: str
    heartbeat_at: str | None
    ended_at: str | None
    outcome: str | None
    error_json: str | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        values = dict(zip(row.keys(), row, strict=True))
        values["error_json"] = values.pop("error")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One row of the table `events`."""

    #: Grows over all runs: a reader goes on after the last one that it has.
    id: int
    attempt: int
    time: str
    kind: str
    message: str
    progress_json: str | None
    data_json: str

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        return cls(
            id=row["id"],
            attempt=row["attempt"],
            time=row["time"],
            kind=row["kind"],
            message=row["message"],
            progress_json=row["progress"],
            data_json=row["data"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One row of the table `publications`: a finished run's model, published once more."""

    id: int
    run_seq: int
    publisher: Literal["ollama", "folder"]
    state: RunState
    losses: int
    output_model_ref: str | None
    error_json: str | None
    requested_at: str
    finished_at: str | None

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        values = {name: row[name] for name in row.keys() if name != "run_id"}  # noqa: SIM118
        values["error_json"] = values.pop("error")
        return cls(**values | {"state": RunState(values["state"])})
