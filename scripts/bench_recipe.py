"""How the recipe that a run settles on does on data sets about different things.

Each is trained with the defaults, by a real run; the finished file answers questions that were
never trained on. Variables as OLLAMA_TRAINER_STEPS show how another recipe would do.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from typing import Any

import bench_fidelity
from recipe_data import DATA_SETS, DataSet, write_feedback
from rich.console import Console

from ollama_trainer.bases import resolve_base
from ollama_trainer.fidelity import answers
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.prompts import open_prompt_format, open_tokenizer
from ollama_trainer.records import Example

Figures = dict[str, Any]


def bench_recipe(console: Console, only: Sequence[str] = ()) -> Figures:
    """Every data set, or some, with the settings of the environment."""
    shutil.rmtree(bench_fidelity.WORK, ignore_errors=True)
    bench_fidelity.WORK.mkdir()
    rows = [_measure(DATA_SETS[name](), console) for name in only or DATA_SETS]
    return {"benchmark": "recipe", "rows": rows}


def _measure(data: DataSet, console: Console) -> Figures:
    base = resolve_base("smollm2").gguf
    feedback = bench_fidelity.WORK / f"{data.name}.jsonl"
    write_feedback(data, feedback)
    run = asyncio.run(bench_fidelity.train(feedback, {"base": "smollm2"}, console))
    if run.gguf is None or run.fidelity is None:
        raise ValueError("a completed run has a file and its fidelity")
    with open_prompt_format(read_gguf(base)) as form:
        prompts = [form.prompt_ids(form.prompt(asked.prompt)) for asked in data.held_out]
        ideal = [
            len(form.tokenize(Example.of(prompt="", completion=asked.completion, line=1)).ids)
            for asked in data.held_out
        ]
    with open_tokenizer(read_gguf(run.gguf)) as tokenizer:
        given = [tokenizer.text(ids) for ids in answers(run.gguf, prompts, max(ideal))]
    right = sum(asked.right(text) for asked, text in zip(data.held_out, given, strict=True))
    figures = run.fidelity.figures
    row = {
        "data": data.name,
        "rows": len(data.rows),
        "steps": run.metrics["steps"],
        "right": right,
        "asked": len(data.held_out),
        "quantization": figures.quantization,
        "learning_kept": figures.learning_kept,
        "unrelated_over_base": figures.unrelated.served - figures.unrelated.base,
        "seconds": round(sum(run.seconds.values())),
    }
    console.print(row)
    return row
