"""The calls to Ollama, with limits on all of them and errors that say cause and remedy.

The `ollama` package serves where it can. Uploading (it posts without asking first, and shows no
progress) and creating (it has no limit on waiting, and takes an end without success for success)
are done here.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import ollama

from ollama_trainer.errors import OllamaUnreachable, PublishError
from ollama_trainer.ollama import access
from ollama_trainer.ollama.host import Endpoint

#: Called with the fraction done, 0 to 1, and what is being done.
Report = Callable[[float, str], None]

#: The first version whose /api/create takes `files`.
OLDEST_VERSION = (0, 5, 5)
_CHUNK_BYTES = 1 << 20
#: Seconds to wait before each further try when Ollama says that it is busy.
_BUSY_PAUSES_S = (0.5, 2.0, 5.0)
_LOG_REMEDY = "Ollama's own log says more; the GGUF is kept, and another Ollama may take it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The longest silences that are borne, in seconds."""

    connect_s: float = 5.0
    #: An answer that needs no model.
    answer_s: float = 60.0
    #: An answer for which gigabytes may have to be read or written first.
    load_s: float = 600.0

    def timeout(self, read_s: float) -> httpx.Timeout:
        return httpx.Timeout(read_s, connect=self.connect_s, write=self.answer_s)


class OllamaApi:
    """One Ollama server. To be used as a context manager.

    Every method raises `OllamaUnreachable` when no connection can be made or it breaks, and
    `PublishError` when Ollama refuses.
    """

    def __init__(self, endpoint: Endpoint, limits: Limits) -> None:
        # httpx logs every request at level INFO, into the log of the run.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._url = endpoint.url
        self._limits = limits
        key = access.api_key()
        # Redirections are errors: a POST would become a GET, and the key would stay behind.
        common: dict[str, Any] = {
            # A proxy is for the way out of this machine.
            "trust_env": not endpoint.loopback,
            "verify": access.trusted(endpoint),
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "follow_redirects": False,
        }
        quick = limits.timeout(limits.answer_s)
        self._http = httpx.Client(base_url=endpoint.url, timeout=quick, **common)
        self._quick = ollama.Client(endpoint.url, timeout=quick, **common)

    def __enter__(self) -> OllamaApi:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in (self._http, self._quick):
            client.close()

    def check_version(self) -> str:
        """Ollama's version.

        Raises:
            PublishError: it is too old, or what answers is not Ollama.
        """
        with self._asking("tell its version"):
            response = self._http.get("/api/version")
            if response.status_code not in (200, 404):
                raise self._refused("tell its version", *_told(response))
            answer = response.json() if response.status_code == 200 else None
        version = answer.get("version") if isinstance(answer, dict) else None
        if not isinstance(version, str):
            raise PublishError(
                f"what answers at {self._url} is not Ollama",
                "Correct OLLAMA_HOST, the path after the host included.",
            )
        numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
        # 0.0.0 is what an Ollama calls itself that someone built from source.
        if numbers and (0, 0, 0) < tuple(map(int, numbers.groups())) < OLDEST_VERSION:
            raise PublishError(
                f"Ollama {version} at {self._url} is too old to take a finished GGUF",
                f"Update it to {'.'.join(map(str, OLDEST_VERSION))} or later.",
            )
        return version

    def has_blob(self, digest: str) -> bool:
        with self._asking("look for the file"):
            status = self._http.head(f"/api/blobs/{digest}").status_code
        if status not in (200, 404):
            raise self._refused("look for the file", status, "")
        return status == 200

    def upload(self, gguf: Path, digest: str, report: Report) -> None:
        """Brings the file to Ollama, unless it is there.

        Args:
            report: called with the fraction that is sent.
        """
        if self.has_blob(digest):
            return
        what = "take the file"
        headers = {"Content-Length": str(gguf.stat().st_size)}
        try:
            with self._asking(what):
                response = self._http.post(
                    f"/api/blobs/{digest}",
                    content=_chunks(gguf, report),
                    headers=headers,
                    timeout=self._limits.timeout(self._limits.load_s),
                )
        except OllamaUnreachable:
            # Ollama answers without reading when the file has come meanwhile: a reset on our side.
            if self.has_blob(digest):
                return
            raise
        if response.status_code not in (200, 201):
            raise self._refused(what, *_told(response))

    def create(self, body: Mapping[str, Any], report: Report) -> None:
        """POST /api/create; returns when Ollama has said `success`.

        Args:
            report: called with 0 and Ollama's words.
        """
        what = "create the model"
        timeout = self._limits.timeout(self._limits.load_s)
        with (
            self._asking(what),
            self._http.stream("POST", "/api/create", json=body, timeout=timeout) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise self._refused(what, *_told(response))
            for message in _lines(response):
                if "error" in message:
                    raise self._refused(what, 200, json.dumps(message))
                status = str(message.get("status", ""))
                if status == "success":
                    return
                report(0.0, status)
        raise PublishError("Ollama stopped creating the model without a reason", _LOG_REMEDY)

    def show(self, model: str) -> ollama.ShowResponse | None:
        """What Ollama knows of the model; None when it has none of that name."""
        with self._asking("show the model"):
            try:
                return self._quick.show(model)
            except ollama.ResponseError as error:
                if error.status_code == 404:
                    return None
                raise

    def described(self, model: str) -> dict[str, Any] | None:
        """The whole answer of /api/show, which the package cuts; None when it has no such model."""
        what = f"show {model}"
        with self._asking(what):
            response = self._http.post("/api/show", json={"model": model})
            if response.status_code == 404:
                return None
            if response.status_code != 200:
                raise self._refused(what, *_told(response))
            return _object(response.content)

    def tags(self) -> list[dict[str, Any]]:
        """The models that it lists, as /api/tags tells them."""
        what = "list its models"
        with self._asking(what):
            response = self._http.get("/api/tags")
            if response.status_code != 200:
                raise self._refused(what, *_told(response))
            models = _object(response.content).get("models") or []
            return [model for model in models if isinstance(model, dict)]

    def listed(self) -> dict[str, tuple[str, str]]:
        """Lower-case name -> (name as Ollama writes it, digest of its manifest)."""
        with self._asking("list its models"):
            models = self._quick.list().models
        return {str(m.model).lower(): (str(m.model), str(m.digest)) for m in models}

    def loaded(self) -> set[str]:
        """Lower-case names of the models in memory."""
        return {str(model.name).lower() for model in self._in_memory()}

    def held_bytes(self) -> dict[str, tuple[int, int]]:
        """Name of each model in memory -> bytes that it takes, and those of them on GPUs."""
        return {str(m.name): (int(m.size or 0), int(m.size_vram or 0)) for m in self._in_memory()}

    def loaded_digests(self) -> set[str]:
        """Digests of the manifests that the models in memory were loaded by."""
        return {str(model.digest) for model in self._in_memory()}

    def _in_memory(self) -> Sequence[ollama.ProcessResponse.Model]:
        with self._asking("list its loaded models"):
            return self._quick.ps().models

    def copy(self, source: str, destination: str) -> None:
        with self._asking(f"name the model {destination}"):
            self._quick.copy(source, destination)

    def delete(self, model: str) -> None:
        """Deletes the model if it is there."""
        with self._asking(f"delete {model}"):
            try:
                self._quick.delete(model)
            except ollama.ResponseError as error:
                if error.status_code != 404:
                    raise

    def load(self, model: str, options: Mapping[str, Any]) -> None:
        """Loads the model and lets it write one token."""
        body = {"model": model, "prompt": "Hi", "options": {**options, "num_predict": 1}}
        self._answer("load the model", "/api/generate", body)

    def chat(
        self, model: str, asked: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """One whole answer.

        Args:
            asked: `messages`, and perhaps `tools` and `think`, as /api/chat takes them.
            options: Ollama's.
        """
        body = {"model": model, "options": options, **asked}
        return self._answer("chat with the model", "/api/chat", body)

    def render(
        self, model: str, asked: Mapping[str, Any], options: Mapping[str, Any]
    ) -> str | None:
        """The prompt that Ollama makes of a conversation.

        Args:
            asked: `messages`, and perhaps `tools` and `think`, as /api/chat takes them.
            options: Ollama's; an Ollama that does not know how to render answers with them.

        Returns:
            None where it answered instead.
        """
        body = {"model": model, "truncate": False, "_debug_render_only": True, "options": options}
        told = self._answer("render a prompt", "/api/chat", {**body, **asked}).get("_debug_info")
        return str(told["rendered_template"]) if isinstance(told, dict) else None

    def _answer(self, what: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A model's whole answer; asked for again for some seconds while Ollama says it is busy."""
        timeout = self._limits.timeout(self._limits.load_s)
        whole = {**body, "stream": False}
        with self._asking(what):
            response = self._http.post(path, json=whole, timeout=timeout)
            for pause_s in _BUSY_PAUSES_S:
                if response.status_code != 503:
                    break
                time.sleep(pause_s)
                response = self._http.post(path, json=whole, timeout=timeout)
            if response.status_code != 200:
                raise self._refused(what, *_told(response))
            return _object(response.content)

    def unload(self, model: str) -> None:
        """Asks Ollama to free the model's memory; it may do so a moment later."""
        with self._asking("unload the model"):
            self._quick.generate(model, keep_alive=0)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except ollama.ResponseError as error:
            raise self._refused(what, error.status_code, error.error) from error
        except httpx.ReadTimeout as error:
            late = PublishError(
                f"Ollama at {self._url} was asked to {what} and has not answered in time",
                "See what keeps it busy (ollama ps, its log), then try again.",
            )
            late.retryable = True
            raise late from error
        except (ConnectionError, httpx.TransportError) as error:
            if (failure := access.tls_failure(self._url, error)) is not None:
                raise failure from error
            raise OllamaUnreachable(
                f"Ollama at {self._url} cannot be reached to {what} ({_words(error)})",
                "Start it (ollama serve) or set OLLAMA_HOST to where it runs, then try again.",
            ) from error
        except (ValueError, httpx.HTTPError) as error:
            raise PublishError(
                f"what answers at {self._url} is not Ollama, or one that nobody knows yet "
                f"(asked to {what}: {_words(error)})",
                "Check OLLAMA_HOST, and any proxy between.",
            ) from error

    def _refused(self, what: str, status: int, text: str, location: str = "") -> PublishError:
        text = _error_text(text)
        if (refusal := access.refusal(self._url, what, status, text, location)) is not None:
            return refusal
        if status == 403 and not text:
            return PublishError(
                f"Ollama at {self._url} refused to {what} without a word (403)",
                "It does so when it is called by a host name that it does not know as its own: "
                "set OLLAMA_HOST to its IP address, or let it listen on all addresses "
                "(OLLAMA_HOST=0.0.0.0 for its own process), or let a proxy before it send a Host "
                "that it knows.",
            )
        if "no space left" in text.lower():
            full = PublishError(
                f"Ollama at {self._url} has no room to {what} ({text})",
                "Make room where Ollama keeps its models.",
            )
            full.retryable = True
            return full
        # A proxy before it says 502 or 504 while it starts.
        if status in (429, 502, 503, 504):
            busy = PublishError(
                f"Ollama at {self._url} is too busy to {what} ({text or 'HTTP 503'})",
                "Try again when it has less to do.",
            )
            busy.retryable = True
            return busy
        return PublishError(f"Ollama could not {what}: {text or f'HTTP {status}'}", _LOG_REMEDY)


def _chunks(gguf: Path, report: Report) -> Iterator[bytes]:
    size = gguf.stat().st_size
    sent = 0
    with gguf.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            yield chunk
            sent += len(chunk)
            report(sent / size, f"uploaded {sent / 1e6:.0f} of {size / 1e6:.0f} MB")


def _lines(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The objects of an NDJSON answer, as they come.

    Not `iter_lines`: it also splits at characters that may stand inside a JSON string.
    """
    rest = b""
    for data in response.iter_bytes():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if line.strip():
                yield _object(line)
    if rest.strip():
        yield _object(rest)


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("a line that is no JSON object")
    return value


def _told(response: httpx.Response) -> tuple[int, str, str]:
    """Status, body, and where it leads, if elsewhere."""
    return response.status_code, response.text, response.headers.get("location", "")


def _error_text(text: str) -> str:
    """The words in a body `{"error": …}`, or the body itself, shortened."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and "error" in value:
        text = str(value["error"])
    return access.in_words(text).strip()[:1000]


def _words(error: Exception) -> str:
    # The package's own words for "no connection" end in advice that does not fit here.
    if isinstance(error, ConnectionError):
        return "no connection"
    return str(error) or type(error).__name__
