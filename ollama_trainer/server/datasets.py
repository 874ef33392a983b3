"""Data sets: what a run would make of one, and what a run has made of its own."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.executors.inspection import inspect_dataset
from ollama_trainer.queue.snapshot import check_source
from ollama_trainer.server import wire
from ollama_trainer.server.routes import QUEUE, SETTINGS, UnknownRun, known_run, paths

#: One at a time: each takes a core.
_ONE = web.AppKey("one_inspection", asyncio.Semaphore)
_MOST_S = 600.0


def add_dataset_routes(app: web.Application) -> None:
    app[_ONE] = asyncio.Semaphore(1)
    for path in paths("/datasets/inspect"):
        app.router.add_post(path, inspect)
    for path in paths("/runs/{run_id}/dataset"):
        app.router.add_get(path, of_run)


async def inspect(request: web.Request) -> web.Response:
    """Reads a data set as a run would; takes seconds for a large one."""
    settings = request.app[SETTINGS]
    if request.content_type != "application/json":
        # What a page of another site may send without asking is of another type.
        raise InvalidRequest(f"Content-Type is {request.content_type!r}", "Send application/json.")
    body = wire.parse_body(await request.read())
    question = wire.read_question(body, settings)
    source = await asyncio.to_thread(check_source, str(question.path), settings.dataset_roots)
    async with request.app[_ONE]:
        report = await inspect_dataset(question.model_copy(update={"path": source}), _MOST_S)
    return wire.json_reply(report.model_dump(mode="json"))


async def of_run(request: web.Request) -> web.Response:
    """What a run made of its data set."""
    run = known_run(request)
    if run is None:
        raise UnknownRun
    path = request.app[QUEUE].directory(run).dataset_report
    try:
        text = await asyncio.to_thread(path.read_bytes)
    except FileNotFoundError as error:
        raise NoReport from error
    return web.Response(body=text, content_type="application/json", charset="utf-8")


class NoReport(InvalidRequest):
    """A run has not read its data set, or could not use it."""

    code = "no_report"

    def __init__(self) -> None:
        super().__init__(
            "this run has no report on its data set", "It has not read it yet, or failed to."
        )
