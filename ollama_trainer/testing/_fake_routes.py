"""The routes of the fake Ollama."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import ipaddress
import json
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ollama_trainer.testing import _fake_answers as answers
from ollama_trainer.testing._fake_faults import Faults
from ollama_trainer.testing._fake_render import rendered
from ollama_trainer.testing._fake_store import Refusal, Store, StoredModel, parse_name

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
#: Longer than a test's client waits, and short enough for the server to end meanwhile.
_HANG_S = 1.0
#: Whether the answer to the request in hand is lost.
_LOST = ContextVar("lost", default=False)
_LOCAL_ENDINGS = (".localhost", ".local", ".internal")


@dataclass(slots=True)
class Loaded:
    """Weights in memory."""

    #: Who loaded them.
    model: StoredModel
    #: When they go, as /api/ps writes it.
    expires: str
    #: Requests that they are answering now.
    n_active: int = 0
    #: Whether they go as soon as they answer nobody.
    leaving: bool = False


class Routes:
    """Requests in, answers out. `vanish` is called where the server is to go away."""

    def __init__(self, store: Store, version: str, vanish: Callable[[], Awaitable[None]]) -> None:
        self.store = store
        self.faults = Faults()
        #: What every model answers: a text, or a function of the messages.
        self.answer: str | Callable[[list[dict[str, Any]]], str] = "Hello from the fake one."
        #: (method, path, body) of each request so far; the body of JSON requests only.
        self.requests: list[tuple[str, str, Any]] = []
        self._version = version
        self._vanish = vanish
        #: By the digest of the weights.
        self._loaded: dict[str, Loaded] = {}

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", self._root),
                web.get("/api/version", self._tell_version),
                web.get("/api/tags", self._tags),
                web.get("/api/ps", self._ps),
                web.post("/api/show", self._show),
                web.post("/api/copy", self._copy),
                web.delete("/api/delete", self._delete),
                web.head("/api/blobs/{digest}", self._head_blob),
                web.post("/api/blobs/{digest}", self._post_blob),
                web.post("/api/create", self._create),
                web.post("/api/generate", self._generate),
                web.post("/api/chat", self._chat),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/_fake":
            return await handler(request)
        if self.faults.delay_s:
            await asyncio.sleep(self.faults.delay_s)
        if self.faults.forbid or not _is_local_name(request.host):
            return web.Response(status=403)
        if self.faults.vanish_at and request.path.startswith(self.faults.vanish_at):
            _break(request)
            await self._vanish()
            return web.Response()
        is_json = request.method in ("POST", "DELETE") and "/blobs/" not in request.path
        body = await _body(request) if is_json else None
        self.requests.append((request.method, request.path, body))
        once = self._once(f"{request.method} {request.path}")
        try:
            return await (self._go_wrong(request, handler, once) if once else handler(request))
        except Refusal as refusal:
            return web.json_response({"error": refusal.text}, status=refusal.status)

    def _once(self, asked: str) -> str:
        """What goes wrong at this request."""
        if not self.faults.once or asked != self.faults.once_at:
            return ""
        self.faults.once_after -= 1
        if self.faults.once_after >= 0:
            return ""
        once, self.faults.once = self.faults.once, ""
        return once

    async def _go_wrong(
        self, request: web.Request, handler: Handler, once: str
    ) -> web.StreamResponse:
        if once.isdecimal():
            # What a foreign host name gets is without a word.
            text = "" if once == "403" else json.dumps({"error": "something broke"})
            return web.Response(status=int(once), text=text)
        if once == "lose":
            mark = _LOST.set(True)
            await handler(request)
            _LOST.reset(mark)
        elif once == "hang":
            await asyncio.sleep(_HANG_S)
        _break(request)
        return web.Response()

    async def _root(self, _: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def _tell_version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self._version})

    async def _tags(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [self._listed(m) for m in self.store.models()]})

    async def _ps(self, _: web.Request) -> web.Response:
        models = [
            self._listed(loaded.model)
            | {"expires_at": loaded.expires, "size_vram": 0}
            | {"context_length": int(loaded.model.parameters.get("num_ctx", 4096))}
            for loaded in self._loaded.values()
        ]
        return web.json_response({"models": models})

    def _listed(self, model: StoredModel) -> dict[str, Any]:
        path = self.store.blob_path(model.blob)
        elsewhere = {"remote_host": model.remote_host, "remote_model": model.short_name}
        return (elsewhere if model.remote_host else {}) | {
            "name": model.short_name,
            "model": model.short_name,
            "modified_at": model.modified,
            "size": path.stat().st_size if path.exists() else 0,
            "digest": model.digest,
            "details": model.details
            | {
                "context_length": model.setting("context_length"),
                "embedding_length": model.setting("embedding_length"),
            },
            "capabilities": model.capabilities,
        }

    async def _show(self, request: web.Request) -> web.Response:
        body = await _json(request)
        name = body.get("model") or body.get("name")
        if not name:
            raise Refusal("model is required", 400)
        model = self.store.find(name)
        if model is None:
            raise Refusal(f"model '{_tagged(name)}' not found", 404)
        return web.json_response(shown(model, self._told_path))

    def _told_path(self, blob: str) -> str:
        path = self.store.blob_path(blob)
        return f"/elsewhere/blobs/{path.name}" if self.faults.hides_blobs else str(path)

    async def _copy(self, request: web.Request) -> web.Response:
        body = await _json(request)
        self.store.copy(body.get("source", ""), body.get("destination", ""))
        return web.Response()

    async def _delete(self, request: web.Request) -> web.Response:
        body = await _json(request)
        self.store.delete(body.get("model") or body.get("name") or "")
        return web.Response()

    async def _head_blob(self, request: web.Request) -> web.Response:
        exists = self.store.blob_path(request.match_info["digest"]).exists()
        return web.Response(status=200 if exists else 404)

    async def _post_blob(self, request: web.Request) -> web.Response:
        digest = request.match_info["digest"]
        path = self.store.blob_path(digest)
        if path.exists():
            # The body stays unread and the connection closes: a sender of much sees a reset.
            response = web.Response()
            response.force_close()
            return response
        if self.faults.blob_reset == "before":
            await request.content.readany()
            _break(request)
            return web.Response()
        scratch = path.with_name(f"upload-{uuid.uuid4().hex}")
        total = hashlib.sha256()
        with scratch.open("wb") as out:
            async for chunk in request.content.iter_chunked(1 << 20):
                total.update(chunk)
                out.write(chunk)
        got = f"sha256:{total.hexdigest()}"
        if got != digest:
            scratch.unlink()
            raise Refusal(f'digest mismatch, expected "{digest}", got "{got}"', 400)
        scratch.replace(path)
        if self.faults.blob_reset == "after":
            _break(request)
        return web.Response(status=201)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        steps = self._faulty(self.store.create(body, spoils=self.faults.spoils))
        if body.get("stream") is False:
            for _ in steps:
                pass
            return web.json_response({"status": "success"})
        first = next(steps)
        response = await _start_stream(request)
        await _send(response, {"status": first})
        try:
            for status in steps:
                await _send(response, {"status": status})
        except Refusal as refusal:
            await _send(response, {"error": refusal.text})
            return response
        if self.faults.create_lost:
            _break(request)
        elif not self.faults.create_ends:
            await _send(response, {"status": "success"})
        return response

    def _faulty(self, steps: Iterator[str]) -> Iterator[str]:
        for status in steps:
            yield status
            if self.faults.create_error:
                raise Refusal(self.faults.create_error)
            if self.faults.create_ends:
                return

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        name = str(body.get("model", ""))
        model = self.store.find(name)
        if model is None:
            raise Refusal(f"model '{name}' not found", 404)
        prompt = body.get("prompt") or ""
        if not prompt and _frees(body):
            return self._unload(model, name, chat=False)
        self._load(model, body)
        messages = [{"role": "user", "content": prompt}] if prompt else []
        return await self._reply(request, body, name, model, messages, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        name = str(body.get("model", ""))
        if parse_name(name) is None:
            raise Refusal("model is required", 400)
        model = self.store.find(name)
        if model is None:
            raise Refusal(f"model '{name}' not found", 404)
        messages = body.get("messages") or []
        if not messages and _frees(body):
            return self._unload(model, name, chat=True)
        if "completion" not in model.capabilities:
            raise Refusal(f'"{name}" does not support chat', 400)
        if body.get("think") and "thinking" not in model.capabilities:
            raise Refusal(f'"{name}" does not support thinking', 400)
        if body.get("tools") and "tools" not in model.capabilities:
            raise Refusal(f"{'/'.join(model.name[:3])}:{model.name[3]} does not support tools", 400)
        self._load(model, body)
        if messages and body.get("_debug_render_only") and self.faults.renders:
            told = {"rendered_template": rendered(model, body)}
            return web.json_response({"model": name, "_debug_info": told})
        return await self._reply(request, body, name, model, messages, chat=True)

    def _unload(self, model: StoredModel, name: str, *, chat: bool) -> web.Response:
        # By the weights that the name has now: what an overwritten name had loaded stays.
        if loaded := self._loaded.get(model.blob):
            loaded.leaving = True
            self._end_idle(model.blob)
        return web.json_response(answers.without_words(name, "unload", chat=chat))

    def _load(self, model: StoredModel, body: Mapping[str, Any]) -> None:
        answers.check_options({**model.parameters, **(body.get("options") or {})})
        if self.faults.busy:
            self.faults.busy -= 1
            raise Refusal("server busy, please try again.  maximum pending requests exceeded", 503)
        if self.faults.load_error:
            raise Refusal(self.faults.load_error)
        answers.check_loads(model)
        keep_s = answers.keep_alive_s(body.get("keep_alive"))
        loaded = self._loaded.setdefault(model.blob, Loaded(model, ""))
        loaded.expires = answers.expiry(keep_s)
        if "keep_alive" in body:
            loaded.leaving = keep_s == 0

    def _end_idle(self, blob: str) -> None:
        """Frees weights that are to go, unless they answer somebody."""
        loaded = self._loaded.get(blob)
        if loaded and loaded.leaving and not loaded.n_active:
            del self._loaded[blob]

    async def _held(self) -> None:
        # The fault is set and set back by any thread, or over HTTP: no event to wait for.
        while self.faults.hold_answers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _reply(
        self,
        request: web.Request,
        body: Mapping[str, Any],
        name: str,
        model: StoredModel,
        messages: list[dict[str, Any]],
        *,
        chat: bool,
    ) -> web.StreamResponse:
        if not messages:
            return web.json_response(answers.without_words(name, "load", chat=chat))
        options = {**model.parameters, **(body.get("options") or {})}
        text = self.answer if isinstance(self.answer, str) else self.answer(messages)
        tokens = sum(len(str(message.get("content", "")).split()) for message in messages)
        pieces = answers.chunks(
            name,
            text,
            int(options.get("num_predict", -1)),
            chat=chat,
            prompt_tokens=tokens,
        )
        loaded = self._loaded[model.blob]
        loaded.n_active += 1
        try:
            if body.get("stream") is False:
                await self._held()
                whole = answers.whole(pieces, chat=chat)
                return web.json_response(answers.with_calls(whole) if body.get("tools") else whole)
            response = await _start_stream(request)
            for piece in pieces:
                await _send(response, piece)
                await self._held()
            return response
        finally:
            loaded.n_active -= 1
            self._end_idle(model.blob)

    def state(self) -> dict[str, Any]:
        """What GET /_fake tells."""
        return {"faults": dataclasses.asdict(self.faults), "requests": self.requests}


def shown(model: StoredModel, path_of: Callable[[str], str]) -> dict[str, Any]:
    """The answer of /api/show.

    Args:
        path_of: tells where a blob lies by its digest.
    """
    hidden = ("general.name", "tokenizer.chat_template")
    values = {key: value for key, value in model.gguf.values.items() if key not in hidden}
    lines: list[str] = []
    for key, value in model.parameters.items():
        each = value if isinstance(value, list) else [value]
        lines.extend(f"{key:<30} {json.dumps(one, ensure_ascii=False)}" for one in each)
    answer = {
        "license": "\n".join(model.licenses),
        "modelfile": "\n".join(_modelfile(model, path_of)) + "\n",
        "parameters": "\n".join(lines),
        "template": model.shown_template,
        "system": model.system,
        "details": model.details,
        "messages": model.messages,
        "model_info": {
            key: None if isinstance(value, list) else value for key, value in values.items()
        }
        | {"general.parameter_count": model.gguf.parameter_count},
        "tensors": [
            {"name": tensor.name, "type": tensor.type_name, "shape": tensor.shape}
            for tensor in model.gguf.tensors
        ],
        "capabilities": model.capabilities,
        "modified_at": model.modified,
        "requires": model.requires,
        "remote_host": model.remote_host,
        "remote_model": model.short_name if model.remote_host else "",
    }
    # What is empty is left out; renderer and parser stand in the Modelfile alone.
    return {key: value for key, value in answer.items() if value or key == "model_info"}


def _modelfile(model: StoredModel, path_of: Callable[[str], str]) -> Iterator[str]:
    yield "# Modelfile of the fake Ollama"
    yield "# To build a new Modelfile based on this, replace FROM with:"
    yield f"# FROM {model.short_name}\n"
    yield f"FROM {path_of(model.blob) if model.format == 'gguf' else model.short_name}"
    yield from (f"ADAPTER {path_of(digest)}" for digest in model.adapters)
    yield from (f"FROM {path_of(digest)}" for digest in model.projectors)
    yield f"TEMPLATE {_quoted(model.template or '{{ .Prompt }}')}"
    for command in ("system", "renderer", "parser"):
        if text := getattr(model, command):
            yield f"{command.upper()} {_quoted(text)}"
    for key, value in model.parameters.items():
        for each in value if isinstance(value, list) else [value]:
            written = each if isinstance(each, str) else json.dumps(each)
            yield f"PARAMETER {key} {_quoted(written)}"
    for text in model.licenses:
        yield f"LICENSE {_quoted(text)}"
    for message in model.messages:
        yield f"MESSAGE {message['role']} {_quoted(message['content'])}"


def _quoted(text: str) -> str:
    # As carelessly as the real one: quotes come only with newlines or blanks at the ends.
    if "\n" in text or text != text.strip(" "):
        return f'"""{text}"""' if '"' in text else f'"{text}"'
    return text


def _frees(body: Mapping[str, Any]) -> bool:
    return "keep_alive" in body and answers.keep_alive_s(body["keep_alive"]) == 0


def _tagged(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _is_local_name(host: str) -> bool:
    """Ollama's defence against DNS rebinding, for a server that listens on loopback."""
    bare, _, port = host.lower().rpartition(":")
    # An IPv6 address in brackets, but without a port, is not taken for one.
    name = bare.strip("[]") if port.isdigit() and not bare.endswith(":") else host.lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost") or name.endswith(_LOCAL_ENDINGS)
    return address.is_loopback or address.is_private or address.is_unspecified


def _break(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError:
        return None


async def _json(request: web.Request) -> dict[str, Any]:
    data = await request.read()
    if not data:
        raise Refusal("missing request body", 400)
    try:
        body = json.loads(data)
    except ValueError as error:
        raise Refusal(str(error), 400) from error
    if not isinstance(body, dict):
        raise Refusal("json: cannot unmarshal into an object", 400)
    return body


async def _start_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    if not _LOST.get():
        await response.prepare(request)
    return response


async def _send(response: web.StreamResponse, value: Mapping[str, Any]) -> None:
    if response.prepared:
        await response.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
