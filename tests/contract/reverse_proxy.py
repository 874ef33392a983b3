"""A reverse proxy as people put before an Ollama: TLS, a key, a path of its own, limits."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import aiohttp
from aiohttp import web

#: Headers that belong to one connection.
_OF_A_HOP = {"host", "connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(frozen=True)
class Certificate:
    """Of one host, and of the authority that signed it; PEM files."""

    authority: Path
    chain: Path
    key: Path


def make_certificate(folder: Path, host: str) -> Certificate:
    """By a new authority that nobody knows. Needs the program openssl."""

    def openssl(*arguments: str) -> None:
        program = shutil.which("openssl") or "openssl"
        subprocess.run((program, *arguments), cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        "req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
        "-subj", "/CN=An authority of tests",
    )  # fmt: skip
    openssl("req", *new, "-keyout", "host.key", "-out", "host.csr", "-subj", f"/CN={host}")
    extensions = folder / "extensions"
    extensions.write_text(f"subjectAltName=DNS:{host}\nbasicConstraints=CA:FALSE\n")
    openssl(
        "x509", "-req", "-in", "host.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "host.pem", "-days", "2", "-extfile", extensions.name,
    )  # fmt: skip
    return Certificate(folder / "ca.pem", folder / "host.pem", folder / "host.key")


@dataclass
class ReverseProxy:
    """To be used as a context manager; it answers in a thread of its own.

    What it refuses it refuses as its likes do, in HTML.
    """

    #: URL of the server behind it.
    target: str
    prefix: str = "/ollama"
    key: str = ""
    certificate: Certificate | None = None
    most_bytes: int = 1 << 40
    #: Where everything is redirected, if anywhere.
    location: str = ""
    #: What every request is refused with, if with anything.
    refuses: int = 0
    #: (method, path, Authorization, Content-Length) of each request.
    requests: list[tuple[str, str, str | None, int | None]] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        """Host and path, without a scheme."""
        return f"127.0.0.1:{self.port}{self.prefix}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization")
        self.requests.append((request.method, request.path, given, request.content_length))
        if self.location:
            return web.Response(status=301, headers={"Location": self.location + request.path})
        if self.refuses:
            return _page(self.refuses, "Not here")
        if self.key and given != f"Bearer {self.key}":
            # Some say what they were given.
            return web.json_response({"error": f"no such key: {given}"}, status=401)
        if not request.path.startswith(self.prefix):
            return _page(404, "Not Found")
        if (request.content_length or 0) > self.most_bytes:
            return _page(413, "413 Request Entity Too Large")
        return await self._passed_on(request)

    async def _passed_on(self, request: web.Request) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _OF_A_HOP}
        if request.content_length is not None:
            headers["Content-Length"] = str(request.content_length)
        url = self.target + request.path_qs.removeprefix(self.prefix)
        body = request.content if request.body_exists else None
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=headers, data=body) as reply,
        ):
            kept = {k: v for k, v in reply.headers.items() if k.lower() not in _OF_A_HOP}
            response = web.StreamResponse(status=reply.status, headers=kept)
            await response.prepare(request)
            async for chunk in reply.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _serve(self, listening: threading.Event) -> None:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        context = None
        if self.certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.certificate.chain, self.certificate.key)
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context).start()
        self.port = runner.addresses[0][1]
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        listening.set()
        await self._end.wait()
        await runner.cleanup()

    def __enter__(self) -> ReverseProxy:
        listening = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listening)), daemon=True
        )
        self._thread.start()
        assert listening.wait(30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)


def _page(status: int, title: str) -> web.Response:
    text = f"<html>\n<head><title>{title}</title></head>\n<body>{title}<hr>a proxy</body></html>"
    return web.Response(status=status, text=text, content_type="text/html")
