"""What travels over HTTP. camelCase lives only here.

Errors, of requests and of runs alike, are `error` (a sentence with cause and remedy) and
`error_code`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import from_json, to_json

from ollama_trainer.errors import InvalidRequest, TrainerError
from ollama_trainer.executors.inspection import Question
from ollama_trainer.names import check_run_id
from ollama_trainer.queue.jobs import Job
from ollama_trainer.queue.rows import Attempt, Publication, Run, StoredEvent, Submission
from ollama_trainer.records import DatasetOptions, ErrorInfo, RunState, TrainingOptions
from ollama_trainer.settings import Settings
from ollama_trainer.workspace import DataDirectory

_Model = TypeVar("_Model", bound=BaseModel)
#: Paths of every platform are shorter.
_MAX_PATH = 32_768


class _JobBody(BaseModel):
    """What a job may settle for its runs, without the options of the training."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", strict=True)

    # Absent or null means: as the server's settings say.
    base_model: str | None = Field(None, min_length=1, max_length=1000)
    publisher: Literal["ollama", "folder"] | None = None
    quantization: str | None = Field(None, pattern=r"^[A-Za-z0-9_]+$")


class _Body(_JobBody):
    """The body of POST /train, without the options of the training."""

    run_id: str
    job_id: str = Field(min_length=1, max_length=200)
    #: Any string: what is wrong with the path becomes the failure of the run.
    dataset_ref: str = Field(max_length=_MAX_PATH)
    experiment_label: str | None = Field(None, max_length=200)


#: Each option of a training and of its data set may stand in the body too.
_TRAINING_NAMES = {to_camel(name): name for name in TrainingOptions.model_fields}
_DATASET_NAMES = {to_camel(name): name for name in DatasetOptions.model_fields}
_OPTION_NAMES = _TRAINING_NAMES.keys() | _DATASET_NAMES.keys()
#: Fields beyond these are ignored, and named in the reply.
_KNOWN_NAMES = _OPTION_NAMES | {to_camel(name) for name in _Body.model_fields}
_JOB_NAMES = _OPTION_NAMES | {to_camel(name) for name in _JobBody.model_fields}


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


def read_train_request(
    body: dict[str, Any],
    settings: Settings,
    of_job: Callable[[str], Mapping[str, Any]] = lambda _job_id: {},
) -> TrainRequest:
    """What POST /train asks for; what it leaves open the job decides, then the settings.

    Args:
        of_job: tells what is settled for the job of that id.

    Raises:
        InvalidRequest: a field is missing or not valid.
    """
    check_run_id(body.get("runId"))
    known = {name: _clean(value) for name, value in body.items() if name in _KNOWN_NAMES}
    job_id = known.get("jobId")
    wanted = dict(of_job(job_id)) if isinstance(job_id, str) else {}
    wanted |= {name: value for name, value in known.items() if value is not None}
    try:
        fields = _Body.model_validate(wanted)
        training = _options(wanted, _TRAINING_NAMES, settings.training)
        dataset = _options(wanted, _DATASET_NAMES, settings.dataset)
    except ValidationError as error:
        raise _field_not_valid(error, _EXAMPLE) from error
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
        dataset=dataset,
    )
    ignored = tuple(sorted(map(storable, body.keys() - known.keys())))
    return TrainRequest(submission=submission, ignored=ignored)


def read_job_options(body: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What PUT /jobs/{jobId} settles: fields of POST /train, by the same names.

    Raises:
        InvalidRequest: a field is unknown or not valid.
    """
    given = {name: _clean(value) for name, value in body.items() if value is not None}
    unknown = sorted(map(storable, given.keys() - _JOB_NAMES))
    if unknown:
        raise InvalidRequest(
            f"'{unknown[0]}' cannot be settled for a job",
            f"Known here: {', '.join(sorted(_JOB_NAMES))}.",
        )
    try:
        _JobBody.model_validate(given)
        _options(given, _TRAINING_NAMES, settings.training)
        _options(given, _DATASET_NAMES, settings.dataset)
    except ValidationError as error:
        raise _field_not_valid(error, 'Send, for instance, {"baseModel": "qwen3:0.6b"}.') from error
    return given


def job_reply(job_id: str, job: Job | None) -> dict[str, Any]:
    return _present(
        {
            "job_id": job_id,
            "options": dict(job.options) if job else {},
            "updated_at": job.updated_at if job else None,
        }
    )


class _InspectBody(BaseModel):
    """The body of POST /datasets/inspect, without the options of the training."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", strict=True)

    dataset_ref: str = Field(max_length=_MAX_PATH)
    base_model: str | None = Field(None, min_length=1, max_length=1000)


def read_question(body: dict[str, Any], settings: Settings) -> Question:
    """What POST /datasets/inspect asks.

    Raises:
        InvalidRequest: a field is missing or not valid.
    """
    try:
        fields = _InspectBody.model_validate({name: _clean(body[name]) for name in body})
        training = _options(body, _TRAINING_NAMES, settings.training)
        dataset = _options(body, _DATASET_NAMES, settings.dataset)
    except ValidationError as error:
        raise _field_not_valid(error, 'Send {"datasetRef": "/absolute/path.jsonl"}.') from error
    return Question(
        path=Path(fields.dataset_ref),
        base=fields.base_model or settings.base,
        ollama_host=settings.ollama_host,
        name_prefix=settings.name_prefix,
        training=training,
        dataset=dataset,
        cache=DataDirectory(settings.data_dir).cache,
    )


def train_body(
    run_id: str, job_id: str, dataset_ref: str, options: Mapping[str, object]
) -> dict[str, object]:
    """The body that a client of this program sends.

    Args:
        options: by the names of `Settings` and `Submission`: base, publisher, quantization,
            experiment_label, and the options of the training and of the data set.
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
    reply = run_summary(run)
    reply["progress"] = _read(run.progress_json)
    reply["queue_position"] = queue_position
    if run.result_json is not None:
        result = from_json(run.result_json)
        reply["result"] = {
            name: result[name] for name in ("gguf", "modelfile", "seconds", "metrics")
        }
        reply["fidelity"] = result["fidelity"]
    return _present(reply)


def run_summary(run: Run) -> dict[str, Any]:
    """What a list tells of a run; absent values are None."""
    reply: dict[str, Any] = {
        "run_id": run.run_id,
        "job_id": run.job_id,
        "status": run.state.value,
        "attempt": run.attempt,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "experiment_label": run.experiment_label,
    }
    if run.state is RunState.COMPLETED:
        reply["output_model_ref"] = reply["outputModelRef"] = run.output_model_ref
    if run.not_before is not None and (waiting := run.waiting) is not None:
        reply["waiting"] = {
            "for": waiting.reason,
            **waiting.model_dump(mode="json", include={"since", "tries", "until", "deadline"}),
            **error_reply(str(waiting.error), waiting.error.code),
        }
    if run.cancel_requested_at is not None and not run.state.terminal:
        reply["cancelling"] = True
    return reply | _stored_error(run.error_json)


def run_list(runs: Sequence[Run], limit: int) -> dict[str, Any]:
    """A page of runs; `next` is the cursor of the one after it."""
    summaries = [_present(run_summary(run)) for run in runs]
    return {"runs": summaries, "next": str(runs[-1].seq) if len(runs) == limit else None}


def run_detail(
    run: Run,
    queue_position: int | None,
    attempts: Sequence[Attempt],
    publications: Sequence[Publication],
    files: Mapping[str, int],
) -> dict[str, Any]:
    """Everything that is known of a run.

    Args:
        files: name in the run directory -> bytes.
    """
    reply = status_reply(run, queue_position)
    reply |= {
        "dataset_ref": run.dataset_ref,
        "dataset_sha256": run.dataset_sha256,
        "dataset_bytes": run.dataset_bytes,
        "spec": _read(run.spec_json),
        "attempts": [_attempt(attempt) for attempt in attempts],
        "publications": [publication_reply(publication) for publication in publications],
        "files": dict(files),
    }
    return _present(reply)


def publication_reply(publication: Publication) -> dict[str, Any]:
    reply = {
        "id": publication.id,
        "publisher": publication.publisher,
        "status": publication.state.value,
        "output_model_ref": publication.output_model_ref,
        "requested_at": publication.requested_at,
        "finished_at": publication.finished_at,
        **_stored_error(publication.error_json),
    }
    return _present(reply)


def event_reply(event: StoredEvent) -> dict[str, Any]:
    reply = {
        "id": event.id,
        "time": event.time,
        "attempt": event.attempt,
        "kind": event.kind,
        "message": event.message,
        "progress": _read(event.progress_json),
        "data": _read(event.data_json) or None,
    }
    return _present(reply)


def server_sent(event: StoredEvent) -> bytes:
    """An event as a stream of Server-Sent Events carries it."""
    data = json.dumps(event_reply(event), separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def _attempt(attempt: Attempt) -> dict[str, Any]:
    reply = {
        "token": attempt.token,
        "task": attempt.task,
        "attempt": attempt.attempt,
        "pid": attempt.worker_pid,
        "started_at": attempt.started_at,
        "heartbeat_at": attempt.heartbeat_at,
        "ended_at": attempt.ended_at,
        "outcome": attempt.outcome,
        **_stored_error(attempt.error_json),
    }
    return _present(reply)


def _stored_error(error_json: str | None) -> dict[str, Any]:
    if error_json is None:
        return {}
    error = ErrorInfo.model_validate_json(error_json)
    return error_reply(str(error), error.code)


def _present(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is absent."""
    return {name: value for name, value in reply.items() if value is not None}


def _read(text: str | None) -> Any:
    return from_json(text) if text is not None else None


class ListQuery(BaseModel):
    """The query of GET /runs."""

    model_config = ConfigDict(extra="forbid")

    job: str | None = None
    state: RunState | None = None
    #: Cursor of an earlier page's `next`.
    before: int | None = Field(None, ge=1, lt=2**63)
    limit: int = Field(50, ge=1, le=200)


class EventsQuery(BaseModel):
    """The query of GET /runs/{runId}/events."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, lt=2**63)
    limit: int = Field(1000, ge=1, le=2000)


class LogQuery(BaseModel):
    """The query of GET /runs/{runId}/log."""

    model_config = ConfigDict(extra="forbid")

    #: Lines from the end; absent means all.
    tail: int | None = Field(None, ge=1, le=10_000)


class PublishBody(BaseModel):
    """The body of POST /runs/{runId}/publish, which may be left out."""

    model_config = ConfigDict(extra="forbid")

    publisher: Literal["ollama", "folder"] | None = None


def understood(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """Raises:
    InvalidRequest: a value is not valid.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0] if first["loc"] else "body"
        known = ", ".join(model.model_fields)
        raise InvalidRequest(
            f"'{storable(str(name))}' is not valid: {first['msg']}", f"Known here: {known}."
        ) from error


def json_reply(
    content: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A reply as JSON. pydantic reads and writes it several times as fast as Python's own module.

    Args:
        content: its texts can be encoded: see `storable`.
    """
    return web.Response(
        body=to_json(content),
        status=status,
        headers=headers,
        content_type="application/json",
        charset="utf-8",
    )


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


def _field_not_valid(error: ValidationError, remedy: str) -> InvalidRequest:
    """What is wrong with the first of a body's fields that is not valid."""
    first = error.errors()[0]
    name = to_camel(str(first["loc"][0]))
    return InvalidRequest(f"field '{name}' is not valid: {first['msg']}", remedy)


def _clean(value: object) -> object:
    return storable(value) if isinstance(value, str) else value


def _options(body: Mapping[str, Any], names: Mapping[str, str], defaults: _Model) -> _Model:
    given = {name: body[field] for field, name in names.items() if body.get(field) is not None}
    return type(defaults).model_validate(defaults.model_dump() | given, strict=True)


def _fingerprint(body: dict[str, Any]) -> str:
    canonical = json.dumps(
        {name: value for name, value in body.items() if name != "runId" and value is not None},
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
