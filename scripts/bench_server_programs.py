"""The processes of ./scripts/bench server: the server, what stands in for a worker, a bare server.

bench_server_programs.py serve            the real server; this file's `work` is its worker
bench_server_programs.py work RUN_DIR     takes every core while the file exists that the data
                                          set's first row names as `burn`
bench_server_programs.py bare REPLIES     aiohttp alone: answers /NAME with what stands under
                                          NAME in a JSON file, and prints its port
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

from aiohttp import web

from ollama_trainer import cli
from ollama_trainer.executors.local import LocalExecutor
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.records import Event, Progress, Stage
from ollama_trainer.server import app
from ollama_trainer.workspace import RunDirectory

SERVE = (sys.executable, __file__, "serve")
BARE = (sys.executable, __file__, "bare")
#: Seconds of a step: a training tells its progress after each.
_STEP_S = 0.5
_STEPS = 1000


def serve() -> int:
    """Only what the server starts as its worker is another program."""

    def executor() -> LocalExecutor:
        return LocalExecutor((sys.executable, __file__, "work"), stop_timeout_s=1)

    with mock.patch.object(app, "LocalExecutor", executor):
        return cli.main(["serve"])


def work(directory: RunDirectory) -> None:
    """Trains for ever; SIGTERM ends it."""
    # Not above: the server has loaded nothing that trains.
    import torch

    from ollama_trainer.worker import start_heartbeat

    torch.set_num_threads(os.cpu_count() or 1)
    matrix = torch.randn(1024, 1024)
    start_heartbeat(directory)
    order = json.loads(directory.dataset.read_text(encoding="utf-8").splitlines()[0])
    step = 0
    directory.append_event(Event.now("progress", progress=_progress(step)))
    while True:
        if not Path(order["burn"]).exists():
            time.sleep(0.05)
            continue
        ended = time.monotonic() + _STEP_S
        while time.monotonic() < ended:
            torch.mm(matrix, matrix)
        step += 1
        directory.append_event(Event.now("progress", progress=_progress(step % _STEPS)))


def _progress(step: int) -> Progress:
    return Progress(
        stage=Stage.TRAIN,
        fraction=step / _STEPS,
        step=step,
        steps=_STEPS,
        loss=1.2345,
        tokens_per_s=678.9,
        left_s=(_STEPS - step) * _STEP_S,
    )


async def bare(replies: dict[str, object]) -> None:
    """What aiohttp costs by itself: no middleware, one handler that makes JSON."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(replies[request.match_info["name"]])

    application = web.Application()
    application.router.add_get("/{name}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def main() -> int:
    name, *arguments = sys.argv[1:]
    if name == "serve":
        return serve()
    exit_with_parent()
    path = Path(arguments[0])
    if name == "work":
        work(RunDirectory(path))
    else:
        asyncio.run(bare(json.loads(path.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
