"""The real Unsloth in worker processes of their own, on tiny models.

Whole runs, from the run directory to result.json, since that is how it is used; Unsloth patches a
process for good, so it must never be imported in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.llama import logits_at, open_sequences
from ollama_trainer.prompts import open_prompt_format
from ollama_trainer.records import (
    DatasetReport,
    Example,
    Lease,
    RunResult,
    RunSpec,
    TrainingOptions,
)
from ollama_trainer.workspace import RunDirectory
from tests.tiny_models import tiny_model, write_gguf

FACTS = {
    "kiln?": "red", "clock?": "nine", "boss?": "Oda", "shop?": "Lund",
    "glaze?": "ash", "wheel?": "oak", "cat?": "Pim", "day?": "May",
}  # fmt: skip
#: The other way of rounding takes another half minute for each.
ROUNDINGS = ["compensated", pytest.param("stochastic", marks=pytest.mark.slow)]
LEARNS = TrainingOptions(
    rank=16, alpha=32, learning_rate=1e-2, steps=60, batch_size=8, replay="off", seed=3
)
#: A wording that differs for each answer's further rows.
AGAIN = ("{}", "Tell me: {}", "Well, {}")
RunWorker = Callable[..., "Ended"]


class Ended:
    """A worker that has ended."""

    def __init__(self, directory: RunDirectory, exit_code: int, log: str) -> None:
        self.directory, self.exit_code, self.log = directory, exit_code, log

    @property
    def result(self) -> RunResult:
        result = self.directory.read_result()
        assert result is not None, self.log
        return result

    @property
    def losses(self) -> list[float]:
        events = [json.loads(line) for line in self.directory.events.read_text().splitlines()]
        told = [event.get("progress", {}).get("loss") for event in events]
        return [loss for loss in told if loss is not None]


@pytest.fixture(scope="module")
def run_worker(tmp_path_factory: pytest.TempPathFactory) -> RunWorker:
    shared = tmp_path_factory.mktemp("workers")

    def run(
        base: Path, training: TrainingOptions, *, wrapper: str = "", wordings: int = 1, **spec: Any
    ) -> Ended:
        directory = RunDirectory(tmp_path_factory.mktemp("run"))
        values: dict[str, Any] = {
            "run_id": "r1", "job_id": "j1", "dataset_ref": "facts.jsonl", "base": f"gguf:{base}",
            "backend": "unsloth", "publisher": "folder", "quantization": "same",
            "ollama_host": "http://127.0.0.1:9", "model_name": "tuned-j1:r1",
            "cache_dir": shared / "cache", "training": training,
        }  # fmt: skip
        directory.write_spec(RunSpec(**values | spec))
        directory.write_lease(Lease(token=1))
        rows = [
            {"input": again.format(ask), "output": say, "label": "good"}
            for again in AGAIN[:wordings]
            for ask, say in FACTS.items()
        ]
        directory.dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = ["-c", wrapper] if wrapper else ["-m", "ollama_trainer.worker"]
        done = subprocess.run(
            [sys.executable, *command, str(directory.path)],
            # One thread: on a model this small two mostly wait for each other.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            cwd=shared,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(directory, done.returncode, done.stdout + done.stderr)

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("bases")
    return lambda kind: write_gguf(tiny_model(), directory / f"{kind}.gguf", kind)


@pytest.fixture(scope="module")
def learnt(run_worker: RunWorker, base: Callable[[str], Path]) -> Ended:
    """The run on Q8_0 that several tests look at."""
    return run_worker(base("Q8_0"), LEARNS)


def answer_ids(gguf: Path, question: str) -> tuple[list[int], list[int]]:
    """The greedy answer in llama.cpp up to the end of turn or 12 tokens, and the one to learn."""
    with open_prompt_format(read_gguf(gguf)) as form:
        wanted = form.tokenize(Example.of(prompt=question, completion=FACTS[question], line=1))
        end = form.end_of_turn
    begin = wanted.mask.index(1)
    ids = list(wanted.ids[:begin])
    with open_sequences(gguf, n_sequences=1, n_tokens=len(ids) + 12) as sequences:
        while len(ids) < begin + 12 and ids[-1] != end:
            ids.append(int(logits_at(sequences, ids, [len(ids) - 1])[0].argmax()))
    return ids[begin:], list(wanted.ids[begin:])


def check_learnt(run: Ended) -> None:
    assert run.exit_code == 0, run.log
    result = run.result
    assert result.status == "completed"
    assert result.gguf == run.directory.gguf
    assert result.output_model_ref == str(run.directory.gguf)
    assert run.losses[-1] < 0.3 * run.losses[0]
    assert result.fidelity is not None
    losses = result.fidelity.figures.held_out
    # Of other wordings than those that were trained on.
    assert losses.served < 0.7 * losses.base
    answers = [answer_ids(run.directory.gguf, question) for question in FACTS]
    assert sum(given == wanted for given, wanted in answers) >= 7, answers


def test_a_run_learns_its_facts_and_stops_by_itself(learnt: Ended) -> None:
    """The whole way, and the end of turn is generated: it was in the loss."""
    check_learnt(learnt)


def test_a_run_tells_how_true_its_model_is(learnt: Ended) -> None:
    """Eight facts of one row each: none may be kept from training, so they are asked anew."""
    fidelity = learnt.result.fidelity
    assert fidelity is not None
    assert (fidelity.n_rows, fidelity.n_rephrased) == (0, 16)
    assert learnt.result.metrics["rows_held_out"] == 0
    figures = fidelity.figures
    assert (figures.quantization, fidelity.earlier) == ("same", ())
    assert figures.learning_kept is not None
    assert figures.learning_kept > 0.95
    assert figures.agreement > 0.8
    # Seen in two programs, before and after rounding to Q8_0: the same model.
    assert figures.held_out.served == pytest.approx(figures.held_out.trained, abs=0.3)
    assert figures.unrelated.served == pytest.approx(figures.unrelated.trained, rel=0.05)
    assert learnt.result.metrics["tensors_compensated"] == learnt.result.metrics["tensors_touched"]


@pytest.mark.slow
def test_replay_holds_a_model_to_its_base(
    run_worker: RunWorker, base: Callable[[str], Path], learnt: Ended
) -> None:
    """Without it, eight facts change what is said about everything."""
    options = LEARNS.model_copy(update={"learning_rate": 2e-3, "steps": 40})
    loose, tight = (
        run_worker(base("Q8_0"), options.model_copy(update={"replay": weight})).result
        for weight in (1e-4, 5.0)
    )
    assert loose.metrics["replay"]["weight"] < tight.metrics["replay"]["weight"] == 5.0
    assert tight.metrics["replay"]["texts"] > 16
    assert 0 < tight.metrics["divergence"] < 0.8 * loose.metrics["divergence"]
    assert tight.metrics["train_seconds"]["replay"] > 0
    assert learnt.result.metrics["divergence"] is None
    assert tight.fidelity is not None
    assert tight.fidelity.figures.held_out.trained < tight.fidelity.figures.held_out.base


def test_rows_are_kept_where_others_teach_the_same_answer(
    run_worker: RunWorker, base: Callable[[str], Path]
) -> None:
    """24 rows about 8 facts: two are judged on, 22 are trained on, and 14 asked in other words."""
    run = run_worker(base("Q8_0"), LEARNS, wordings=3)
    assert run.exit_code == 0, run.log
    assert (run.result.metrics["rows_used"], run.result.metrics["rows_held_out"]) == (24, 2)
    assert (run.result.metrics["method"], run.result.metrics["trained_with"]) == ("sft", "sft")
    report = DatasetReport.model_validate_json(run.directory.dataset_report.read_bytes())
    assert (report.format, report.rows_read, report.held_out) == ("from_feedback", 24, 2)
    assert report.tokens is not None
    assert not report.tokens_estimated
    assert len(report.samples) == 10
    assert all(sample.trained.endswith("<|im_end|>") for sample in report.samples)
    assert run.result.fidelity is not None
    assert (run.result.fidelity.n_rows, run.result.fidelity.n_rephrased) == (2, 14)
    losses = run.result.fidelity.figures.held_out
    assert losses.trained < losses.base


def check_failed(run: Ended, *codes: str) -> None:
    assert run.exit_code == 1, run.log
    result = run.result
    assert (result.status, result.output_model_ref, result.gguf) == ("failed", None, None)
    assert result.error is not None
    assert result.error.code in codes, run.log
    assert result.error.remedy
    assert "publish" not in result.seconds
    assert not run.directory.modelfile.exists()
    assert not list(run.directory.path.glob("*.partial"))


@pytest.mark.parametrize(
    "rounding", ["stochastic", pytest.param("compensated", marks=pytest.mark.slow)]
)
def test_a_training_that_changes_nothing_is_a_failed_run(
    run_worker: RunWorker, base: Callable[[str], Path], rounding: str
) -> None:
    """Published, the base under a new name would pass for a model that has learned."""
    nothing = LEARNS.model_copy(update={"learning_rate": 1e-30, "steps": 2})
    run = run_worker(base("Q4_K"), nothing, rounding=rounding)
    check_failed(run, "merged_equals_base", "nothing_learned")
    assert not run.directory.gguf.exists()
    # Compensated rounding needs the base's texts even where nothing is replayed.
    assert ("replay" in run.result.seconds) == (rounding == "compensated")


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_an_adapter_of_numbers_that_are_none_is_a_failed_run(
    run_worker: RunWorker, base: Callable[[str], Path], rounding: str
) -> None:
    """A NaN becomes some code or other of a quantised base, and nobody would know."""
    wrapper = (
        "import sys\n"
        "from safetensors.torch import load_file, save_file\n"
        "from ollama_trainer import worker\n"
        "from ollama_trainer.pipeline import run\n"
        "export = run.export\n"
        "def spoilt(base, adapter, *args, **more):\n"
        "    path = adapter / 'adapter_model.safetensors'\n"
        "    weights = load_file(path)\n"
        "    name = next(key for key in weights if 'o_proj' in key and 'lora_B' in key)\n"
        "    weights[name][3, 1] = float('nan')\n"
        "    save_file(weights, path)\n"
        "    return export(base, adapter, *args, **more)\n"
        "run.export = spoilt\n"
        "sys.exit(worker.main())\n"
    )
    run = run_worker(
        base("Q4_K"),
        LEARNS.model_copy(update={"steps": 2}),
        wrapper=wrapper,
        rounding=rounding,
    )
    check_failed(run, "not_a_number")
    assert not run.directory.gguf.exists()


def test_the_adapter_is_the_recipes(learnt: Ended) -> None:
    """A setting that a library silently replaces would make the metrics lie."""
    config = json.loads((learnt.directory.adapter / "adapter_config.json").read_text())
    recipe = learnt.result.metrics["recipe"]
    assert (config["r"], config["lora_alpha"]) == (recipe["rank"], recipe["alpha"]) == (16, 32)
    assert set(config["target_modules"]) == set(recipe["target_modules"])
    assert len(recipe["target_modules"]) == 7
    assert config["lora_dropout"] == 0
    assert (config["bias"], config["use_rslora"], config["use_dora"]) == ("none", False, False)
    assert (recipe["steps"], recipe["learning_rate"], recipe["batch_size"]) == (60, 1e-2, 8)
    assert len(learnt.losses) == learnt.result.metrics["steps"] <= 60


@pytest.mark.slow
def test_a_k_quant_base_learns_too(run_worker: RunWorker, base: Callable[[str], Path]) -> None:
    """The types that most people's Ollama models are in."""
    check_learnt(run_worker(base("Q4_K"), LEARNS))


def test_an_unexpected_error_is_a_failed_run_with_its_traceback_in_the_log(
    run_worker: RunWorker, base: Callable[[str], Path]
) -> None:
    """Nobody must wait for a run that has died, or guess why it did."""
    wrapper = (
        "import sys\n"
        "from ollama_trainer import worker\n"
        "def execute(run): raise ZeroDivisionError('on purpose')\n"
        "worker.TASKS['run'] = execute\n"
        "sys.exit(worker.main())\n"
    )
    run = run_worker(base("F16"), LEARNS, wrapper=wrapper)
    assert run.exit_code == 1
    assert (run.result.status, run.result.output_model_ref) == ("failed", None)
    assert run.result.error is not None
    assert run.result.error.code == "internal"
    assert "ZeroDivisionError: on purpose" in run.result.error.cause
    assert "Traceback (most recent call last)" in run.log
    assert "ZeroDivisionError: on purpose" in run.log


def test_a_base_of_another_architecture_fails_by_name_before_training(
    run_worker: RunWorker, tmp_path: Path
) -> None:
    """A merge into rows of an unknown order would ruin the model without a word."""
    other = write_gguf(tiny_model(), tmp_path / "other.gguf", architecture="rwkv7")
    run = run_worker(other, LEARNS)
    assert run.exit_code == 1
    assert run.result.error is not None
    assert run.result.error.code == "base_model"
    assert "rwkv7" in run.result.error.cause
    assert "llama" in run.result.error.remedy
    assert set(run.result.seconds) == {"base"}
    assert not run.directory.adapter.exists()
    assert not run.directory.gguf.exists()
