"""What travels over HTTP. camelCase lives only here.

Errors, of requests and of runs alike, are `error` (a sentence with cause and remedy) and
`error_code`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ollama_trainer.errors import InvalidRequest, TrainerError
from ollama_trainer.names import check_run_id
from ollama_trainer.queue.rows import Run, Submission
from ollama_trainer.records import RunState, TrainingOptions
from ollama_trainer.settings import Settings

#: Paths of every platform are shorter.
_MAX_PATH = 32_768


class _Body(BaseModel):
    """The body of POST /train, without the options of the training."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", strict=True)

    run_id: str
    job_id: str = Field(min_length=1, max_length=200)
    #: Any string: what is wrong with the path becomes the failure of the run.
    dataset_ref: str = Field(max_length=_MAX_PATH)
    # Absent or null means: as the server's settings say.
    experiment_label: str | None = Field(None, max_length=200)
    base_model: str | None = Field(None, min_length=1, max_length=1000)
    publisher: Literal["ollama", "folder"] | None = None
    quantization: str | None = Field(None, pattern=r"^[A-Za-z0-9_]+$")


#: Each option of a training may stand in the body too.
_TRAINING_NAMES = {to_camel(name): name for name in TrainingOptions.model_fields}
#: Fields beyond these are ignored, and named in the reply.
_KNOWN_NAMES = _TRAINING_NAMES.keys() | {to_camel(name) for name in _Body.model_fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """A request to train that was understood."""

    submission: Submission
    #: Fields of the body that mean nothing here.
    ignored: tuple[str, ...]


def parse_body(raw: bytes) -> dict[str, Any]:
    """Raises:
    InvalidRequest: it is no JSON object.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the body is not valid JSON", _EXAMPLE) from error
    if not isinstance(body, dict):
        raise InvalidRequest("the body is not a JSON object", _EXAMPLE)
    return body


def read_train_request(body: dict[str, Any], settings: Settings) -> TrainRequest:
    """Raises:
    InvalidRequest: a field is missing or not valid.
    """
    check_run_id(body.get("runId"))
    known = {name: _clean(value) for name, value in body.items() if name in _KNOWN_NAMES}
    try:
        fields = _Body.model_validate(known)
        training = _training(known, settings.training)
    except ValidationError as error:
        first = error.errors()[0]
        name = to_camel(str(first["loc"][0]))
        raise InvalidRequest(f"field '{name}' is not valid: {first['msg']}", _EXAMPLE) from error
    submission = Submission(
        run_id=fields.run_id,
        job_id=fields.job_id,
        dataset_ref=fields.dataset_ref,
        fingerprint=_fingerprint(known),
        experiment_label=fields.experiment_label,
        base=fields.base_model,
        publisher=fields.publisher,
        quantization=fields.quantization,
        training=training,
    )
    ignored = tuple(sorted(map(storable, body.keys() - known.keys())))
    return TrainRequest(submission=submission, ignored=ignored)


def train_body(
    run_id: str, job_id: str, dataset_ref: str, options: Mapping[str, object]
) -> dict[str, object]:
    """The body that a client of this program sends.

    Args:
        options: by the names of `Settings` and `Submission`: base, publisher, quantization,
            experiment_label, and the options of the training.
    """
    fields = {"base_model" if name == "base" else name: value for name, value in options.items()}
    fields |= {"run_id": run_id, "job_id": job_id, "dataset_ref": dataset_ref}
    return {to_camel(name): value for name, value in fields.items()}


def refused_submission(body: dict[str, Any]) -> Submission | None:
    """What can be stored of a refused request; None without a usable run id."""
    try:
        run_id = check_run_id(body.get("runId"))
    except InvalidRequest:
        return None
    job_id, dataset_ref = (
        storable(value) if isinstance(value := body.get(name), str) else ""
        for name in ("jobId", "datasetRef")
    )
    return Submission(
        run_id=run_id,
        job_id=job_id[:200],
        dataset_ref=dataset_ref[:_MAX_PATH],
        # Never equal to an accepted request's: even the same body, sent rightly, is another one.
        fingerprint=f"refused:{_fingerprint(body)}",
    )


def train_reply(run: Run, ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    reply: dict[str, Any] = {"run_id": run.run_id, "id": run.run_id, "status": run.state.value}
    return reply | {"ignored": list(ignored)} if ignored else reply


def status_reply(run: Run, queue_position: int | None = None) -> dict[str, Any]:
    """A run's state. Nothing that could be taken for a model stands in it before completion."""
    reply: dict[str, Any] = {
        "run_id": run.run_id,
        "job_id": run.job_id,
        "status": run.state.value,
        "attempt": run.attempt,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "experiment_label": run.experiment_label,
        "progress": run.progress.model_dump(mode="json") if run.progress else None,
        "queue_position": queue_position,
    }
    if run.state is RunState.COMPLETED:
        reply["output_model_ref"] = reply["outputModelRef"] = run.output_model_ref
    if run.result is not None:
        reply["result"] = run.result.model_dump(
            mode="json", include={"gguf", "modelfile", "seconds", "metrics"}
        )
        if run.result.fidelity is not None:
            reply["fidelity"] = run.result.fidelity.model_dump(mode="json")
    if run.error is not None:
        reply |= error_reply(str(run.error), run.error.code)
    return {name: value for name, value in reply.items() if value is not None}


def error_reply(message: str, code: str) -> dict[str, Any]:
    return {"error": message, "error_code": code}


def error_of(error: TrainerError) -> dict[str, Any]:
    return error_reply(str(error), error.code)


def storable(text: str) -> str:
    """Text that SQLite and UTF-8 can hold: lone surrogates are written out as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


_EXAMPLE = (
    'Send {"jobId": "my-job", "datasetRef": "/absolute/path.jsonl", "runId": "<a fresh UUID>"} '
    "with Content-Type: application/json."
)


def _clean(value: object) -> object:
    return storable(value) if isinstance(value, str) else value


def _training(body: dict[str, Any], defaults: TrainingOptions) -> TrainingOptions:
    given = {
        name: body[field] for field, name in _TRAINING_NAMES.items() if body.get(field) is not None
    }
    return TrainingOptions.model_validate(defaults.model_dump() | given, strict=True)


def _fingerprint(body: dict[str, Any]) -> str:
    canonical = json.dumps(
        {name: value for name, value in body.items() if name != "runId" and value is not None},
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
