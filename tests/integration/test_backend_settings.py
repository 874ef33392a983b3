"""What reaches the trainer inside the real Unsloth, asked of the trainer itself.

The runs of test_backend_unsloth.py show what comes out; a hyperparameter that a library replaces
in silence shows only here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.gguf.architectures import ARCHITECTURES
from tests.tiny_models import CONTEXT, TOKENS, tiny_model, write_gguf

RECIPE: dict[str, Any] = {
    "rank": 4, "alpha": 12, "target_modules": ARCHITECTURES["llama"].target_modules, "layers": [1],
    "learning_rate": 3e-3, "steps": 5, "warmup_steps": 2, "batch_size": 2, "max_length": 64,
    "seed": 11,
}  # fmt: skip
SHORT = [["Who?", "Ida"], ["When?", "at nine"], ["What?", "pots"]]
LONG = [["x" * 300 + str(number), "y"] for number in range(32)]
#: Name -> what differs from RECIPE, rows.
JOBS: dict[str, tuple[dict[str, Any], list[list[str]]]] = {
    "short": ({}, SHORT),
    "long": ({"batch_size": 32, "steps": 1, "max_length": CONTEXT}, LONG),
    "other seed": ({"seed": 12}, SHORT),
    "diverging": ({"learning_rate": 1e30, "steps": 50}, SHORT),
}


Train = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains some of JOBS, one after the other in one process; what each told, by name."""
    base = write_gguf(tiny_model(), tmp_path_factory.mktemp("base") / "base.gguf", "Q8_0")

    def run(*names: str) -> dict[str, dict[str, Any]]:
        directory = tmp_path_factory.mktemp("jobs")
        paths = {name: directory / f"{name}.json" for name in names}
        for name, path in paths.items():
            changes, facts = JOBS[name]
            job = {"base": f"gguf:{base}", "recipe": RECIPE | changes, "facts": facts}
            path.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", "tests.integration.train_tiny", *map(str, paths.values())],
            # One thread: on a model this small two mostly wait for each other.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return {name: told(path) for name, path in paths.items()}

    return run


def told(job: Path) -> dict[str, Any]:
    """A job's result, and the digest of its adapter, if there is one."""
    result: dict[str, Any] = json.loads(job.with_suffix(".result.json").read_text())
    weights = job.with_suffix(".adapter") / "adapter_model.safetensors"
    saved = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None
    return result | {"saved": saved}


@pytest.fixture(scope="module")
def results(train: Train) -> dict[str, dict[str, Any]]:
    return train(*JOBS)


def test_the_trainer_works_with_the_recipe(results: dict[str, Any]) -> None:
    """Unsloth's and TRL's own defaults differ and change; none may decide a run."""
    arguments = results["short"]["arguments"]
    wanted = {
        "max_steps": 5, "warmup_steps": 2, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1, "learning_rate": 3e-3, "max_length": 64, "seed": 11,
        "data_seed": 11, "lr_scheduler_type": "cosine", "optim": "adamw_torch_fused",
        "packing": False, "padding_free": False, "completion_only_loss": True,
        "max_grad_norm": 1.0, "weight_decay": 0.0, "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None, "report_to": [],
    }  # fmt: skip
    assert {key: arguments[key] for key in wanted} == wanted
    optimizer = results["short"]["optimizer"]
    assert (optimizer["betas"], optimizer["weight_decay"]) == ([0.9, 0.99], 0.0)
    assert results["short"]["steps"] == 5


def test_the_rate_rises_to_the_recipes_and_falls(results: dict[str, Any]) -> None:
    """Two steps of warm-up from zero, the peak at the third, then a cosine."""
    rates = results["short"]["rates"]
    assert rates[:3] == pytest.approx([0, 1.5e-3, 3e-3])
    assert rates[2] == max(rates) > rates[3] > rates[4] > 0


def test_padding_is_the_ggufs_and_not_the_end_of_turn(results: dict[str, Any]) -> None:
    """Padded with the token that ends an answer, a model never learns to stop."""
    assert results["short"]["padding"] == TOKENS.index("<|endoftext|>")


def test_short_rows_are_not_computed_twice(results: dict[str, Any]) -> None:
    """Checkpointing saves memory that short rows do not need, for a third of the time."""
    short, long = results["short"], results["long"]
    for result, wanted in ((short, False), (long, True)):
        assert result["arguments"]["gradient_checkpointing"] is wanted
        assert result["checkpointing"] is wanted
    # On machines with an accelerator, the fused one is always the quicker.
    assert short["attention"] in ("eager", "sdpa")
    assert long["attention"] == "sdpa"
    assert {short["dtype"], long["dtype"]} <= {"torch.bfloat16", "torch.float16"}


def test_each_step_is_reported(results: dict[str, Any]) -> None:
    """The bar, and the time left, are made of these."""
    reports = results["short"]["reports"]
    assert [report["step"] for report in reports] == [1, 2, 3, 4, 5]
    assert all(report["steps"] == 5 and report["stage"] == "train" for report in reports)
    assert all(report["loss"] > 0 and report["tokens_per_s"] > 0 for report in reports)
    assert (reports[-1]["fraction"], reports[-1]["left_s"]) == (1.0, 0.0)
    assert reports[-1]["loss"] == results["short"]["final_loss"]


@pytest.mark.slow
def test_the_seed_decides_the_adapter(train: Train, results: dict[str, Any]) -> None:
    """A run that cannot be repeated, in another process on another day, cannot be explained."""
    again = train("short")["short"]["saved"]
    assert again == results["short"]["saved"] is not None
    assert again != results["other seed"]["saved"]


def test_a_loss_that_is_no_number_fails_the_run(results: dict[str, Any]) -> None:
    """transformers logs it as 0, which would pass for the best of all runs."""
    assert results["diverging"]["error"] == "training_failed"
    assert "stopped being a number" in results["diverging"]["cause"]
    assert results["diverging"]["saved"] is None
