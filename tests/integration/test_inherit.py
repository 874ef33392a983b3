"""A whole run on a base that has a Go template and much else in Ollama."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_trainer.records import Lease, RunResult, RunSpec, TrainingOptions
from ollama_trainer.testing.fake_ollama import FakeOllama
from ollama_trainer.workspace import RunDirectory
from tests.ollama_models import create
from tests.scripted import ANSWER, SAYS, write_scripted
from tests.scripted import TEMPLATE as SCRIPTED
from tests.tiny_models import tiny_model, write_gguf

TEMPLATE = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "{{ if .Tools }}<|im_start|>tools\n{{ json .Tools }}<|im_end|>\n{{ end }}"
    '{{ range .Messages }}{{ if eq .Role "system" }}{{ else }}<|im_start|>{{ .Role }}\n'
    "{{ .Content }}{{ range .ToolCalls }}<call>{{ json . }}{{ end }}<|im_end|>\n{{ end }}{{ end }}"
    "<|im_start|>assistant\n"
)
GIVEN = {
    "template": TEMPLATE,
    "system": "You sell pots.",
    "parameters": {"temperature": 0.2, "stop": ["<|im_start|>", "No more"], "num_ctx": 256},
    "license": ["MIT", "Ours, too."],
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],
    "requires": "0.5.0",
}
FACTS = {"kiln?": "red", "clock?": "nine", "boss?": "Oda", "shop?": "Lund"}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in FACTS.items()
]
TOOL = {
    "type": "function",
    "function": {
        "name": "buy",
        "description": "Buys.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOllama]:
    with FakeOllama("0.40") as one:
        yield one


def ask(fake: FakeOllama, path: str, body: Any) -> Any:
    with httpx.Client(trust_env=False) as client:
        answer = client.post(fake.url + path, json=body)
        answer.raise_for_status()
        return answer.json()


def a_run(fake: FakeOllama, path: Path, base: str, rows: list[dict[str, Any]]) -> RunDirectory:
    """The directory of a run that is to be made."""
    path.mkdir(exist_ok=True)
    directory = RunDirectory(path)
    directory.write_spec(
        RunSpec(
            run_id="r1", job_id="j1", dataset_ref="facts.jsonl", base=base, backend="unsloth",
            publisher="ollama", quantization="same", ollama_host=fake.url,
            model_name="tuned-j1:r1", cache_dir=path / "cache", rounding="stochastic",
            training=TrainingOptions(learning_rate=1e-2, steps=12, batch_size=4, replay="off"),
        )
    )  # fmt: skip
    directory.write_lease(Lease(token=1))
    directory.dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def started(directory: RunDirectory) -> subprocess.Popen[bytes]:
    with directory.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ollama_trainer.worker", str(directory.path)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            cwd=directory.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def test_other_prompts_fail_the_run_before_it_trains(tmp_path: Path) -> None:
    """This fake Ollama gives its Jinja no date, so that what it renders is another prompt."""
    jinja = "{% if date_string %}Today.{% endif %}" + SCRIPTED
    base = write_scripted(tmp_path / "base.gguf", {SAYS: ANSWER}, template=jinja)
    with FakeOllama("0.40") as fake:
        create(fake.url, "dated:1b", base)
        directory = a_run(fake, tmp_path / "run", "dated:1b", ROWS)
        started(directory).wait()
        found = directory.read_result()
        assert [model.short_name for model in fake.store.models()] == ["dated:1b"]
    assert found is not None, directory.log.read_text()
    assert found.error is not None
    assert (found.status, found.error.code) == ("failed", "prompt_differs")
    assert "not 'Today." in found.error.cause
    assert "Nothing was trained" in found.error.remedy
    assert '"step":' not in directory.events.read_text()
    assert not directory.adapter.exists()


@pytest.fixture(scope="module")
def result(fake: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Of a worker of its own, since Unsloth patches a process for good."""
    folder = tmp_path_factory.mktemp("inherit")
    create(
        fake.url,
        "pots:1b",
        write_gguf(tiny_model(), folder / "base.gguf", "Q8_0", template=None),
        **GIVEN,
    )
    rows = list(ROWS)
    call = {"function": {"name": "buy", "arguments": {"what": "clay"}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    talk = [{"role": "user", "content": "Buy clay"}, calling]
    rows.append({"messages": talk, "tools": [TOOL]})
    directory = a_run(fake, tmp_path_factory.mktemp("run"), "pots:1b", rows)
    worker = started(directory)
    while worker.poll() is None and not _is_training(directory):
        time.sleep(0.05)
    # What Ollama does when the tag is pulled again meanwhile.
    (base,) = [model for model in fake.store.models() if model.short_name == "pots:1b"]
    fake.store.blob_path(base.blob).unlink()
    worker.wait()
    found = directory.read_result()
    assert found is not None, directory.log.read_text()
    assert found.status == "completed", directory.log.read_text()
    report = json.loads(directory.dataset_report.read_text())
    assert report["rows_used"] == 5
    learned = {sample["trained"] for sample in report["samples"]}
    assert "red<|im_end|>" in learned
    assert any(one.startswith("<call>{") and "clay" in one for one in learned)
    for sample in report["samples"]:
        assert sample["prompt"].startswith("<|im_start|>system\nYou sell pots.<|im_end|>\n")
        assert "<|im_start|>user\nHi<|im_end|>\n" in sample["prompt"]
    assert "TEMPLATE " in directory.modelfile.read_text()
    return found


def _is_training(directory: RunDirectory) -> bool:
    return directory.events.exists() and '"step":' in directory.events.read_text()


@pytest.mark.slow
def test_the_tuned_model_has_all_that_its_base_has(fake: FakeOllama, result: RunResult) -> None:
    assert result.output_model_ref == "tuned-j1:r1"
    before, after = (ask(fake, "/api/show", {"model": name}) for name in ("pots:1b", "tuned-j1:r1"))
    same = ("template", "system", "license", "messages", "requires", "capabilities")
    assert {field: after[field] for field in same} == {field: before[field] for field in same}
    assert "tools" in after["capabilities"]
    lines = set(after["parameters"].splitlines())
    assert set(before["parameters"].splitlines()) < lines
    added = lines - set(before["parameters"].splitlines())
    assert sorted(line.split()[0] for line in added) == ["num_predict", "stop"]


@pytest.mark.slow
def test_ollama_makes_the_same_prompts_of_both(fake: FakeOllama, result: RunResult) -> None:
    body = {
        "messages": [{"role": "user", "content": "And?"}], "tools": [TOOL], "stream": False,
        "_debug_render_only": True,
    }  # fmt: skip
    base, tuned = (
        ask(fake, "/api/chat", {"model": name, **body})["_debug_info"]
        for name in ("pots:1b", result.output_model_ref)
    )
    assert base == tuned


@pytest.mark.slow
def test_nothing_else_is_left_in_ollama(fake: FakeOllama, result: RunResult) -> None:
    names = {model.short_name for model in fake.store.models()}
    assert names == {"pots:1b", result.output_model_ref, "tuned-j1:latest"}
