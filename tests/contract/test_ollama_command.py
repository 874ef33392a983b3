"""The Modelfile by hand: `ollama create -f`, and what `ollama show --modelfile` says then."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest

from ollama_trainer import publishers
from ollama_trainer.modelfile import Modelfile
from ollama_trainer.publishers import PublisherOptions

from .conftest import Server

MODELFILE = Modelfile(
    parameters={
        "num_ctx": 512,
        "num_predict": 32,
        "temperature": 0.25,
        "stop": ("<|im_end|>", 'a "quoted" stop', " blanks ", "{{ braces }}", "new\nline", "😀#"),
    },
    licenses=('Free, "as is".\n\n# no comment\n  {{ braces }} 😀 "', "MIT"),
)
#: With every instruction that there is; its template is a Go template.
FULL = replace(
    MODELFILE,
    template="{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    '<|im_start|>assistant\n{{/* "no" \n# comment */}}',
    system=' You are "Mario".\n\n# no comment: 😀\n"""quoted""" in the middle ',
    messages=(
        {"role": "user", "content": "user: Hi\n\n"},
        {"role": "assistant", "content": '"Hello"'},
        {"role": "user", "content": ""},
    ),
    renderer="qwen3-coder",
    parser="qwen3-coder",
    requires="0.5.0",
)


def ollama(server: Server, *arguments: str) -> str:
    program = shutil.which("ollama")
    if program is None:
        pytest.skip("there is no program `ollama` on the PATH")
    environment = os.environ | {"OLLAMA_HOST": server.url, "NO_PROXY": "*"}
    done = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("modelfile", [MODELFILE, FULL], ids=["usual", "full"])
def test_text_and_request_make_the_same_model(
    real: Server, modelfile: Modelfile, tmp_path: Path
) -> None:
    """The digest of the manifest covers weights, parameters, licences, template and all else."""
    shutil.copy(real.files.protected, tmp_path / "model.gguf")
    (tmp_path / "Modelfile").write_text(modelfile.text, encoding="utf-8")
    by_hand, by_us = real.name("hand"), real.name("us")
    ollama(real, "create", by_hand, "-f", str(tmp_path / "Modelfile"))
    data = (tmp_path / "model.gguf").read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    real.ask("POST", f"/api/blobs/{digest}", content=data)
    answer = real.ask("POST", "/api/create", modelfile.create_request(by_us, digest))
    assert '{"status":"success"}' in answer.text

    models = real.ask("GET", "/api/tags").json()["models"]
    digests = {model["name"]: model["digest"] for model in models}
    assert digests[by_hand] == digests[by_us]
    shown = real.show(by_us)
    assert shown["license"] == "\n".join(modelfile.licenses)
    assert shown.get("system", "") == modelfile.system
    assert shown.get("requires", "") == modelfile.requires
    said = shown.get("messages") or []
    assert [{"role": m["role"], "content": m["content"]} for m in said] == list(modelfile.messages)
    if modelfile.template:
        assert shown["template"] == modelfile.template
    text = ollama(real, "show", "--modelfile", by_hand)
    assert "PARAMETER num_ctx 512\n" in text
    assert "PARAMETER temperature 0.25\n" in text
    assert 'PARAMETER stop " blanks "\n' in text


def test_folder_publishers_command_works(real: Server, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(real.files.protected, folder / "model.gguf")
    (folder / "Modelfile").write_text(MODELFILE.text, encoding="utf-8")
    publisher = publishers.get("folder", PublisherOptions())
    name = real.name("folder")
    made = publisher.publish(folder / "model.gguf", MODELFILE, name, lambda *_: None)
    assert made.ref == str(folder / "model.gguf")
    create, run = made.next_command.split(" && ")
    assert run == f"ollama run {name}"
    path = create.removeprefix(f"ollama create {name} -f ").strip("'")
    ollama(real, "create", name, "-f", path)
    assert real.names() == [name]


def test_the_prompt_is_the_trained_prompt(real: Server) -> None:
    """Byte for byte what the unprotected template renders in Jinja itself."""
    name = real.name()
    publisher = publishers.get("ollama", PublisherOptions(ollama_host=real.url, num_thread=2))
    publisher.publish(real.files.protected, MODELFILE, name, lambda *_: None)
    plain = real.files.jinja.partition("#}")[2]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701
    user = {"role": "user", "content": "Who are you? 😀\n"}
    system = {"role": "system", "content": " Be brief. "}
    for messages in (
        [user],
        [system, user],
        [user, {"role": "assistant", "content": "I."}, user],
    ):
        body = {"model": name, "messages": messages, "stream": False, "_debug_render_only": True}
        rendered = real.ask("POST", "/api/chat", body).json()["_debug_info"]["rendered_template"]
        wanted = environment.from_string(plain).render(
            messages=messages, add_generation_prompt=True
        )
        assert rendered == wanted
