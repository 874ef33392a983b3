"""What can go wrong at each single request of a publishing, and what is left then.

The requests are those that a publishing makes, counted when it goes well: a step that is added to
the publisher is tried here, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ollama_trainer.errors import PublishError
from ollama_trainer.ollama import api
from ollama_trainer.ollama.host import resolve
from ollama_trainer.publishers import PublisherOptions
from ollama_trainer.publishers import ollama as publisher_module
from ollama_trainer.publishers.ollama import OllamaPublisher
from ollama_trainer.records import ExpectedPrompt
from ollama_trainer.testing.fake_ollama import FakeOllama

from .conftest import Files
from .test_ollama_publisher import MODELFILE

NAME = "a:b"
#: Fault -> whether it may pass by itself.
FAULTS = {"break": True, "lose": True, "hang": True, "503": True, "500": False, "403": False}
#: For requests that are never answered.
SHORT = api.Limits(answer_s=0.3, load_s=0.3)
ASKED = {"role": "user", "content": "Hello?"}


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    with FakeOllama("0.40") as one:
        yield one


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_BUSY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(publisher_module, "_UNLOAD_S", 0.5)


@dataclass
class Publishing:
    """Attempts at publishing one file under one name."""

    fake: FakeOllama
    gguf: Path
    #: For what is looked at beside; to make one for each question takes longer than to ask it.
    client: httpx.Client
    prompts: tuple[ExpectedPrompt, ...] = ()

    def __call__(self, attempt: int = 1, limits: api.Limits | None = None) -> str:
        options = PublisherOptions(num_thread=2, attempt=attempt, prompts=self.prompts)
        publisher = OllamaPublisher(options, resolve(self.fake.url), limits)
        return publisher.publish(self.gguf, MODELFILE, NAME, lambda *_: None).ref

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        return self.client.request(method, path, json=body)

    @property
    def names(self) -> list[str]:
        return [model.short_name for model in self.fake.store.models()]

    @property
    def loaded(self) -> list[str]:
        return [model["name"] for model in self.ask("GET", "/api/ps").json()["models"]]

    def clean(self) -> None:
        """As before the first attempt."""
        self.fake.faults.once = ""
        for model in self.fake.store.models():
            self.ask("POST", "/api/generate", {"model": model.short_name, "keep_alive": 0})
            self.fake.store.blob_path(model.blob).unlink(missing_ok=True)
            self.ask("DELETE", "/api/delete", {"model": model.short_name})
        for blob in self.blobs:
            blob.unlink()
        assert (self.names, self.loaded) == ([], [])

    @property
    def blobs(self) -> list[Path]:
        folder = self.fake.store.blob_path("sha256:" + "0" * 64).parent
        return [path for path in folder.iterdir() if path.name.startswith("sha256-")]


@pytest.fixture
def publishing(fake: FakeOllama, tiny_files: Files) -> Iterator[Publishing]:
    """Its prompts are compared as well."""
    client = httpx.Client(base_url=fake.url, trust_env=False)
    one = Publishing(fake, tiny_files.protected, client)
    one()
    body = {"model": NAME, "messages": [ASKED], "stream": False, "_debug_render_only": True}
    text = one.ask("POST", "/api/chat", body).json()["_debug_info"]["rendered_template"]
    one.prompts = (ExpectedPrompt(messages=(ASKED,), text=text),)
    one.clean()
    yield one
    client.close()


def steps(publishing: Publishing) -> list[tuple[str, int]]:
    """Each request of a publishing that goes well, and how many of its kind come before it."""
    before = len(publishing.fake.requests)
    assert publishing() == NAME
    asked = [f"{method} {path}" for method, path, _ in publishing.fake.requests[before:]]
    seen: Counter[str] = Counter()
    found = []
    for one in asked:
        found.append((one, seen[one]))
        seen[one] += 1
    return found


def test_every_kind_of_request_is_tried(publishing: Publishing) -> None:
    kinds = {kind.partition("/sha256:")[0].split("/")[-1] for kind, _ in steps(publishing)}
    assert kinds >= {
        "version", "tags", "blobs", "create", "show", "generate", "chat", "ps", "copy", "delete",
    }  # fmt: skip
    assert all("/api/pull" not in kind for kind, _ in steps(publishing))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_each_request(publishing: Publishing, fault: str) -> None:
    content, state = publishing.gguf.read_bytes(), publishing.gguf.stat()
    for kind, n_before in steps(publishing):
        publishing.clean()
        where = f"{fault} at {kind} after {n_before}"
        faults = publishing.fake.faults
        faults.once, faults.once_at, faults.once_after = fault, kind, n_before
        error = attempted(publishing, SHORT if fault == "hang" else None)
        assert faults.once == "", f"{where}: it never came to that"
        check_outcome(publishing, error, fault, f"{where}: {error}")
        assert publishing.gguf.read_bytes() == content
        assert publishing.gguf.stat().st_mtime_ns == state.st_mtime_ns

        assert publishing(attempt=2) == NAME, where
        assert (publishing.names, publishing.loaded) == ([NAME], []), where


def attempted(publishing: Publishing, limits: api.Limits | None = None) -> PublishError | None:
    """How it failed; None where it succeeded in spite of the fault."""
    try:
        assert publishing(limits=limits) == NAME
    except PublishError as error:
        return error
    return None


def check_outcome(
    publishing: Publishing, error: PublishError | None, fault: str, where: str
) -> None:
    left = [name for name in publishing.names if name != NAME]
    assert len(left) <= 1, where
    assert all(name.startswith("a:untried-") for name in left), where
    assert publishing.loaded == [], where
    if error is None:
        assert NAME in publishing.names, where
        return
    assert error.cause, where
    assert error.remedy, where
    assert error.retryable == FAULTS[fault], where
    # What may pass is tried again, and may find it there; what will not is no success.
    assert error.retryable or NAME not in publishing.names, where


def test_an_upload_that_broke_and_cannot_be_asked_for(publishing: Publishing) -> None:
    """HEAD again, and that breaks as well."""
    (head,) = [(kind, n) for kind, n in steps(publishing) if kind.startswith("HEAD /api/blobs/")]
    publishing.clean()
    faults = publishing.fake.faults
    faults.blob_reset = "before"
    faults.once, faults.once_at, faults.once_after = "503", head[0], 1
    error = attempted(publishing)
    assert faults.once == ""
    faults.blob_reset = ""
    check_outcome(publishing, error, "503", "HEAD again")
    assert error is not None
    assert publishing(attempt=2) == NAME
