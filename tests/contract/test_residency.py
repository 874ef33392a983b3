"""Models leave an Ollama's memory for a training, and no answer is cut by it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from ollama_trainer.backends import FreeMemory
from ollama_trainer.errors import MemoryHeld
from ollama_trainer.ollama.api import OllamaApi
from ollama_trainer.pipeline.residency import Mode, make_room_for
from ollama_trainer.testing.fake_ollama import FakeOllama
from tests.ollama_models import create

from .conftest import Server

#: Tokens of the long answer.
_LONG = 80


class Memory:
    """A machine on which nothing but this Ollama's models takes memory."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.capacity = self.taken + 1
        self.notes: list[str] = []

    @property
    def taken(self) -> int:
        models = self.server.ask("GET", "/api/ps").json()["models"]
        return sum(model["size"] for model in models)

    def measure(self) -> FreeMemory:
        return FreeMemory(n_bytes=self.capacity - self.taken, on_gpu=False)

    def make_room(self, mode: Mode, host: str = "") -> None:
        """For a training that would need all of it."""

        def note(message: str, _: Mapping[str, Any]) -> None:
            self.notes.append(message)

        make_room_for(self.capacity, host or self.server.url, mode, self.measure, note)


@pytest.fixture
def memory(server: Server) -> Memory:
    """With one model in it, which nobody uses."""
    create(server.url, server.name(), server.files.protected)
    server.ask("POST", "/api/generate", {"model": server.name(), "stream": False})
    assert server.loaded() == [server.name()]
    return Memory(server)


def test_an_idle_model_leaves(server: Server, memory: Memory) -> None:
    memory.make_room("unload")
    assert server.loaded() == []
    assert server.names() == [server.name()], "it is still there to be used again"
    (note,) = memory.notes
    assert server.name() in note


def test_it_stays_where_it_may(server: Server, memory: Memory) -> None:
    memory.make_room("share")
    (note,) = memory.notes
    assert note.startswith("memory may be short")
    assert server.name() in note
    memory.capacity *= 2
    make_room_for(memory.taken, server.url, "unload", memory.measure, lambda *_: None)
    assert server.loaded() == [server.name()], "there was enough for both"


def test_it_is_waited_for(server: Server, memory: Memory) -> None:
    with pytest.raises(MemoryHeld, match=server.name()):
        memory.make_room("wait")
    assert server.loaded() == [server.name()]
    server.ask("POST", "/api/generate", {"model": server.name(), "keep_alive": 0, "stream": False})
    while server.loaded():
        time.sleep(0.02)
    memory.make_room("wait")
    assert memory.notes == []


@pytest.fixture
def asked_to_leave(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Set once Ollama has answered the request to unload."""
    asked = Event()
    real = OllamaApi.unload

    def unload(self: OllamaApi, model: str) -> None:
        real(self, model)
        asked.set()

    monkeypatch.setattr(OllamaApi, "unload", unload)
    return asked


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], None]], Thread]]:
    threads: list[Thread] = []

    def start(work: Callable[[], None]) -> Thread:
        threads.append(Thread(target=work, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(60)


def test_an_answer_is_never_cut(
    server: Server,
    memory: Memory,
    asked_to_leave: Event,
    in_background: Callable[[Callable[[], None]], Thread],
) -> None:
    """The setting may cost somebody a second's loading, never an answer."""
    if server.fake is not None:
        server.fake.set_answer("word " * 2 * _LONG)
        server.fake.faults.hold_answers = True
    body = {
        "model": server.name(), "prompt": "1 2 3 4 5 6 7 8 9 10 11", "raw": True,
        "options": {"num_predict": _LONG, "temperature": 0, "stop": []},
    }  # fmt: skip
    url = f"{server.url}/api/generate"
    words_after = 0
    with (
        httpx.Client(trust_env=False, timeout=120) as client,
        client.stream("POST", url, json=body) as response,
    ):
        lines = response.iter_lines()
        assert not json.loads(next(lines))["done"]
        making = in_background(lambda: memory.make_room("unload"))
        if server.fake is not None:
            assert asked_to_leave.wait(30)
            assert server.loaded() == [server.name()], "it still answers"
            assert making.is_alive()
            server.fake.faults.hold_answers = False
        for line in lines:
            last = json.loads(line)
            words_after += asked_to_leave.is_set() and not last["done"]
    assert words_after > 0, "it went on after it was asked to leave"
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", _LONG)
    making.join(60)
    assert not making.is_alive()
    assert server.loaded() == []


def test_an_ollama_elsewhere_is_left_alone(
    fake: FakeOllama, tiny_loaded: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is not the one that is short."""
    before = len(fake.requests)
    tiny_loaded.capacity += 1
    monkeypatch.setattr(tiny_loaded, "measure", lambda: FreeMemory(n_bytes=0, on_gpu=False))
    tiny_loaded.make_room("unload", "http://192.0.2.1:11434")
    assert (len(fake.requests), tiny_loaded.notes) == (before, [])


@pytest.fixture
def tiny_loaded(fake: FakeOllama, tiny_files: Any) -> Memory:
    server = Server(fake.url, tiny_files, fake)
    create(fake.url, server.name(), tiny_files.protected)
    server.ask("POST", "/api/generate", {"model": server.name(), "stream": False})
    return Memory(server)


def test_an_ollama_that_is_away_holds_nothing(fake: FakeOllama, tiny_loaded: Memory) -> None:
    free = tiny_loaded.measure()
    fake.go_away()
    notes: list[str] = []
    make_room_for(
        tiny_loaded.capacity, fake.url, "wait", lambda: free, lambda text, _: notes.append(text)
    )
    assert notes == []


def test_an_ollama_that_says_nothing_of_its_memory_is_noted(
    fake: FakeOllama, tiny_loaded: Memory
) -> None:
    free = tiny_loaded.measure()
    fake.faults.forbid = True
    notes: list[str] = []
    make_room_for(
        tiny_loaded.capacity, fake.url, "wait", lambda: free, lambda text, _: notes.append(text)
    )
    (note,) = notes
    assert "cannot be asked" in note
    assert "403" in note
