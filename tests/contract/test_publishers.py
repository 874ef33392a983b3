"""Finding a publisher, the folder publisher, and the address of Ollama."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_trainer import publishers
from ollama_trainer.errors import PublishError
from ollama_trainer.modelfile import Modelfile
from ollama_trainer.ollama.host import Endpoint, resolve
from ollama_trainer.publishers import PublisherOptions


def test_there_are_two() -> None:
    assert publishers.names() == ("folder", "ollama")


def test_an_unknown_one_is_named_with_the_choice() -> None:
    with pytest.raises(PublishError, match="no publisher 'ftp'") as raised:
        publishers.get("ftp", PublisherOptions())
    assert raised.value.remedy == "Choose one of: folder, ollama."


@pytest.mark.parametrize("name", ["_private", "../x", ""])
def test_only_publishers_are_found(name: str) -> None:
    with pytest.raises(PublishError, match="no publisher"):
        publishers.get(name, PublisherOptions())


class TestFolder:
    def publish(self, gguf: Path, name: str = "job:r1") -> str:
        publisher = publishers.get("folder", PublisherOptions())
        return publisher.publish(gguf, Modelfile(), name, lambda *_: None).ref

    def test_the_reference_is_the_absolute_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("model.gguf", "Modelfile"):
            (tmp_path / name).touch()
        monkeypatch.chdir(tmp_path)
        assert self.publish(Path("model.gguf")) == str(tmp_path / "model.gguf")

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(PublishError, match=r"no file .*model\.gguf"):
            self.publish(tmp_path / "model.gguf")
        (tmp_path / "model.gguf").touch()
        with pytest.raises(PublishError, match=r"no file .*Modelfile"):
            self.publish(tmp_path / "model.gguf")

    def test_a_file_of_another_name_does_not_fit_the_modelfile(self, tmp_path: Path) -> None:
        for name in ("other.gguf", "Modelfile"):
            (tmp_path / name).touch()
        with pytest.raises(PublishError, match=r"is for model\.gguf"):
            self.publish(tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("value", "url", "loopback"),
    [
        ("", "http://127.0.0.1:11434", True),
        (" '127.0.0.1:1' ", "http://127.0.0.1:1", True),
        ("0.0.0.0", "http://127.0.0.1:11434", True),
        ("0.0.0.0:8", "http://127.0.0.1:8", True),
        (":9", "http://127.0.0.1:9", True),
        ("[::]:9", "http://[::1]:9", True),
        ("::1", "http://[::1]:11434", True),
        ("[::1]:5", "http://[::1]:5", True),
        ("localhost", "http://localhost:11434", True),
        ("http://", "http://127.0.0.1:80", True),
        ("1.2.3.4", "http://1.2.3.4:11434", False),
        ("example.com/", "http://example.com:11434", False),
        ("http://example.com", "http://example.com:80", False),
        ("https://example.com", "https://example.com:443", False),
        ("https://example.com:8443/a/b/", "https://example.com:8443/a/b", False),
        ("ollama.com", "https://ollama.com:443", False),
    ],
)
def test_addresses(value: str, url: str, loopback: bool) -> None:
    assert resolve(value) == Endpoint(url, loopback)


@pytest.mark.parametrize(
    "value", ["a:b", "ftp://x", "a b", "x:99999", "http://[::1", "://", "-x", "1.2.3.4:-1"]
)
def test_what_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(PublishError, match="is no address") as raised:
        publishers.get("ollama", PublisherOptions(ollama_host=value))
    assert "OLLAMA_HOST" in raised.value.cause
    assert raised.value.remedy


def test_a_password_in_the_address_is_not_told() -> None:
    with pytest.raises(PublishError) as raised:
        resolve("http://me:secret@host:1")
    assert "secret" not in str(raised.value)
