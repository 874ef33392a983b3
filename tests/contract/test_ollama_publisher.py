"""One contract for publishing into Ollama, whoever plays Ollama."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ollama_trainer import publishers
from ollama_trainer.errors import OllamaUnreachable, PublishError
from ollama_trainer.modelfile import Modelfile, modelfile_for
from ollama_trainer.ollama import api
from ollama_trainer.ollama.host import resolve
from ollama_trainer.publishers import PublisherOptions
from ollama_trainer.publishers.ollama import OllamaPublisher
from ollama_trainer.records import PublishedModel
from ollama_trainer.testing.fake_ollama import FakeOllama

from .conftest import Files, Server

LICENSE = 'Free for all, "as is".\n\nSecond paragraph.'
MODELFILE = modelfile_for(
    stops=["<|im_end|>", "<|endoftext|>"], num_ctx=1024, num_predict=200, license_text=LICENSE
)


def publish(
    url: str,
    gguf: Path,
    name: str,
    modelfile: Modelfile = MODELFILE,
    told: list[tuple[float, str]] | None = None,
) -> PublishedModel:
    publisher = publishers.get("ollama", PublisherOptions(ollama_host=url, num_thread=2))
    notes = told if told is not None else []
    return publisher.publish(gguf, modelfile, name, lambda f, text: notes.append((f, text)))


def test_a_published_model_is_listed_shown_and_answers(server: Server) -> None:
    told: list[tuple[float, str]] = []
    name = server.name()
    published = publish(server.url, server.files.protected, name, told=told)

    assert published == PublishedModel(ref=name, next_command=f"ollama run {name}")
    assert server.names() == [name], "no name for trial may be left"
    assert server.loaded() == [], "the memory is given back"
    shown = server.show(name)
    assert shown["capabilities"] == ["completion"]
    assert shown["license"] == LICENSE
    assert shown["template"] == server.files.jinja
    assert set(shown["parameters"].split()) == {
        *("num_ctx", "1024", "num_predict", "200", "stop", '"<|im_end|>"', '"<|endoftext|>"')
    }
    question = {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    answer = server.ask("POST", "/api/chat", question | {"stream": False}).json()
    assert answer["message"]["content"]
    assert answer["done_reason"] == "stop"
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(told) < 100
    assert any("ended by" in text for _, text in told), "how the trial answer ended is recorded"


def test_publishing_the_same_again_changes_nothing(server: Server) -> None:
    name = server.name()
    first = publish(server.url, server.files.protected, name)
    before = server.ask("GET", "/api/tags").json()
    assert publish(server.url, server.files.protected, name) == first
    assert server.ask("GET", "/api/tags").json() == before


def test_a_name_with_other_content_is_never_overwritten(server: Server) -> None:
    name = server.name()
    publish(server.url, server.files.protected, name)
    before = server.show(name)
    other = modelfile_for(stops=["x"], num_ctx=512, num_predict=9)
    with pytest.raises(PublishError, match=f"already has a model {name}"):
        publish(server.url, server.files.protected, name, other)
    assert server.show(name) == before
    assert server.names() == [name]


def test_the_reference_is_lower_case_and_has_its_tag(server: Server) -> None:
    name = server.name("model", "latest")
    published = publish(server.url, server.files.protected, name.upper().removesuffix(":LATEST"))
    assert published.ref == name


@pytest.mark.parametrize("what", ["truncated", "unloadable", "text"])
def test_a_bad_file_leaves_no_model(server: Server, what: str, tmp_path: Path) -> None:
    files = {"truncated": server.files.truncated, "unloadable": server.files.unloadable}
    text = tmp_path / "model.gguf"
    text.write_text("not a model")
    with pytest.raises(PublishError) as raised:
        publish(server.url, files.get(what, text), server.name())
    words = {"truncated": "exceeds file size", "unloadable": "load", "text": "not in GGUF format"}
    assert words[what] in raised.value.cause
    assert raised.value.remedy
    assert server.names() == []
    assert server.loaded() == []


def test_a_replaced_chat_template_is_refused(server: Server) -> None:
    with pytest.raises(PublishError, match="template chatml in the place"):
        publish(server.url, server.files.plain, server.name(), modelfile_named(server.files.plain))
    assert server.names() == []


def modelfile_named(gguf: Path) -> Modelfile:
    return Modelfile(gguf=gguf.name, parameters=MODELFILE.parameters)


def test_no_ollama_says_how_to_start_one(tiny_files: Files) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OllamaUnreachable) as raised:
        publish(f"127.0.0.1:{port}", tiny_files.protected, "a:b")
    assert "ollama serve" in raised.value.remedy
    assert "OLLAMA_HOST" in raised.value.remedy
    assert raised.value.retryable


def test_a_missing_file_is_named(fake: FakeOllama, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="cannot be read"):
        publish(fake.url, tmp_path / "model.gguf", "a:b")


def test_no_proxy_comes_between_on_this_machine(
    fake: FakeOllama, tiny_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert publish(fake.url, tiny_files.protected, "a:b").ref == "a:b"


def test_nothing_is_logged(
    fake: FakeOllama, tiny_files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        publish(fake.url, tiny_files.protected, "a:b")
    assert [record for record in caplog.records if record.name.startswith("http")] == []


def test_what_is_sent_is_neither_adapter_nor_quantize(fake: FakeOllama, tiny_files: Files) -> None:
    publish(fake.url, tiny_files.protected, "a:b")
    (body,) = [body for _, path, body in fake.requests if path == "/api/create"]
    assert set(body) == {"model", "files", "stream", "parameters", "license"}
    assert list(body["files"]) == ["model.gguf"]


def test_a_blob_that_is_there_is_not_sent_again(fake: FakeOllama, tiny_files: Files) -> None:
    for name in ("a:b", "a:c"):
        publish(fake.url, tiny_files.protected, name)
    posts = [path for method, path, _ in fake.requests if method == "POST" and "/blobs/" in path]
    assert len(posts) == 1


class TestFaults:
    """What can go wrong at each step, and what is left then."""

    def test_an_error_in_mid_stream(self, fake: FakeOllama, tiny_files: Files) -> None:
        fake.faults.create_error = "disk full"
        self.fails(fake, tiny_files, "disk full")

    def test_an_end_without_success(self, fake: FakeOllama, tiny_files: Files) -> None:
        fake.faults.create_ends = True
        self.fails(fake, tiny_files, "without a reason")

    def test_an_answer_lost_after_the_model_was_made(
        self, fake: FakeOllama, tiny_files: Files
    ) -> None:
        fake.faults.create_lost = True
        assert publish(fake.url, tiny_files.protected, "a:b").ref == "a:b"

    def test_an_upload_that_breaks(self, fake: FakeOllama, tiny_files: Files) -> None:
        fake.faults.blob_reset = "before"
        error = self.fails(fake, tiny_files, "cannot be reached to take the file")
        assert isinstance(error, OllamaUnreachable)

    def test_an_upload_that_arrived_although_it_broke(
        self, fake: FakeOllama, tiny_files: Files
    ) -> None:
        fake.faults.blob_reset = "after"
        assert publish(fake.url, tiny_files.protected, "a:b").ref == "a:b"

    def test_403_without_a_word(self, fake: FakeOllama, tiny_files: Files) -> None:
        fake.faults.forbid = True
        error = self.fails(fake, tiny_files, "without a word")
        assert "host name" in error.remedy

    def test_busy_for_a_moment(
        self, fake: FakeOllama, tiny_files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(api, "_BUSY_PAUSES_S", (0.01, 0.01))
        fake.faults.busy = 2
        assert publish(fake.url, tiny_files.protected, "a:b").ref == "a:b"

    def test_busy_for_long(
        self, fake: FakeOllama, tiny_files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(api, "_BUSY_PAUSES_S", (0.01, 0.01))
        fake.faults.busy = 99
        assert self.fails(fake, tiny_files, "too busy").retryable

    def test_a_model_that_does_not_load(self, fake: FakeOllama, tiny_files: Files) -> None:
        fake.faults.load_error = "out of memory"
        self.fails(fake, tiny_files, "load the model: out of memory")

    def test_a_model_that_says_nothing(self, fake: FakeOllama, tiny_files: Files) -> None:
        fake.set_answer("")
        self.fails(fake, tiny_files, "with nothing")

    @pytest.mark.parametrize(
        "path",
        # "delete" comes last, when the model has its name: see test_withdraw.py.
        ["version", "blobs", "create", "show", "generate", "chat", "ps", "tags", "copy"],
    )
    def test_it_goes_away_and_comes_back(
        self, fake: FakeOllama, tiny_files: Files, path: str
    ) -> None:
        fake.faults.vanish_at = f"/api/{path}"
        with pytest.raises(OllamaUnreachable):
            publish(fake.url, tiny_files.protected, "a:b")
        fake.faults.vanish_at = ""
        fake.come_back()
        assert fake.store.find("a:b") is None, "never half-made under the final name"
        assert publish(fake.url, tiny_files.protected, "a:b").ref == "a:b"
        assert [model.short_name for model in fake.store.models()] == ["a:b"]

    def test_it_takes_too_long(self, fake: FakeOllama, tiny_files: Files) -> None:
        fake.faults.delay_s = 1.0
        publisher = OllamaPublisher(
            PublisherOptions(), resolve(fake.url), api.Limits(answer_s=0.1, load_s=0.1)
        )
        with pytest.raises(PublishError, match="not answered in time") as raised:
            publisher.publish(tiny_files.protected, MODELFILE, "a:b", lambda *_: None)
        assert raised.value.retryable

    def fails(self, fake: FakeOllama, files: Files, words: str) -> PublishError:
        with pytest.raises(PublishError, match=words) as raised:
            publish(fake.url, files.protected, "a:b")
        assert raised.value.remedy
        fake.faults.forbid = False
        assert fake.store.models() == []
        return raised.value


class _Stranger(BaseHTTPRequestHandler):
    """A web server that is no Ollama, or an old one."""

    answer = b"<html>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def stranger() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), _Stranger)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>", "is not Ollama"),
        (b"[]", "is not Ollama"),
        (b'{"version": 3}', "is not Ollama"),
        (b'{"version": "0.5.4"}', "too old"),
    ],
)
def test_something_else_answers(
    stranger: HTTPServer,
    tiny_files: Files,
    answer: bytes,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Stranger, "answer", answer)
    with pytest.raises(PublishError, match=words):
        publish(f"127.0.0.1:{stranger.server_port}", tiny_files.protected, "a:b")
