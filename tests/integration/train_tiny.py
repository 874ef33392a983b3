"""Trains with the real Unsloth outside of pytest: python -m tests.integration.train_tiny JOB.json…

Unsloth patches torch's users for the whole process. For each job, <job>.result.json tells what
reached the trainer and how it went.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ollama_trainer import replay
from ollama_trainer.backends import Recipe, ReplayPlan, TrainJob, unsloth
from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import TrainerError, is_disk_full
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.prompts import open_prompt_format
from ollama_trainer.records import BaseGguf, Example, Progress, TokenizedExample
from tests.tiny_models import TOKENS


class Stopped(Exception):
    """What a job's `stop_at` raises."""


def read_job(path: Path) -> TrainJob:
    """What a job says: base, recipe and facts, and what else it is to do."""
    spec = json.loads(path.read_bytes())
    base = resolve_base(spec["base"])
    cache = path.parent / "cache"

    checkpoints = path.with_suffix(".checkpoints")

    def saved(step: int) -> None:
        with path.with_suffix(".saved").open("a") as handle:
            handle.write(json.dumps([step, [found.name for found in checkpoints.iterdir()]]) + "\n")
        if step == spec.get("fill_at"):
            fill_disk(path.parent, spec["leave_bytes"])
        if step == spec.get("stop_at"):
            raise MemoryError if spec.get("stop_by") == "memory" else Stopped(step)

    return TrainJob(
        base=base,
        examples=tokenized(base, spec["facts"]),
        recipe=Recipe(**spec["recipe"]),
        replay=replay_plan(base, cache) if spec.get("replay") else ReplayPlan(),
        held_out=tokenized(base, spec.get("held_out", [])),
        probe=tokenized(base, spec.get("probe", [])),
        out=path.with_suffix(".adapter"),
        statistics=path.with_suffix(".statistics") if spec.get("statistics") else None,
        cache=cache,
        checkpoints=checkpoints if spec.get("checkpoints") else None,
        key=spec.get("key", ""),
        checkpoint_every_s=spec.get("every_s", 0.0),
        saved=saved,
    )


def tokenized(base: BaseGguf, facts: Sequence[tuple[str, str]]) -> tuple[TokenizedExample, ...]:
    with open_prompt_format(read_gguf(base.gguf)) as form:
        return tuple(
            form.tokenize(Example.of(prompt=question, completion=answer, line=line))
            for line, (question, answer) in enumerate(facts, start=1)
        )


def replay_plan(base: BaseGguf, cache: Path) -> ReplayPlan:
    """At every second step."""
    settings = replay.ReplaySettings(n_texts=10, n_tokens=12, n_likeliest=len(TOKENS) - 2)
    texts = replay.replay_texts(base, cache, settings)
    return ReplayPlan(batches=replay.in_batches(texts, 2, 1), weight=1.5, every=2)


def fill_disk(directory: Path, leave_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    (directory / "ballast").write_bytes(b"x" * (free - leave_bytes))


def facts_of(trainer: Any) -> dict[str, Any]:
    """What the trainer worked with, asked after the fact."""
    group = trainer.optimizer.param_groups[0]
    return {
        "arguments": trainer.args.to_dict(),
        "optimizer": {key: group[key] for key in ("betas", "eps", "weight_decay", "initial_lr")},
        "attention": trainer.model.config._attn_implementation,
        "checkpointing": trainer.model.is_gradient_checkpointing,
        "padding": trainer.data_collator.pad_token_id,
        "dtype": str(trainer.model.get_input_embeddings().weight.dtype),
        "steps": trainer.state.global_step,
        "rates": [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e],
        "divergences": trainer.replay_log.divergences,
    }


def run(path: Path) -> dict[str, Any]:
    trainers: list[Any] = []
    make_trainer = unsloth._trainer

    def remembering(*arguments: Any, **named: Any) -> Any:
        trainers.append(make_trainer(*arguments, **named))
        return trainers[-1]

    unsloth._trainer = remembering
    reports: list[Progress] = []
    told_at: list[float] = []

    def report(progress: Progress) -> None:
        reports.append(progress)
        told_at.append(time.monotonic())

    try:
        adapter = unsloth.train(read_job(path), report)
    except TrainerError as error:
        return {"error": error.code, "cause": error.cause}
    except Stopped as error:
        return {"error": "stopped", "cause": str(error)}
    except Exception as error:
        if not is_disk_full(error):
            raise
        return {"error": "disk_full", "cause": f"{type(error)}: {error}"}
    finally:
        unsloth._trainer = make_trainer
        (path.parent / "ballast").unlink(missing_ok=True)
    return {
        "final_loss": adapter.final_loss,
        "adapter": dataclasses.asdict(adapter),
        "reports": [report.model_dump(mode="json") for report in reports],
        "told_at": told_at,
        **facts_of(trainers[0]),
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        job = Path(name)
        result = run(job)
        job.with_suffix(".result.json").write_text(json.dumps(result, default=str))
