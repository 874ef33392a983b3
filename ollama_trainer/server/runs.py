"""Runs beyond the contract: list them, look into one, cancel, publish again, delete.

As everywhere, answers come from local state alone.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiohttp import web

from ollama_trainer.queue.rows import Run
from ollama_trainer.queue.tail import last_lines
from ollama_trainer.server import wire
from ollama_trainer.server.routes import QUEUE, existing_run, paths, position_of
from ollama_trainer.workspace import RunDirectory

#: Set when the server stops: streams end then.
STOPPING = web.AppKey("stopping", asyncio.Event)
_SSE = "text/event-stream"
#: Seconds between two looks for new events, and after which a silent stream says that it lives.
_POLL_S = 0.25
_KEEP_ALIVE_S = 15.0
_BATCH = 500
#: More than the longest lines that a log may end with.
_TAIL_BYTES_A_LINE = 400


def add_run_routes(app: web.Application) -> None:
    app[STOPPING] = asyncio.Event()
    app.on_shutdown.append(_end_streams)
    for path in paths("/runs"):
        app.router.add_get(path, list_runs)
    for path in paths("/runs/{run_id}"):
        app.router.add_get(path, show)
        app.router.add_delete(path, delete)
    for path in paths("/runs/{run_id}/events"):
        app.router.add_get(path, events)
    for path in paths("/runs/{run_id}/log"):
        app.router.add_get(path, log)
    for path in paths("/runs/{run_id}/cancel"):
        app.router.add_post(path, cancel)
    for path in paths("/runs/{run_id}/publish"):
        app.router.add_post(path, publish)


async def list_runs(request: web.Request) -> web.Response:
    """A page of runs, the newest first."""
    query = wire.understood(wire.ListQuery, request.query)
    runs = request.app[QUEUE].store.page(
        job_id=query.job, state=query.state, before=query.before, limit=query.limit
    )
    return wire.json_reply(wire.run_list(runs, query.limit))


async def show(request: web.Request) -> web.Response:
    """All of one run."""
    return wire.json_reply(await _detail(request, existing_run(request)))


async def delete(request: web.Request) -> web.Response:
    """Removes a finished run; what it published stays."""
    run = existing_run(request)
    await request.app[QUEUE].delete(run)
    return wire.json_reply({"run_id": run.run_id, "deleted": True})


async def cancel(request: web.Request) -> web.Response:
    """Asks for a run's end; it is `failed` with the code `cancelled` within seconds."""
    run = existing_run(request)
    await request.app[QUEUE].cancel(run)
    run = existing_run(request)
    status = 200 if run.state.terminal else 202
    return wire.json_reply(wire.status_reply(run), status=status)


async def publish(request: web.Request) -> web.Response:
    """Publishes a finished run's model once more; GET /runs/{runId} tells how it went."""
    run = existing_run(request)
    raw = await request.read()
    body = wire.understood(wire.PublishBody, wire.parse_body(raw) if raw.strip() else {})
    publication = await request.app[QUEUE].publish(run, body.publisher)
    return wire.json_reply(wire.publication_reply(publication), status=202)


async def log(request: web.Request) -> web.StreamResponse:
    """What the workers of a run printed, as text; byte ranges are understood."""
    run = existing_run(request)
    query = wire.understood(wire.LogQuery, request.query)
    path = request.app[QUEUE].directory(run).log
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    if query.tail is not None:
        n_bytes = query.tail * _TAIL_BYTES_A_LINE
        lines = await asyncio.to_thread(last_lines, path, query.tail, n_bytes)
        text = "".join(f"{line}\n" for line in lines)
        return web.Response(text=text, headers=headers)
    if not path.exists():
        return web.Response(text="", headers=headers)
    return web.FileResponse(path, headers=headers)


async def events(request: web.Request) -> web.StreamResponse:
    """A run's events after one that the caller has: as JSON, or as a stream until its end."""
    run = existing_run(request)
    query = wire.understood(wire.EventsQuery, request.query)
    if _SSE in request.headers.get("Accept", ""):
        return await _stream(request, run, _last_event_id(request, query.after))
    found = request.app[QUEUE].store.events(run, query.after, query.limit)
    last = found[-1].id if found else query.after
    reply = {"events": [wire.event_reply(event) for event in found], "last": last}
    return wire.json_reply(reply)


async def _stream(request: web.Request, run: Run, after: int) -> web.StreamResponse:
    store = request.app[QUEUE].store
    if run.state.terminal and not store.events(run, after, 1):
        # What makes a browser stop asking for more.
        return web.Response(status=204)
    response = web.StreamResponse(
        headers={"Content-Type": _SSE, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)
    silent_s = 0.0
    stopping = request.app[STOPPING]
    with suppress(ConnectionResetError):
        while not stopping.is_set():
            found = store.events(run, after, _BATCH)
            for event in found:
                await response.write(wire.server_sent(event))
                after = event.id
            if found:
                silent_s = 0.0
                # Others are answered between two batches.
                await asyncio.sleep(0)
                continue
            # The event of the terminal state is the last one, and comes with it.
            if _is_over(request, run) and not store.events(run, after, 1):
                break
            if silent_s >= _KEEP_ALIVE_S:
                await response.write(b": still here\n\n")
                silent_s = 0.0
            silent_s += _POLL_S
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _POLL_S)
    return response


def _is_over(request: web.Request, run: Run) -> bool:
    current = request.app[QUEUE].store.get(run.run_id)
    return current is None or current.seq != run.seq or current.state.terminal


def _last_event_id(request: web.Request, after: int) -> int:
    """Where a reader that was cut off goes on: what it sends by itself goes first."""
    header = request.headers.get("Last-Event-ID", "")
    return int(header) if header.isascii() and header.isdecimal() and len(header) < 19 else after


async def _detail(request: web.Request, run: Run) -> dict[str, object]:
    queue = request.app[QUEUE]
    files = await asyncio.to_thread(_files, queue.directory(run))
    return wire.run_detail(
        run, position_of(request, run), queue.store.attempts(run), queue.publications.of(run), files
    )


def _files(directory: RunDirectory) -> dict[str, int]:
    """Files of a run with their sizes in bytes; of directories the sum."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for path in sorted(directory.path.iterdir()):
            parts = path.rglob("*") if path.is_dir() else [path]
            found[wire.storable(path.name)] = sum(
                part.stat().st_size for part in parts if part.is_file()
            )
    return found


async def _end_streams(app: web.Application) -> None:
    app[STOPPING].set()
