"""Trains with the real Unsloth outside of pytest: python -m tests.integration.train_tiny JOB.json…

Unsloth patches torch's users for the whole process. For each job, <job>.result.json tells what
reached the trainer and how it went.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ollama_trainer.backends import Recipe, TrainJob, unsloth
from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import TrainerError
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.prompts import open_prompt_format
from ollama_trainer.records import Example, Progress


def read_job(path: Path) -> TrainJob:
    spec = json.loads(path.read_bytes())
    base = resolve_base(spec["base"])
    recipe = spec["recipe"]
    with open_prompt_format(read_gguf(base.gguf)) as form:
        examples = tuple(
            form.tokenize(Example(prompt=question, completion=answer, line=line))
            for line, (question, answer) in enumerate(spec["facts"], start=1)
        )
    return TrainJob(
        base=base,
        examples=examples,
        recipe=Recipe(**recipe),
        out=path.with_suffix(".adapter"),
        cache=path.parent / "cache",
    )


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
    }


def run(path: Path) -> dict[str, Any]:
    trainers: list[Any] = []
    make_trainer = unsloth._trainer

    def remembering(*arguments: Any, **named: Any) -> Any:
        trainers.append(make_trainer(*arguments, **named))
        return trainers[-1]

    unsloth._trainer = remembering
    reports: list[Progress] = []
    try:
        adapter = unsloth.train(read_job(path), reports.append)
    except TrainerError as error:
        return {"error": error.code, "cause": error.cause}
    finally:
        unsloth._trainer = make_trainer
    return {
        "final_loss": adapter.final_loss,
        "reports": [report.model_dump(mode="json") for report in reports],
        **facts_of(trainers[0]),
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        job = Path(name)
        result = run(job)
        job.with_suffix(".result.json").write_text(json.dumps(result, default=str))
