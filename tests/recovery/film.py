"""A recorded training: what Unsloth made of a tiny model, played again step by step.

Importing Unsloth takes 17 s, and a series of kills has dozens of workers. The projector takes the
place of the backend alone: it saves checkpoints as it goes, takes up the last one, and gives out
the recorded files only when each step was made exactly once in the chain that led there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ollama_trainer.backends import FreeMemory, TrainJob
from ollama_trainer.manifests import read_manifest, write_manifest
from ollama_trainer.records import (
    Adapter,
    FidelityOptions,
    Lease,
    Progress,
    RunSpec,
    Stage,
    TrainingOptions,
)
from ollama_trainer.workspace import RunDirectory, atomic_directory, write_text
from tests.tiny_models import tiny_model, write_gguf

STEPS = 6
CHECKPOINT_BYTES = 1_000_000
FACTS = {
    "kiln?": "red", "clock?": "nine", "boss?": "Oda", "shop?": "Lund",
    "glaze?": "ash", "wheel?": "oak", "cat?": "Pim", "day?": "May",
}  # fmt: skip
TRAINING = TrainingOptions(steps=20, learning_rate=1e-2, batch_size=4, layers="all")
#: A tiny random model is what it is: here only the way to it counts.
FIDELITY = FidelityOptions(
    min_learning_kept=0,
    min_agreement=0,
    max_unrelated_over_trained=100,
    max_unrelated_over_base=100,
)


def rows() -> str:
    """The data set, as JSONL."""
    return "".join(
        json.dumps({"input": ask, "output": say, "label": "good"}) + "\n"
        for ask, say in FACTS.items()
    )


def record(folder: Path) -> Path:
    """Trains a tiny model with the real worker and keeps what it left; returns the folder."""
    base = write_gguf(tiny_model(), folder / "base.gguf", "Q8_0")
    directory = RunDirectory(folder / "runs" / "film")
    directory.path.mkdir(parents=True)
    directory.write_spec(
        RunSpec(
            run_id="film", job_id="job", dataset_ref="/rows.jsonl", base=f"gguf:{base}",
            backend="unsloth", publisher="folder", quantization="same", ollama_host="",
            model_name="tuned-job:film", cache_dir=folder / "cache", training=TRAINING,
            fidelity=FIDELITY,
        )
    )  # fmt: skip
    directory.write_lease(Lease(token=1))
    directory.dataset.write_text(rows(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ollama_trainer.worker", str(directory.path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Projector:
    """Stands where a backend stands."""

    def __init__(self, folder: Path) -> None:
        self._recorded = RunDirectory(folder / "runs" / "film")

    def free_memory(self, cache: Path) -> FreeMemory:
        """A film takes none."""
        return FreeMemory(n_bytes=1 << 40, on_gpu=False)

    def train(self, job: TrainJob, report: Callable[[Progress], None]) -> Adapter:
        assert job.checkpoints is not None
        assert job.statistics is not None
        step, state = _resume(job)
        while step < STEPS:
            state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
            step += 1
            report(Progress(stage=Stage.TRAIN, fraction=step / STEPS, step=step, steps=STEPS))
            _save(job, step, state)
        assert state == _expected(job.key), "a step was lost or made twice"
        for source, target in (
            (self._recorded.adapter, job.out),
            (self._recorded.statistics, job.statistics),
        ):
            with atomic_directory(target) as partial:
                shutil.copytree(source, partial, dirs_exist_ok=True)
        told = json.loads(self._recorded.manifest("train").read_bytes())["data"]
        adapter: Adapter = TypeAdapter(Adapter).validate_json(told["adapter"])
        return replace(adapter, path=job.out)


def _expected(key: str) -> str:
    state = key
    for step in range(STEPS):
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
    return state


def _resume(job: TrainJob) -> tuple[int, str]:
    assert job.checkpoints is not None
    for step in range(STEPS, 0, -1):
        folder = job.checkpoints / f"step-{step}"
        if read_manifest(folder / "manifest.json", job.key, folder) is not None:
            content: dict[str, Any] = json.loads((folder / "state.json").read_bytes())
            return step, content["state"]
    return 0, job.key


def _save(job: TrainJob, step: int, state: str) -> None:
    assert job.checkpoints is not None
    with atomic_directory(job.checkpoints / f"step-{step}") as partial:
        content = {"state": state, "padding": "x" * CHECKPOINT_BYTES}
        write_text(partial / "state.json", json.dumps(content))
        write_manifest(partial / "manifest.json", job.key, partial, [partial / "state.json"])
    shutil.rmtree(job.checkpoints / f"step-{step - 1}", ignore_errors=True)
    job.saved(step)
