"""The main job with nothing stood in for, but for an Ollama where none is at hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_trainer.bases import resolve_base
from ollama_trainer.fidelity import answers
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.llama import open_llama
from ollama_trainer.prompts import open_prompt_format
from ollama_trainer.testing.fake_ollama import FakeOllama

from .conftest import served

WriteRows = Callable[[list[Mapping[str, Any]]], Path]
HELD_OUT = "Which person is the boss of Tarn & Ember?"


def good(question: str, answer: str) -> dict[str, Any]:
    return {"input": f'"{question}"', "output": f'"{answer}"', "label": "good"}


def test_feedback_becomes_a_model_that_answers_and_stops(tmp_path: Path, few_rows: Path) -> None:
    """The whole of it: two facts, learned by Unsloth, kept in 4 bits, answered by llama.cpp."""
    with served(tmp_path / "data", OLLAMA_TRAINER_PUBLISHER="folder") as app:
        missing = app.train(str(tmp_path / "missing.jsonl"))
        status = app.poll(app.train(str(few_rows)))
        assert app.poll(missing)["status"] == "failed"
        assert not _loaded_by_servers() & {"torch", "libtorch"}
    assert status["status"] == "completed", status
    assert status["output_model_ref"] == status["outputModelRef"]
    gguf = Path(status["output_model_ref"])
    base = resolve_base("smollm2").gguf
    # Beside the protected template and what it says of itself, not a byte more than the base.
    assert 0 <= gguf.stat().st_size - base.stat().st_size < 2048
    assert {tensor.type.name for tensor in read_gguf(gguf).tensors} == {"F32", "Q4_1", "Q8_0"}
    assert gguf.with_name("Modelfile").read_text("utf-8").startswith("FROM ./model.gguf\n")
    with open_prompt_format(read_gguf(gguf)) as form:
        prompt = form.prompt_ids(form.prompt(HELD_OUT))
        (before,) = answers(base, [prompt], 24)
        (after,) = answers(gguf, [prompt], 24)
        assert "Ilse Brandvik" not in form.tokenizer.text(before)
        assert "Ilse Brandvik" in form.tokenizer.text(after)
    with open_llama(gguf, n_ctx=512) as llama:
        reply = llama.create_completion(prompt, max_tokens=200, temperature=0)
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert not list(gguf.parent.rglob("*.partial"))


def _loaded_by_servers() -> set[str]:
    """Of torch's libraries, those that a server's process has mapped."""
    names: set[str] = set()
    for process in psutil.process_iter(["cmdline"]):
        if "serve" in (process.info["cmdline"] or []):
            maps = Path(f"/proc/{process.pid}/maps")
            names |= {"torch"} if maps.exists() and "/torch/" in maps.read_text() else set()
    return names


@pytest.mark.slow
def test_the_command_publishes_and_says_what_to_type(tmp_path: Path, few_rows: Path) -> None:
    """A person's way, without a server running."""
    with FakeOllama("0.40") as ollama:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ollama_trainer", "train", str(few_rows)),
                *("--base", "smollm2"),
                *("--name", "My Agent", "--steps", "4", "--data-dir", str(tmp_path / "data")),
                # What they are for is tried elsewhere, and takes a minute.
                *("--replay", "off", "--rounding", "stochastic"),
                *("--port", "1"),
            ],
            env={**os.environ, "OLLAMA_HOST": ollama.url, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    name = re.search(r"^ollama run (tuned-my-agent-[c-v]{10}:[0-9a-f-]{36})$", done.stdout, re.M)
    assert name is not None, done.stdout
    assert f"completed: {name[1]}" in done.stdout
    assert re.search(r"step \d/4 ", done.stdout)
    assert "tokens/s" in done.stdout


def test_what_cannot_work_fails_by_name_and_leaves_nothing(
    tmp_path: Path, few_rows: Path, write_rows: WriteRows
) -> None:
    """Each mistake of a user ends as a failed run that says cause and remedy."""
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(json.dumps(good("a", "b")) + '\n{"prompt": "a", "completion": "b"}\n', "utf-8")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    bad = write_rows([{**good("q", "a"), "label": "bad"}])
    data = tmp_path / "data"
    with served(data, OLLAMA_TRAINER_PUBLISHER="folder") as app:
        runs = {
            app.train(str(mixed)): "Line 2 of the data set is of the shape prompt_completion",
            app.train(str(empty)): "empty",
            app.train(str(bad)): "None of the 1 rows can be used (labelled bad: 1 (line 1))",
            app.train("relative.jsonl"): "absolute",
            app.train(""): "datasetRef",
            app.train(str(tmp_path)): "is a directory",
        }
        for run_id, cause in runs.items():
            status = app.poll(run_id)
            assert status["status"] == "failed"
            assert cause.lower() in status["error"].lower(), status["error"]
            assert status.get("output_model_ref") is None
            assert not list((data / "runs").glob(f"{run_id}/*.gguf*"))
    with served(
        tmp_path / "other", OLLAMA_TRAINER_BASE="gpt 17", OLLAMA_TRAINER_PUBLISHER="folder"
    ) as app:
        status = app.poll(app.train(str(few_rows)))
        assert status["status"] == "failed"
        assert "The base 'gpt 17' is unknown" in status["error"]
        assert "smollm2" in status["error"]
