"""A client of the server, and a server for as long as one is needed."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote, urlencode

import aiohttp
from pydantic import BaseModel, ConfigDict

from ollama_trainer.errors import InvalidRequest, ServerError
from ollama_trainer.executors.parentwatch import LifeLine
from ollama_trainer.queue.lock import read_holder
from ollama_trainer.queue.tail import last_lines
from ollama_trainer.records import Fidelity, Progress, RunState
from ollama_trainer.server.wire import train_body
from ollama_trainer.settings import CONFIG_VARIABLE, Settings, variable_name

SERVE_COMMAND = (sys.executable, "-m", "ollama_trainer", "serve")
#: Any one answer may take so long.
_TIMEOUT_S = 30.0
#: A server that went away may come back so long before a follower gives up.
_PATIENCE_S = 30.0
_START_S = 60.0
_STOP_S = 30.0


class RunStatus(BaseModel):
    """A run as the server tells it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    job_id: str
    status: RunState
    created_at: str = ""
    progress: Progress | None = None
    #: 1 for the pending run that starts next.
    queue_position: int | None = None
    #: What it waits for, if it does: `for`, `until`, `error` and more.
    waiting: dict[str, Any] | None = None
    output_model_ref: str | None = None
    #: Cause and remedy.
    error: str | None = None
    error_code: str | None = None
    #: The parts of RunResult that are of use outside: gguf, modelfile, seconds, metrics.
    result: dict[str, Any] | None = None
    #: How true the finished model is.
    fidelity: Fidelity | None = None

    @property
    def next_command(self) -> str | None:
        """The line to type to use the finished model."""
        metrics = (self.result or {}).get("metrics", {})
        return str(metrics["next_command"]) if "next_command" in metrics else None


class TrainerClient:
    """Talks to one server. Used as a context, which closes its connections.

    Raises, from each call:
        InvalidRequest: the server refused the request.
        ServerError: no server answers, or not sensibly.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def health(self) -> dict[str, Any]:
        """Raises:
        ServerError: something else than this program's server answers.
        """
        reply = await self._call("GET", "/health")
        if reply.get("name") != "ollama-trainer":
            raise ServerError(
                f"{self.url} is another program", "Choose another --port for ollama-trainer."
            )
        return reply

    async def submit(
        self, job_id: str, dataset_ref: str, run_id: str | None = None, **options: object
    ) -> str:
        """Submits a run; returns its id, a fresh UUID unless one is given.

        Args:
            dataset_ref: absolute path of a JSONL file, as the server sees it.
            options: see `wire.train_body`.
        """
        run_id = run_id or str(uuid.uuid4())
        await self._call("POST", "/train", train_body(run_id, job_id, dataset_ref, options))
        return run_id

    async def status(self, run_id: str) -> RunStatus:
        return RunStatus.model_validate(await self._call("GET", f"/status/{run_id}"))

    async def runs(
        self, job_id: str | None = None, state: RunState | None = None, limit: int = 50
    ) -> list[RunStatus]:
        """The newest runs, the newest first.

        Args:
            limit: at most so many, up to 200.
        """
        query = {"job": job_id, "state": state and state.value, "limit": str(limit)}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        reply = await self._call("GET", f"/runs?{given}")
        return [RunStatus.model_validate(run) for run in reply["runs"]]

    async def cancel(self, run_id: str) -> None:
        """Asks for the end of a run; `wait` tells when it is there."""
        await self._call("POST", f"/runs/{quote(run_id, safe='')}/cancel", {})

    async def follow(self, run_id: str, interval_s: float = 0.3) -> AsyncIterator[RunStatus]:
        """Yields the status again and again; the last one is terminal."""
        last_answer = time.monotonic()
        while True:
            try:
                status = await self.status(run_id)
            except ServerError:
                if time.monotonic() - last_answer > _PATIENCE_S:
                    raise
            else:
                last_answer = time.monotonic()
                yield status
                if status.status.terminal:
                    return
            await asyncio.sleep(interval_s)

    async def wait(self, run_id: str) -> RunStatus:
        """Returns the terminal status, once it is reached."""
        async for status in self.follow(run_id):
            final = status
        return final

    async def _call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        if self._session is None:
            raise RuntimeError(
                "use the client as a context: async with TrainerClient(url) as client"
            )
        try:
            async with self._session.request(method, self.url + path, json=body) as response:
                reply = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            raise ServerError(
                f"no ollama-trainer answers at {self.url} ({error or type(error).__name__})",
                "Start one: ollama-trainer serve.",
            ) from error
        if not isinstance(reply, dict):
            raise ServerError(f"{self.url}{path} answered no JSON object")
        if response.status >= 400:
            kind = InvalidRequest if response.status < 500 else ServerError
            raise kind(str(reply.get("error", f"{self.url}{path} answered {response.status}")))
        return reply


def server_url(settings: Settings) -> str:
    """Where the server of these settings is reached from this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


@asynccontextmanager
async def running_server(
    settings: Settings,
    *,
    command: Sequence[str] = SERVE_COMMAND,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[TrainerClient]:
    """A server of its own on a free loopback port, stopped at the end, with its worker.

    It ends with this process, too, should that be killed.

    Args:
        settings: all but host and port apply to it.
        environment: set for it on top of this process's variables.

    Raises:
        ServerError: it did not start; the message holds its own last words.
    """
    log_path = settings.data_dir / "server.log"
    # Settled already: the child needs no settings file, and none may add to them.
    variables = os.environ | settings.as_environment() | {CONFIG_VARIABLE: os.devnull}
    variables |= {variable_name("host"): "127.0.0.1", variable_name("port"): "0"}
    with LifeLine() as life_line, _open_log(log_path) as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for the caller, who then stops the server.
            start_new_session=True,
            **life_line.arguments(variables | dict(environment or {})),
        )
        try:
            async with TrainerClient(await _url_of(process, settings.data_dir, log_path)) as client:
                await client.health()
                yield client
        finally:
            await _stop(process)


def _open_log(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise ServerError(
            f"the data directory {path.parent} cannot be used: {error.strerror or error}",
            "Make it writable, or choose another --data-dir.",
        ) from error


async def _url_of(process: asyncio.subprocess.Process, data_dir: Path, log: Path) -> str:
    """Waits until the server has written where it listens."""
    deadline = time.monotonic() + _START_S
    while process.returncode is None and time.monotonic() < deadline:
        holder = read_holder(data_dir)
        if holder.get("pid") == process.pid and "url" in holder:
            return str(holder["url"])
        await asyncio.sleep(0.05)
    words = (last_lines(log, 1) or ["no reason given"])[0].removeprefix("error: ")
    raise ServerError(f"the server did not start: {words.rstrip('.')}", f"See {log}.")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()
