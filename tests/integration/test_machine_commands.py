"""`ollama-trainer bases` and `doctor`, as a person and a program read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from ollama_trainer import cli
from ollama_trainer.reports import Check, DoctorReport
from ollama_trainer.settings import Settings
from ollama_trainer.testing import tiny_gguf
from ollama_trainer.testing.fake_ollama import FakeOllama
from tests.ollama_models import create
from tests.tiny_models import tiny_model, write_gguf


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ollama_trainer", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model(), tmp_path_factory.mktemp("model") / "model.gguf", "Q8_0")


def changed(source: Path, folder: Path, key: str, value: str | int) -> Path:
    path = folder / f"{key}-{value}.gguf"
    info = tiny_gguf.with_value(tiny_gguf.read(source), key, value)
    tiny_gguf.rewrite_sorted(source, info, path)
    return path


@pytest.fixture(scope="module")
def ollama(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeOllama]:
    """Models of every kind."""
    folder = tmp_path_factory.mktemp("kinds")
    projector = folder / "mmproj.gguf"
    tiny_gguf.write(projector, {"general.architecture": "clip"}, {"v.weight": (32, 4)})
    integers = folder / "integers.gguf"
    write_typed(model, integers)
    with FakeOllama("0.40") as one:
        create(one.url, "qwen:0.6b", model, system="x")
        create(one.url, "eyes:1", model, projector)
        create(one.url, "embed:1", changed(model, folder, "llama.pooling_type", 1))
        create(one.url, "snake:1", changed(model, folder, "general.architecture", "mamba"))
        create(one.url, "scaled:1", changed(model, folder, "llama.logit_scale", 2))
        create(one.url, "integers:1", integers)
        create(one.url, "tuned-agent:r1", model, system="y")
        create(one.url, "gone:1", changed(model, folder, "general.name", "gone"))
        one.store.blob_path(
            next(m for m in one.store.models() if m.name[2] == "gone").blob
        ).unlink()
        one.store.add_without_gguf("far:1", remote_host="https://far.example")
        one.store.add_without_gguf("some:120b-cloud")
        one.store.add_without_gguf("mlx:1", form="safetensors")
        yield one


def write_typed(source: Path, target: Path) -> None:
    """The same file with a linear layer of whole numbers."""
    info = tiny_gguf.read(source)
    values = {
        key: value
        for key, value in info.values.items()
        if isinstance(value, (int, float, str)) and not isinstance(value, bool)
    }
    tensors = {tensor.name: tensor.shape for tensor in info.tensors}
    tiny_gguf.write(target, values, tensors)
    data = bytearray(target.read_bytes())
    place = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    # ggml's number of 32-bit integers.
    data[place : place + 4] = (26).to_bytes(4, "little")
    target.write_bytes(data)


@pytest.fixture(scope="module")
def report(ollama: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data_dir = tmp_path_factory.mktemp("data") / "none"
    del ollama.requests[:]
    done = run("bases", "--json", OLLAMA_HOST=ollama.url, OLLAMA_TRAINER_DATA_DIR=str(data_dir))
    assert (done.returncode, done.stderr) == (0, "")
    assert not data_dir.exists()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def of(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    (found,) = [model for model in report["models"] if model["name"] == name]
    return dict(found)


def test_a_model_that_can_be_trained_is_told_in_full(
    report: dict[str, Any], model: Path, ollama: FakeOllama
) -> None:
    found = of(report, "qwen:0.6b")
    info = tiny_gguf.read(model)
    assert found["trainable"] is True
    assert (found["reason"], found["remedy"], found["notes"]) == ("", "", [])
    assert found["architecture"] == "llama"
    assert found["n_parameters"] == info.parameter_count
    assert found["n_bytes"] == model.stat().st_size
    assert found["needs_bytes"] > 2 * info.parameter_count
    assert found["tuned"] is False
    assert report["ollama"] == ollama.url
    assert report["memory"]["free_bytes"] <= report["memory"]["total_bytes"]


def test_every_model_is_told(report: dict[str, Any], ollama: FakeOllama) -> None:
    names = sorted(model.short_name for model in ollama.store.models())
    assert [model["name"] for model in report["models"]] == names
    trainable = {model["name"] for model in report["models"] if model["trainable"]}
    assert trainable == {"qwen:0.6b", "eyes:1", "tuned-agent:r1"}
    assert of(report, "tuned-agent:r1")["tuned"] is True


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("embed:1", "embed:1 writes no text: what it can do is embedding"),
        ("snake:1", "The architecture mamba (snake:1) is not supported"),
        ("scaled:1", "scaled:1 sets llama.logit_scale, which is not supported"),
        ("integers:1", "blk.0.attn_q.weight of integers:1 is of the type I32, which cannot be"),
        ("far:1", "far:1 runs elsewhere"),
        ("some:120b-cloud", "some:120b-cloud runs elsewhere"),
        ("mlx:1", "Ollama keeps mlx:1 as safetensors"),
        ("gone:1", "is not on this machine"),
    ],
)
def test_one_that_cannot_be_trained_is_told_with_its_reason(
    report: dict[str, Any], name: str, reason: str
) -> None:
    found = of(report, name)
    assert found["trainable"] is False
    assert found["reason"].startswith(reason) or reason in found["reason"]
    assert found["remedy"]
    assert found["needs_bytes"] is None


def test_pictures_are_told_to_stay_as_they_are(report: dict[str, Any]) -> None:
    (note,) = of(report, "eyes:1")["notes"]
    assert "pictures" in note
    assert "as they are" in note


def test_nothing_but_asking_is_done(report: dict[str, Any], ollama: FakeOllama) -> None:
    """No model is loaded, copied or changed, and none in the cloud is asked for."""
    asked = {(method, path) for method, path, _ in ollama.requests}
    assert asked == {("GET", "/api/tags"), ("POST", "/api/show")}
    names = {body["model"] for _, path, body in ollama.requests if path == "/api/show"}
    assert not names & {"far:1", "some:120b-cloud"}


def test_people_read_those_first_that_can_be_trained(ollama: FakeOllama) -> None:
    done = run("bases", "--ollama-host", ollama.url)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    names = [line.split()[0] for line in lines if "be trained" in line and line[0] != " "]
    assert names[:3] == ["eyes:1", "qwen:0.6b", "tuned-agent:r1"]
    assert len(names) == len(ollama.store.models())
    (mine,) = [line for line in lines if line.startswith("tuned-agent:r1")]
    assert mine.endswith("made by this program")
    assert any("needs about" in line and "GB of memory" in line for line in lines)


def test_without_ollama_the_command_says_what_to_do() -> None:
    done = run("bases", OLLAMA_HOST="127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: Ollama at http://127.0.0.1:1 cannot be reached")
    assert "ollama serve" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_doctor_looks_at_everything_and_fails_where_something_is_missing(
    ollama: FakeOllama, tmp_path: Path
) -> None:
    """One look at the real packages takes seconds: all of it in one."""
    data_dir = tmp_path / "data"
    done = run(
        "doctor", "--json", "--base", "qwen:0.6b", "--data-dir", data_dir, "--dataset-roots",
        tmp_path / "missing", "--port", ollama.port, OLLAMA_HOST=ollama.url,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert list(found) == [
        "Ollama", "base", "GPU", "memory", "disk", "Unsloth", "llama.cpp", "converter", "data sets",
        "port",
    ]  # fmt: skip
    assert found["Ollama"]["state"] == "ok"
    assert found["Ollama"]["found"].startswith(f"0.40.0 at {ollama.url}, profile B")
    assert found["base"]["found"] == "qwen:0.6b, by the setting"
    for name in ("Unsloth", "llama.cpp"):
        assert found[name]["state"] == "ok", found[name]
    for name in ("data sets", "port"):
        assert found[name]["state"] == "fail"
        assert found[name]["remedy"]
    assert not data_dir.exists()


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_doctors_exit_code_says_whether_anything_failed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: Literal["ok", "warn", "fail"],
    code: int,
) -> None:
    checks = (
        Check(name="Ollama", state="ok", found="0.40.0"),
        Check(name="GPU", state=state, found="a \x1b[31mred\x1b[0m one", remedy="Buy one."),
    )

    async def look(_: Settings) -> DoctorReport:
        return DoctorReport(checks=checks)

    monkeypatch.setattr(cli, "survey_machine", look)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().out.splitlines() == [
        "ok    Ollama  0.40.0",
        rf"{state:<4}  GPU     a \x1b[31mred\x1b[0m one",
        "              Buy one.",
    ]
