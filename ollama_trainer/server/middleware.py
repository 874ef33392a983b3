"""What every request passes: who may call, and errors as JSON."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from ollama_trainer.errors import TrainerError
from ollama_trainer.server.wire import error_reply, json_reply
from ollama_trainer.settings import WILDCARD_HOSTS, Settings

_log = logging.getLogger(__name__)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def json_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every refusal is JSON, also those of the framework."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        message = _TEXTS.get(error.status, error.reason)
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        reply = error_reply(message, error.reason.lower().replace(" ", "_"))
        return json_reply(reply, status=error.status, headers=headers)
    except TrainerError as error:
        status = _STATUSES.get(error.code, 500)
        return json_reply(error_reply(str(error), error.code), status=status)
    except Exception:  # noqa: BLE001 - the request boundary
        _log.exception("%s %s broke", request.method, request.rel_url.raw_path)
        reply = error_reply("the server failed to answer. See its log.", "internal")
        return json_reply(reply, status=500)


def only_known_callers(settings: Settings) -> Middleware:
    """Refuses requests that a web page, or a name that somebody else controls, could have sent.

    A browser sends `Origin` with what a page asks for, and the name in `Host` as the page wrote
    it; programs on this machine send a loopback name and no origin.
    """
    names = _LOOPBACK | {name.lower() for name in settings.allowed_hosts}
    names |= {settings.host.lower()} - WILDCARD_HOSTS

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if _host_name(host) not in names:
            return _forbidden(
                f"this server is not called {host!r}",
                "Call it by a loopback name, or add the name to the setting allowed_hosts.",
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() != f"{request.scheme}://{host}".lower():
            return _forbidden(
                f"requests from the web page origin {origin!r} are refused",
                "Send the request from a program, without an Origin header.",
            )
        return await handler(request)

    return check


_STATUSES = {
    "invalid_request": 400, "dataset": 400, "unknown_run": 404, "no_report": 404,
    "unknown_job": 404, "conflict": 409, "store_unavailable": 503, "machine_busy": 503,
    "disk_full": 507,
}  # fmt: skip
_TEXTS = {
    404: "there is nothing at this path. See POST /train, GET /status/{runId}, GET /runs and "
    "GET /health.",
    405: "this path does not answer this method. See POST /train, GET /status/{runId} and "
    "GET /runs.",
    413: "the body is larger than 1 MB. Send the path of the data set, not its content.",
}


@lru_cache
def _host_name(host: str) -> str:
    """The name in a Host header, lower case, without port and brackets; empty when malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if "@" not in host else ""
    except ValueError:
        return ""


def _forbidden(cause: str, remedy: str) -> web.Response:
    return json_reply(error_reply(f"{cause}. {remedy}", "forbidden"), status=403)
