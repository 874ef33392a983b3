"""The handlers: each answers from local state only, never from the worker or from Ollama."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from ollama_trainer import __version__
from ollama_trainer.errors import InvalidRequest, TrainerError
from ollama_trainer.queue.rows import Run, RunIdTaken
from ollama_trainer.queue.service import RunQueue
from ollama_trainer.records import RunState
from ollama_trainer.server import wire
from ollama_trainer.settings import Settings

QUEUE = web.AppKey("queue", RunQueue)
SETTINGS = web.AppKey("settings", Settings)


def add_routes(app: web.Application) -> None:
    for path in paths("/train"):
        app.router.add_post(path, train)
    for path in paths("/status/{run_id}"):
        app.router.add_get(path, status)
    for path in paths("/health"):
        app.router.add_get(path, health)


async def train(request: web.Request) -> web.Response:
    """Accepts a run, or refuses it; a refusal with a usable run id is stored as a failed run."""
    raw = await request.read()
    try:
        body = wire.parse_body(raw)
    except InvalidRequest as error:
        return wire.json_reply(wire.error_of(error), status=400)
    if request.content_type != "application/json":
        cause = f"Content-Type is {request.content_type!r}"
        return await _refuse(
            request, body, InvalidRequest(cause, "Send application/json."), status=415
        )
    try:
        wanted = wire.read_train_request(
            body, request.app[SETTINGS], request.app[QUEUE].jobs.options
        )
        run = await request.app[QUEUE].submit(wanted.submission)
    except RunIdTaken as error:
        return wire.json_reply(wire.error_of(error), status=409)
    except InvalidRequest as error:
        return await _refuse(request, body, error, status=400)
    return wire.json_reply(wire.train_reply(run, wanted.ignored))


async def status(request: web.Request) -> web.Response:
    """The state of one run."""
    run = known_run(request)
    if run is None:
        run_id = request.match_info["run_id"]
        reply = wire.error_of(UnknownRun())
        if request.app[SETTINGS].unknown_run == "not_found":
            return wire.json_reply(reply, status=404)
        failed = {"run_id": wire.storable(run_id), "status": RunState.FAILED.value}
        return wire.json_reply(failed | reply)
    return wire.json_reply(wire.status_reply(run, position_of(request, run)))


async def json_body(request: web.Request) -> dict[str, Any]:
    """Raises:
    InvalidRequest: it is no JSON object, or not sent as one.
    """
    if request.content_type != "application/json":
        # What a page of another site may send without asking is of another type.
        raise InvalidRequest(f"Content-Type is {request.content_type!r}", "Send application/json.")
    return wire.parse_body(await request.read())


def known_run(request: web.Request) -> Run | None:
    """The run that the path names; None when nobody submitted it."""
    run_id = request.match_info["run_id"]
    return request.app[QUEUE].store.get(run_id) if run_id.isascii() else None


def existing_run(request: web.Request) -> Run:
    """Raises:
    UnknownRun: nobody submitted the run that the path names.
    """
    run = known_run(request)
    if run is None:
        raise UnknownRun
    return run


def position_of(request: web.Request, run: Run) -> int | None:
    """A pending run's place in the queue, 1 for the one that starts next."""
    return request.app[QUEUE].store.queue_position(run) if run.state is RunState.PENDING else None


class UnknownRun(InvalidRequest):
    """Nobody submitted a run of this id."""

    code = "unknown_run"

    def __init__(self) -> None:
        super().__init__("there is no run with this id", "Submit it with POST /train.")


async def health(request: web.Request) -> web.Response:
    """That the server lives, and how much it has to do."""
    counts = {state.value: n for state, n in request.app[QUEUE].store.count_unfinished().items()}
    return wire.json_reply(
        {"status": "ok", "name": "ollama-trainer", "version": __version__, "runs": counts}
    )


async def _refuse(
    request: web.Request, body: dict[str, object], error: TrainerError, status: int
) -> web.Response:
    submission = wire.refused_submission(body)
    if submission is not None:
        await request.app[QUEUE].reject(submission, error)
    return wire.json_reply(wire.error_of(error), status=status)


def paths(path: str) -> tuple[str, str]:
    """The routes of a path: as it is, and one that repeated and trailing slashes match too.

    Base URLs often end with a slash. The plain one is found at once, by its first word; those with
    patterns are tried in turn.
    """
    count = iter(range(path.count("/")))
    lenient = re.sub("/", lambda _: f"/{{_{next(count)}:/*}}", path) + "{_end:/*}"
    return path, lenient
