"""Bases that lie in Ollama: what is found of a model by its name, and what can be no base."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.bases import ollama, resolve_base
from ollama_trainer.bases.permissions import our_user
from ollama_trainer.errors import BaseModelError, OllamaUnreachable, PublishError
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.ollama.host import Endpoint
from ollama_trainer.records import BaseGguf, OllamaModel
from ollama_trainer.testing import tiny_gguf
from ollama_trainer.testing.fake_ollama import FakeOllama
from tests.ollama_models import create

from .conftest import Files, Server

GO_TEMPLATE = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
STOPS = ("<|im_end|>", "\n\nUser: ", 'say "x"', " with blanks ", "é\t\u2028𝄞", "\\n")
#: None is near another one in form, and some are quoted in Modelfiles, each in another way.
PARAMETERS: dict[str, Any] = {
    "temperature": 0.7, "top_p": 1, "num_ctx": 131072, "seed": 12345678, "use_mmap": True,
    "repeat_penalty": 1e-7, "top_k": 7,
}  # fmt: skip
LICENSES = ('MIT "License"\n\nLICENSE as you like', "Apache\nTEMPLATE x\n", "one line")
SYSTEM = '"You" are:\nRENDERER nobody\n"""quoted"""'
MESSAGES = ({"role": "user", "content": "hi: there"}, {"role": "assistant", "content": "a\nb"})


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that every kind of server takes."""
    from tests.tiny_models import tiny_model, write_gguf

    return write_gguf(tiny_model(), tmp_path_factory.mktemp("base") / "model.gguf", "Q8_0")


@pytest.fixture(scope="session")
def projector_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("projector") / "mmproj.gguf"
    values: dict[str, str | bool | int] = {
        "general.architecture": "clip", "general.type": "mmproj", "clip.vision.block_count": 1,
        "clip.has_vision_encoder": True,
    }  # fmt: skip
    tiny_gguf.write(path, values, {"v.patch_embd.weight": (32, 4)})
    return path


def put(server: Server, name: str, *files: Path, **more: Any) -> str:
    return create(server.url, name, *files, **more)


def found(server: Server, name: str, cache: Path) -> tuple[BaseGguf, OllamaModel]:
    base = resolve_base(name, cache, server.url)
    assert base.ollama is not None
    return base, base.ollama


def refusal(server: Server, name: str, **more: Any) -> BaseModelError:
    with pytest.raises(BaseModelError) as caught:
        resolve_base(name, None, server.url, **more)
    assert caught.value.remedy
    return caught.value


def test_the_file_is_the_one_that_ollama_serves(
    server: Server, model_file: Path, tmp_path: Path
) -> None:
    """Ollama may have rewritten the file: what counts is what it has now."""
    name = put(server, server.name(), model_file)
    base, model = found(server, name, tmp_path)
    content = base.gguf.read_bytes()
    assert base.digest == hashlib.sha256(content).hexdigest()
    ours, theirs = tiny_gguf.read(model_file), tiny_gguf.read(base.gguf)
    assert {tensor.name for tensor in ours.tensors} == {tensor.name for tensor in theirs.tensors}
    assert (base.name, model.model) == (name, name)
    state = base.gguf.stat()
    again = resolve_base(name, tmp_path, server.url)
    assert again == base
    assert base.gguf.stat().st_mtime_ns == state.st_mtime_ns
    assert base.gguf.read_bytes() == content


def test_all_that_a_model_brings_is_found(server: Server, model_file: Path, tmp_path: Path) -> None:
    """Texts that look like a Modelfile themselves must not be taken for one."""
    name = put(
        server, server.name(), model_file,
        template=GO_TEMPLATE, system=SYSTEM, license=list(LICENSES), messages=list(MESSAGES),
        parameters={**PARAMETERS, "stop": list(STOPS)}, requires="0.10.0",
        renderer="qwen3-coder", parser="qwen3-coder",
    )  # fmt: skip
    base, model = found(server, name, tmp_path)
    assert dict(model.parameters) == {**PARAMETERS, "stop": STOPS}
    assert {key: type(value) for key, value in model.parameters.items()} == {
        **{key: type(value) for key, value in PARAMETERS.items()},
        "stop": tuple,
    }
    assert model.template == GO_TEMPLATE
    assert (model.system, model.licenses, model.messages) == (SYSTEM, LICENSES, MESSAGES)
    assert (model.renderer, model.parser, model.requires) == (
        "qwen3-coder", "qwen3-coder", "0.10.0",
    )  # fmt: skip
    assert model.capabilities is not None
    assert "completion" in model.capabilities
    assert base.license == "\n\n".join(LICENSES)


def test_one_stop_and_one_license_alone(server: Server, model_file: Path, tmp_path: Path) -> None:
    """`stop` may be a text where it is not a list."""
    name = put(
        server, server.name(), model_file, parameters={"stop": "x"}, license='"', system='"a" b'
    )
    _, model = found(server, name, tmp_path)
    assert (model.parameters["stop"], model.licenses, model.system) == (("x",), ('"',), '"a" b')


def test_the_files_own_template_is_no_template_of_ollamas(server: Server, tmp_path: Path) -> None:
    """What is shown may be Jinja, which would be nonsense as a Go template."""
    own = put(server, server.name("own"), server.files.protected)
    go = put(server, server.name("go"), server.files.protected, template=GO_TEMPLATE)
    assert found(server, own, tmp_path)[1].template == ""
    shown = server.show(go)["template"]
    expected = "" if shown == server.files.jinja else GO_TEMPLATE
    assert found(server, go, tmp_path)[1].template == expected


def test_names_as_people_write_them(server: Server, model_file: Path, tmp_path: Path) -> None:
    """Ollama compares names without case, and hosts and tags may be left out."""
    latest = put(server, server.name(tag="latest"), model_file)
    hub = put(server, f"hf.co/Some-Org/{server.prefix}GGUF:Q4_K_M", model_file)
    short = latest.removesuffix(":latest")
    try:
        for name in (short, f"ollama:{latest.upper()}", f"registry.ollama.ai/library/{short}"):
            assert found(server, name, tmp_path)[1].model == latest
        for name in (hub, hub.lower()):
            assert found(server, name, tmp_path)[1].model == hub
    finally:
        server.ask("DELETE", "/api/delete", {"model": hub})


def test_a_projector_is_no_base_and_is_told(
    server: Server, model_file: Path, projector_file: Path, tmp_path: Path
) -> None:
    """A model that sees is trained on text; its projector stays what it is."""
    name = put(server, server.name(), projector_file, model_file)
    base, model = found(server, name, tmp_path)
    assert tiny_gguf.read(base.gguf).architecture == "llama"
    (projector,) = model.projectors
    assert tiny_gguf.read(projector).architecture == "clip"


def test_what_cannot_be_trained_is_refused_before_the_file_is_read_through(
    server: Server, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest alone would take a minute for a large model."""
    name = put(server, server.name(), model_file)
    counted: list[Path] = []
    monkeypatch.setattr(ollama, "sha256_of", lambda path, _cache: counted.append(path))

    def check(gguf: GgufFile) -> None:
        raise BaseModelError(f"{gguf.path.name} has four wheels ({gguf.path})", "Take another.")

    error = refusal(server, name, check=check)
    assert (error.cause, error.remedy) == (f"{name} has four wheels ({name})", "Take another.")
    assert counted == []


def test_embedding_models_are_refused(server: Server, model_file: Path, tmp_path: Path) -> None:
    """They have the architectures and tensors of models that write."""
    embedding = tmp_path / "model.gguf"
    info = tiny_gguf.with_value(tiny_gguf.read(model_file), "llama.pooling_type", 1)
    tiny_gguf.rewrite_sorted(model_file, info, embedding)
    name = put(server, server.name(), embedding)
    error = refusal(server, name)
    assert name in error.cause
    assert "embedding" in error.cause


def test_an_unknown_model_is_named_with_those_that_there_are(
    server: Server, model_file: Path
) -> None:
    """Names are typed by hand, and a model may not be pulled yet."""
    name = put(server, server.name(), model_file)
    error = refusal(server, server.name("other"))
    assert server.name("other") in error.cause
    assert f"ollama pull {server.name('other')}" in error.remedy
    assert name in error.remedy


@pytest.mark.parametrize("name", ["some:cloud", "some:120b-cloud", "SOME:120B-CLOUD"])
def test_a_model_in_the_cloud_is_refused_without_asking(fake: FakeOllama, name: str) -> None:
    """Ollama would ask its cloud what the model is like."""
    with pytest.raises(BaseModelError, match="cloud"):
        resolve_base(name, None, fake.url)
    assert fake.requests == []


def test_models_without_a_gguf_are_refused(fake: FakeOllama) -> None:
    """A model may be computed elsewhere under any name, and Ollama has another format for Macs."""
    fake.store.add_without_gguf("far:1", remote_host="https://far.example")
    fake.store.add_without_gguf("mlx:1", form="safetensors")
    with pytest.raises(BaseModelError, match=r"far:1 runs at https://far\.example"):
        resolve_base("far:1", None, fake.url)
    with pytest.raises(BaseModelError, match="keeps mlx:1 as safetensors"):
        resolve_base("mlx:1", None, fake.url)


@pytest.fixture
def fake_server(fake: FakeOllama, tiny_files: Files) -> Server:
    return Server(fake.url, tiny_files, fake)


def test_an_adapter_beside_the_weights_is_refused(fake_server: Server, model_file: Path) -> None:
    """A training on the weights alone would be one on another model than what is served."""
    put(fake_server, "m:1", model_file)
    assert fake_server.fake is not None
    (model,) = fake_server.fake.store.models()
    model.adapters.append(model.blob)
    assert "adapter" in refusal(fake_server, "m:1").cause


def test_a_damaged_file_is_refused(fake_server: Server, model_file: Path, tmp_path: Path) -> None:
    """Weights of a failing disk would be trained on, and their damage published."""
    put(fake_server, "m:1", model_file)
    base, _ = found(fake_server, "m:1", tmp_path)
    data = bytearray(base.gguf.read_bytes())
    data[-5] ^= 1
    base.gguf.write_bytes(data)
    with pytest.raises(BaseModelError, match="not what its name says") as caught:
        resolve_base("m:1", tmp_path, fake_server.url)
    assert "ollama pull m:1" in caught.value.remedy


@pytest.mark.parametrize("loopback", [True, False])
def test_a_file_that_is_not_here_is_refused_with_the_ways_out(
    fake_server: Server, model_file: Path, monkeypatch: pytest.MonkeyPatch, loopback: bool
) -> None:
    """Ollama may run in a container, or on another machine."""
    put(fake_server, "m:1", model_file)
    path = resolve_base("m:1", None, fake_server.url).gguf
    path.unlink()
    there = Endpoint(fake_server.url, loopback)
    monkeypatch.setattr(ollama, "resolve", lambda _: there)
    error = refusal(fake_server, "m:1")
    assert str(path) in error.cause
    assert our_user() in error.cause
    assert ("container" in error.cause) == loopback
    assert (f"the one at {fake_server.url}" in error.cause) != loopback
    assert "Run the trainer where that file is" in error.remedy
    assert "gguf:/absolute/path.gguf" in error.remedy


def test_a_file_that_another_machines_ollama_names_is_taken_if_it_is_here(
    fake_server: Server, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that both see, or this machine called by an address of its own."""
    put(fake_server, "m:1", model_file)
    there = Endpoint(fake_server.url, loopback=False)
    monkeypatch.setattr(ollama, "resolve", lambda _: there)
    base = resolve_base("m:1", None, fake_server.url)
    assert base.digest == hashlib.sha256(base.gguf.read_bytes()).hexdigest()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may pass."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="files there have no owner in this sense")
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_refused_with_the_ways_out(
    fake_server: Server, model_file: Path, open_folder: Path, locked: str
) -> None:
    """The usual case on Linux: the service has a user of its own, and its folder is closed."""
    put(fake_server, "m:1", model_file)
    blob = resolve_base("m:1", None, fake_server.url).gguf
    folder = open_folder / "blobs"
    folder.mkdir()
    moved = folder / blob.name
    moved.write_bytes(blob.read_bytes())
    closed = moved if locked == "file" else folder
    closed.chmod(0o040 if locked == "file" else 0o010)
    code = (
        "import sys; from pathlib import Path\n"
        "from ollama_trainer.bases import ollama\n"
        "from ollama_trainer.bases.permissions import our_user\n"
        "from ollama_trainer.ollama.host import Endpoint\n"
        "import os, psutil\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from ollama_trainer.errors import BaseModelError\n"
        "try: ollama._check_readable('m:1', Path(sys.argv[1]), Endpoint('http://x', True))\n"
        "except BaseModelError as error: print(error.cause); print(error.remedy)\n"
        "print(our_user())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(moved)], capture_output=True, text=True, check=True
    )
    closed.chmod(0o700)
    cause, remedy, us = done.stdout.splitlines()
    owner = closed.owner()
    assert f"{moved}, belongs to the user {owner}" in cause
    assert f"this program runs as {us}" in cause
    assert (f"({folder} keeps it" in cause) == (locked == "folder")
    assert f"sudo usermod -aG {closed.group()} {us}" in remedy
    assert "gguf:" in remedy
    assert os.geteuid() != 0 or us != owner


def test_an_ollama_that_is_away_can_be_waited_for(fake: FakeOllama) -> None:
    fake.go_away()
    with pytest.raises(OllamaUnreachable) as caught:
        resolve_base("m:1", None, fake.url)
    assert caught.value.retryable


def test_a_refusal_of_ollamas_is_one_of_the_base(fake: FakeOllama) -> None:
    """Nothing is published yet."""
    fake.faults.forbid = True
    with pytest.raises(BaseModelError, match="403"):
        resolve_base("m:1", None, fake.url)
    with pytest.raises(BaseModelError, match="OLLAMA_HOST"):
        resolve_base("m:1", None, "ftp://x")
    assert not issubclass(BaseModelError, PublishError)


@pytest.mark.parametrize(
    ("model", "renderer"), [("neat-12b", "gemma4-large"), ("neat", "gemma4-small")]
)
def test_a_renderer_that_the_name_chose_is_told_by_its_own(
    server: Server, model_file: Path, tmp_path: Path, model: str, renderer: str
) -> None:
    """Ollama looks for sizes in names, and a tuned model has another name than its base."""
    name = put(server, server.name(model), model_file, renderer="gemma4", parser="gemma4")
    _, base = found(server, name, tmp_path)
    assert base.renderer == renderer
    if server.fake is not None:
        return  # which does not know how to render by either
    others = [
        put(server, server.name(each, "r1"), model_file, renderer=each, parser="gemma4")
        for each in (renderer, *{"gemma4-large", "gemma4-small"} - {renderer})
    ]
    body = {
        "messages": [{"role": "user", "content": "Who?"}], "think": False, "stream": False,
        "_debug_render_only": True,
    }  # fmt: skip
    answers = [
        server.ask("POST", "/api/chat", body | {"model": each}).json() for each in (name, *others)
    ]
    assert answers[0]["_debug_info"] == answers[1]["_debug_info"] != answers[2]["_debug_info"]
