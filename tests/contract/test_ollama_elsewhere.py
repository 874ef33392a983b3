"""An Ollama on another host: by TLS, with a key, under a path, behind what others run."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer import publishers
from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import BaseModelError, OllamaUnreachable, PublishError
from ollama_trainer.ollama import api, open_api
from ollama_trainer.ollama.host import resolve
from ollama_trainer.pipeline.survey import local_bases
from ollama_trainer.publishers import PublisherOptions
from ollama_trainer.records import Lease, RunSpec
from ollama_trainer.testing.fake_ollama import FakeOllama
from ollama_trainer.workspace import RunDirectory
from tests.ollama_models import create

from .conftest import Files, Server
from .reverse_proxy import Certificate, ReverseProxy, make_certificate
from .test_ollama_publisher import MODELFILE

#: A name that this machine does not know as its own.
HOST = "ollama.test"
KEY = "sk-9f3e1c77d2"

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificate"
)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), HOST)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the caller's own keys and proxies; HOST is here."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("OLLAMA_API_KEY", raising=False)
    real = socket.getaddrinfo

    def found(name: Any, *more: Any, **named: Any) -> Any:
        return real("127.0.0.1" if name in (HOST, HOST.encode()) else name, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", found)


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    """One profile: a proxy treats them alike."""
    with FakeOllama("0.40") as one:
        yield one


@pytest.fixture
def with_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", KEY)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, certificate: Certificate) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))


@pytest.fixture
def proxy(fake: FakeOllama) -> Iterator[ReverseProxy]:
    """Without TLS."""
    with ReverseProxy(fake.url, key=KEY) as one:
        yield one


@pytest.fixture
def guarded(fake: FakeOllama, certificate: Certificate) -> Iterator[ReverseProxy]:
    with ReverseProxy(fake.url, key=KEY, certificate=certificate) as one:
        yield one


def https(proxy: ReverseProxy) -> str:
    return f"https://{proxy.address.replace('127.0.0.1', HOST)}"


def publish(host: str, gguf: Path, told: list[str] | None = None, name: str = "a:b") -> str:
    publisher = publishers.get("ollama", PublisherOptions(ollama_host=host, num_thread=2))
    notes = told if told is not None else []
    return publisher.publish(gguf, MODELFILE, name, lambda _, text: notes.append(text)).ref


def failure(host: str, gguf: Path) -> PublishError:
    with pytest.raises(PublishError) as caught:
        publish(host, gguf)
    assert caught.value.remedy
    assert KEY not in str(caught.value)
    return caught.value


@needs_openssl
@pytest.mark.usefixtures("with_key", "trusted")
class TestGuarded:
    """By TLS under a name, with a key, under a path."""

    def test_a_model_is_published(
        self,
        fake: FakeOllama,
        guarded: ReverseProxy,
        tiny_files: Files,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(api, "_CHUNK_BYTES", 1000)
        told: list[str] = []
        assert not resolve(https(guarded)).loopback
        with caplog.at_level(logging.DEBUG):
            assert publish(https(guarded), tiny_files.protected, told) == "a:b"
        assert [model.short_name for model in fake.store.models()] == ["a:b"]
        # The fake one has seen the same requests as the proxy, all with the key.
        assert [(m, p.removeprefix("/ollama")) for m, p, *_ in guarded.requests] == [
            (method, path) for method, path, _ in fake.requests
        ]
        assert {given for _, _, given, _ in guarded.requests} == {f"Bearer {KEY}"}
        (size,) = [
            n for method, path, _, n in guarded.requests if method == "POST" and "bl" in path
        ]
        assert size == tiny_files.protected.stat().st_size, "it came with its length"
        assert sum(text.startswith("uploaded ") for text in told) > 3, "its progress was told"
        assert KEY not in "".join(told) + caplog.text

    def test_a_real_one_takes_it_as_well(self, real: Server, certificate: Certificate) -> None:
        with ReverseProxy(real.url, key=KEY, certificate=certificate) as one:
            assert publish(https(one), real.files.protected, name=real.name()) == real.name()
        assert real.names() == [real.name()]
        assert real.loaded() == []

    def test_what_it_has_is_listed(
        self, fake: FakeOllama, guarded: ReverseProxy, tiny_files: Files
    ) -> None:
        create(fake.url, "m:1", tiny_files.protected)
        with open_api(resolve(https(guarded))) as one:
            assert list(one.listed()) == ["m:1"]
        (base,) = local_bases(https(guarded), "tuned-")
        assert base.name == "m:1"

    def test_a_base_whose_file_is_not_here_is_refused(
        self, fake: FakeOllama, guarded: ReverseProxy, tiny_files: Files
    ) -> None:
        create(fake.url, "m:1", tiny_files.protected)
        (model,) = fake.store.models()
        fake.store.blob_path(model.blob).unlink()
        with pytest.raises(BaseModelError) as caught:
            resolve_base("m:1", None, https(guarded))
        assert f"the one at https://{HOST}:{guarded.port}/ollama" in caught.value.cause
        assert "Run the trainer where that file is" in caught.value.remedy
        (base,) = local_bases(https(guarded), "tuned-")
        assert "https://" in base.reason

    def test_an_address_of_this_machine_may_be_guarded_too(
        self, fake: FakeOllama, tiny_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where no proxy for the way out is used, the authority is still the one that is named."""
        own = make_certificate(tmp_path, "localhost")
        monkeypatch.setenv("SSL_CERT_FILE", str(own.authority))
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        with ReverseProxy(fake.url, key=KEY, certificate=own) as one:
            assert publish(f"https://localhost:{one.port}/ollama", tiny_files.protected) == "a:b"


#: One call by each of the three clients.
CALLS: dict[str, Callable[[api.OllamaApi], object]] = {
    "own": lambda one: one.check_version(),
    "quick": lambda one: one.listed(),
    "slow": lambda one: one.load("m:1", {}),
}


def refused(host: str, call: str) -> PublishError:
    with open_api(resolve(host)) as one, pytest.raises(PublishError) as caught:
        CALLS[call](one)
    assert caught.value.remedy
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("call", CALLS)
class TestEachClient:
    def test_no_key(self, proxy: ReverseProxy, call: str) -> None:
        error = refused(proxy.address, call)
        assert "wants a key" in error.cause
        assert "OLLAMA_API_KEY" in error.remedy
        assert not error.retryable

    def test_another_key(
        self, proxy: ReverseProxy, call: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which the proxy sends back."""
        monkeypatch.setenv("OLLAMA_API_KEY", f"{KEY}-of-yesterday")
        error = refused(proxy.address, call)
        assert "wants another key" in error.cause
        assert "no such key: Bearer …" in error.cause

    @needs_openssl
    def test_an_authority_that_nobody_knows(self, guarded: ReverseProxy, call: str) -> None:
        error = refused(https(guarded), call)
        assert "certificate of https://ollama.test" in error.cause
        assert "is not trusted" in error.cause
        assert "SSL_CERT_FILE" in error.remedy
        assert not error.retryable

    @needs_openssl
    @pytest.mark.usefixtures("trusted")
    def test_the_certificate_of_another_host(self, guarded: ReverseProxy, call: str) -> None:
        error = refused(f"https://{guarded.address}", call)
        assert "127.0.0.1" in error.cause
        assert "OLLAMA_HOST" in error.remedy

    def test_no_tls_where_it_is_asked_for(self, proxy: ReverseProxy, call: str) -> None:
        error = refused(f"https://{proxy.address}", call)
        assert "does not speak TLS" in error.cause
        assert "http://" in error.remedy

    def test_a_redirection(self, proxy: ReverseProxy, call: str) -> None:
        """Followed, a POST would become a GET."""
        proxy.location = "https://elsewhere.example"
        error = refused(proxy.address, call)
        assert "(301)" in error.cause
        assert ("https://elsewhere.example/ollama/api/version" in error.cause) == (call == "own")
        assert "OLLAMA_HOST" in error.remedy
        assert len(proxy.requests) == 1

    def test_a_refusal_with_words(self, proxy: ReverseProxy, call: str) -> None:
        proxy.refuses = 403
        error = refused(proxy.address, call)
        assert "does not allow" in error.cause
        assert "(403: Not here)" in error.cause, "without the HTML"

    def test_a_gateway_without_its_ollama(
        self, proxy: ReverseProxy, call: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        proxy.refuses = 502
        assert refused(proxy.address, call).retryable


def test_another_path(proxy: ReverseProxy, tiny_files: Files) -> None:
    proxy.key = ""
    error = failure(f"127.0.0.1:{proxy.port}", tiny_files.protected)
    assert "is not Ollama" in error.cause
    assert "path" in error.remedy


@pytest.mark.usefixtures("with_key")
def test_a_limit_on_bodies(fake: FakeOllama, proxy: ReverseProxy, tiny_files: Files) -> None:
    proxy.most_bytes = 5000
    error = failure(proxy.address, tiny_files.protected)
    assert "so large a body" in error.cause
    assert "client_max_body_size" in error.remedy
    assert not error.retryable
    assert fake.store.models() == []


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY} {KEY}", f"{KEY}é", "  \n"])
def test_what_can_be_no_key_is_not_shown(
    fake: FakeOllama, tiny_files: Files, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", key)
    error = failure(fake.url, tiny_files.protected)
    assert "OLLAMA_API_KEY" in error.cause
    assert fake.requests == []


def test_a_line_break_at_the_end_of_a_key_is_left_out(
    fake: FakeOllama, proxy: ReverseProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is read from a file."""
    monkeypatch.setenv("OLLAMA_API_KEY", f"{KEY}\n")
    with open_api(resolve(proxy.address)) as one:
        one.check_version()
        assert one.listed() == {}


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_cannot_be_read(
    tiny_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    absent = tmp_path / "absent.pem"
    monkeypatch.setenv(variable, str(absent))
    error = failure(f"https://{HOST}", tiny_files.protected)
    if variable == "SSL_CERT_FILE":
        assert f"{absent} cannot be read" in error.cause
    else:
        assert isinstance(error, OllamaUnreachable), "OpenSSL looks into it when it needs to"
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(empty))
    assert f"{empty} cannot be read" in failure(f"https://{HOST}", tiny_files.protected).cause


@needs_openssl
def test_authorities_of_the_system_are_trusted(
    monkeypatch: pytest.MonkeyPatch, certificate: Certificate, guarded: ReverseProxy
) -> None:
    """An authority that was added to the machine needs no variable."""
    guarded.key = ""

    def load(self: ssl.SSLContext, purpose: object = None) -> None:
        self.load_verify_locations(certificate.authority)

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", load)
    with open_api(resolve(https(guarded))) as one:
        assert one.check_version()


@pytest.mark.usefixtures("with_key")
class TestProcesses:
    """Those that the command line and the server start have the key, and keep it to themselves."""

    def environment(self, proxy: ReverseProxy, home: Path) -> dict[str, str]:
        return {
            **os.environ,
            "OLLAMA_HOST": f"http://{proxy.address}",
            "XDG_CONFIG_HOME": str(home),
        }

    def test_the_command_line(
        self, fake: FakeOllama, proxy: ReverseProxy, tiny_files: Files, tmp_path: Path
    ) -> None:
        create(fake.url, "m:1", tiny_files.protected)
        done = subprocess.run(
            [sys.executable, "-m", "ollama_trainer", "bases"],
            env=self.environment(proxy, tmp_path), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "m:1" in done.stdout, done.stderr
        assert KEY not in done.stdout + done.stderr

    @pytest.mark.parametrize("key", [KEY, f"{KEY}-of-yesterday"])
    def test_the_worker(
        self, proxy: ReverseProxy, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its base is not there, or it is not told so."""
        monkeypatch.setenv("OLLAMA_API_KEY", key)
        directory = RunDirectory(tmp_path / "run")
        directory.path.mkdir()
        directory.write_spec(
            RunSpec(
                run_id="r1", job_id="j1", dataset_ref="d", base="m:1", backend="unsloth",
                publisher="ollama", quantization="same", ollama_host=proxy.address,
                model_name="tuned-j1:r1", cache_dir=tmp_path / "cache",
            )
        )  # fmt: skip
        directory.write_lease(Lease(token=1))
        directory.dataset.write_text("{}\n")
        with directory.log.open("wb") as log:
            subprocess.run(
                [sys.executable, "-m", "ollama_trainer.worker", str(directory.path)],
                env=self.environment(proxy, tmp_path), stdout=log, stderr=log, check=False,
            )  # fmt: skip
        result = directory.read_result()
        assert result is not None, directory.log.read_text()
        assert result.error is not None
        expected = "m:1" if key == KEY else "wants another key"
        assert expected in result.error.cause
        files = [path for path in directory.path.rglob("*") if path.is_file()]
        assert directory.log in files
        for path in files:
            assert KEY.encode() not in path.read_bytes(), path
