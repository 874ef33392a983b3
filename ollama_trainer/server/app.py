"""The application, and the process around it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from ollama_trainer.errors import ServerError
from ollama_trainer.executors import Executor
from ollama_trainer.executors.local import LocalExecutor
from ollama_trainer.queue.service import RunQueue
from ollama_trainer.server.datasets import add_dataset_routes
from ollama_trainer.server.jobs import add_job_routes
from ollama_trainer.server.middleware import json_errors, only_known_callers
from ollama_trainer.server.routes import QUEUE, SETTINGS, add_routes
from ollama_trainer.server.runs import add_run_routes
from ollama_trainer.settings import WILDCARD_HOSTS, Settings

_log = logging.getLogger(__name__)
_MAX_BODY_BYTES = 1 << 20
#: Open requests have so many seconds to end when the server stops.
_SHUTDOWN_S = 2.0


def create_app(settings: Settings, executor: Executor | None = None) -> web.Application:
    """The application; its queue works from its startup to its cleanup.

    Raises, at startup:
        ServerError: the data directory is in use or cannot be used.
    """
    app = web.Application(
        middlewares=[json_errors, only_known_callers(settings)], client_max_size=_MAX_BODY_BYTES
    )
    app[SETTINGS] = settings

    async def run_queue(app: web.Application) -> AsyncIterator[None]:
        queue = RunQueue(settings, executor or LocalExecutor())
        app[QUEUE] = queue
        queue.start()
        yield
        await queue.stop()

    app.cleanup_ctx.append(run_queue)
    add_routes(app)
    add_run_routes(app)
    add_dataset_routes(app)
    add_job_routes(app)
    return app


async def serve(
    settings: Settings,
    executor: Executor | None = None,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        ready: is called with the server's URL once it answers.

    Raises:
        ServerError: the address or the data directory cannot be used.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    with _listen(settings) as listener:
        app = create_app(settings, executor)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            url = _url(listener)
            app[QUEUE].lock.write(url=url)
            ready(url)
            await stopped.wait()
            _log.info("stopping; unfinished runs go on at the next start")
        finally:
            await runner.cleanup()


def _listen(settings: Settings) -> socket.socket:
    """Binds before anything else starts, so that a taken port costs nothing."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {settings.host} port {settings.port}: "
            f"{os.strerror(error.errno) if error.errno else error}",
            "Stop the program that uses it, or choose another --port.",
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in WILDCARD_HOSTS:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
