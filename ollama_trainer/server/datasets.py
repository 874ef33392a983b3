"""Data sets: what a run would make of one, and what a run has made of its own."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ollama_trainer.errors import InvalidRequest, MachineBusy
from ollama_trainer.executors.inspection import Question, inspect_dataset
from ollama_trainer.queue.snapshot import check_source
from ollama_trainer.records import DatasetReport
from ollama_trainer.server import wire
from ollama_trainer.server.routes import QUEUE, SETTINGS, existing_run, json_body, paths

#: One at a time, as each takes a core, and so many that wait for it.
_ONE = web.AppKey("one_inspection", asyncio.Semaphore)
_WAITING = web.AppKey("inspections", list[Question])
_MOST_WAITING = 8
_MOST_S = 600.0
#: Seconds between two looks whether the caller is still there.
_POLL_S = 0.5


def add_dataset_routes(app: web.Application) -> None:
    app[_ONE] = asyncio.Semaphore(1)
    app[_WAITING] = []
    for path in paths("/datasets/inspect"):
        app.router.add_post(path, inspect)
    for path in paths("/runs/{run_id}/dataset"):
        app.router.add_get(path, of_run)


async def inspect(request: web.Request) -> web.Response:
    """Reads a data set as a run would; takes seconds for a large one."""
    settings = request.app[SETTINGS]
    question = wire.read_question(await json_body(request), settings)
    source = await asyncio.to_thread(check_source, str(question.path), settings.dataset_roots)
    question = question.model_copy(update={"path": source})
    looking = asyncio.create_task(_in_turn(request.app, question))
    try:
        while not looking.done():
            await asyncio.wait([looking], timeout=_POLL_S)
            if request.transport is None or request.transport.is_closing():
                break
    finally:
        # Nobody waits for it any more, or the server stops.
        looking.cancel()
    return wire.json_reply((await looking).model_dump(mode="json"))


async def _in_turn(app: web.Application, question: Question) -> DatasetReport:
    waiting = app[_WAITING]
    if len(waiting) >= _MOST_WAITING:
        raise MachineBusy("too many data sets wait to be looked at", "Try again later.")
    waiting.append(question)
    try:
        async with app[_ONE]:
            return await inspect_dataset(question, _MOST_S)
    finally:
        waiting.remove(question)


async def of_run(request: web.Request) -> web.Response:
    """What a run made of its data set."""
    run = existing_run(request)
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
