"""An Ollama for tests: a real HTTP server on 127.0.0.1 that behaves like one and thinks of nothing.

    with FakeOllama("0.33") as fake:            # in a thread of its own
    async with FakeOllama("0.40") as fake:      # in the running loop
    python -m ollama_trainer.testing.fake_ollama --port 11434 --profile 0.33

Profile "0.33" rewrites the GGUF that it is given and takes adapters; "0.40" keeps the bytes and
refuses adapters and `quantize`. Both check digests and read the GGUF. Another process sets faults
with POST /_fake (a JSON object of `Faults` fields, and `answer`) and reads the requests so far with
GET /_fake.

Prompts are told (`_debug_render_only`) as far as `_fake_render` can make them.

Not covered: pull, push, embeddings, the OpenAI-like routes.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, get_args

from aiohttp import web

from ollama_trainer.testing._fake_faults import Faults
from ollama_trainer.testing._fake_routes import Routes
from ollama_trainer.testing._fake_store import CHATML, BundledTemplate, Profile, Store

__all__ = ["CHATML", "BundledTemplate", "FakeOllama", "Faults", "Profile"]

T = TypeVar("T")
#: Longest wait for the server's own thread, in seconds.
_THREAD_S = 30.0


class FakeOllama:
    """One fake server. Use it once, as a context manager of either kind.

    Args:
        profile: which Ollama it resembles.
        port: 0 for any that is free.
        bundled: templates that take the place of chat templates like them.
    """

    def __init__(
        self,
        profile: Profile = "0.33",
        *,
        port: int = 0,
        bundled: tuple[BundledTemplate, ...] = (CHATML,),
    ) -> None:
        self.profile = profile
        self.port = port
        self._folder = tempfile.TemporaryDirectory(prefix="fake-ollama-")
        store = Store(profile, Path(self._folder.name), bundled)
        self._routes = Routes(store, f"{profile}.0", self._close)
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """What OLLAMA_HOST would be set to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def faults(self) -> Faults:
        """Set its fields to make things go wrong."""
        return self._routes.faults

    @property
    def requests(self) -> list[tuple[str, str, Any]]:
        """(method, path, JSON body or None) of each request so far."""
        return self._routes.requests

    @property
    def store(self) -> Store:
        """Models and blobs, to look at."""
        return self._routes.store

    def set_answer(self, answer: str | Callable[[list[dict[str, Any]]], str]) -> None:
        """What every model answers from now on: a text, or a function of the messages."""
        self._routes.answer = answer

    def go_away(self) -> None:
        """Stops listening; what is stored stays."""
        self._in_thread(self._close())

    def come_back(self) -> None:
        """Listens again on the same port."""
        self._in_thread(self._listen())

    async def start(self) -> None:
        app = self._routes.app()
        app.router.add_get("/_fake", self._tell)
        app.router.add_post("/_fake", self._set)
        # No lingering: a client that sends a body nobody reads sees a reset, as with the real one.
        self._runner = web.AppRunner(app, access_log=None, lingering_time=0)
        await self._runner.setup()
        await self._listen()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._folder.cleanup()

    async def _listen(self) -> None:
        if self._runner is None:
            raise RuntimeError("the fake Ollama was not started")
        if self._site is None:
            self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
            await self._site.start()
            self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        site, self._site = self._site, None
        if site is not None:
            await site.stop()
        server = self._runner.server if self._runner is not None else None
        for connection in list(server.connections) if server is not None else []:
            if connection.transport is not None:
                connection.transport.abort()

    async def _tell(self, _: web.Request) -> web.Response:
        return web.json_response(self._routes.state())

    async def _set(self, request: web.Request) -> web.Response:
        for key, value in (await request.json()).items():
            if key == "answer":
                self.set_answer(value)
            elif hasattr(self.faults, key):
                setattr(self.faults, key, value)
            else:
                return web.json_response({"error": f"there is no fault {key!r}"}, status=400)
        return web.json_response(self._routes.state())

    def _in_thread(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            raise RuntimeError("the fake Ollama was not entered with `with`")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_THREAD_S)

    def __enter__(self) -> FakeOllama:
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="fake-ollama", daemon=True)
        self._thread.start()
        try:
            self._in_thread(self.start())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loop is None or self._thread is None:
            return
        self._in_thread(self.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_THREAD_S)
        self._loop.close()

    async def __aenter__(self) -> FakeOllama:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


async def _serve(profile: Profile, port: int) -> None:
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows has no such handlers; there Ctrl-C raises KeyboardInterrupt.
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, end.set)
    async with FakeOllama(profile, port=port) as fake:
        sys.stdout.write(f"{fake.url}\n")
        sys.stdout.flush()
        await end.wait()


def main() -> int:
    """Serves until it is interrupted; the first line on standard output is the address."""
    parser = argparse.ArgumentParser(
        prog="fake_ollama", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--port", type=int, default=0, help="0 for any that is free")
    parser.add_argument("--profile", choices=get_args(Profile), default="0.33")
    arguments = parser.parse_args()

    try:
        asyncio.run(_serve(arguments.profile, arguments.port))
    except OSError as error:
        sys.stderr.write(f"fake_ollama: cannot listen: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
