"""The demo: a real small model learns from feedback and is asked what it never saw.

Started by ./scripts/demo, which sets up the environment. Exit code 0 when the model learned.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ollama_trainer.bases import resolve_base
from ollama_trainer.client import RunStatus, running_server
from ollama_trainer.display import follow, in_words
from ollama_trainer.errors import PublishError, TrainerError
from ollama_trainer.fidelity import answers
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.prompts import open_prompt_format, open_tokenizer
from ollama_trainer.publishers.ollama import ollama_version
from ollama_trainer.records import Example, RunState, TokenizedExample
from ollama_trainer.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
FEEDBACK = ROOT / "examples" / "feedback.jsonl"
HELD_OUT = ROOT / "examples" / "held_out.jsonl"
#: Right answers take 14 tokens at most.
_MAX_TOKENS = 16
#: What the demo promises.
_BEFORE_AT_MOST, _AFTER_AT_LEAST, _KEPT_AT_LEAST = 0.1, 0.85, 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question that is never trained on."""

    text: str
    #: Words that a right answer holds.
    expected: str
    prompt_ids: tuple[int, ...]
    #: Question with its right answer, for the loss.
    example: TokenizedExample


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument("--publisher", choices=("ollama", "folder"), help="Default: what answers.")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json, highlight=False, soft_wrap=True)
    try:
        figures = demo(arguments.publisher, console)
    except TrainerError as error:
        console.print(f"[red]FAILED[/red]: {error}")
        if arguments.json:
            print(json.dumps({"status": "failed", "error": str(error)}))
        return 1
    problems = shortfalls(figures)
    if arguments.json:
        print(json.dumps(figures))
    if problems:
        console.print(f"[red]FAILED[/red]: {'; '.join(problems)}")
        return 1
    console.print(f"[green]PASSED[/green] in {figures['seconds']['total']:.0f} s")
    return 0


def demo(publisher: str | None, console: Console) -> dict[str, Any]:
    """Runs the demo; returns its figures."""
    started = time.monotonic()
    settings = demo_settings(publisher, console)
    shutil.rmtree(settings.data_dir, ignore_errors=True)
    base = resolve_base(settings.base)
    questions = read_questions(base.gguf)
    console.print(f"Asking {base.name} {len(questions)} questions about a company it never met …")
    clock = time.monotonic()
    before = ask(base.gguf, questions)
    seconds = {"ask_before": time.monotonic() - clock}
    clock = time.monotonic()
    final = asyncio.run(train(settings, console))
    seconds["run"] = time.monotonic() - clock
    result = final.result or {}
    fidelity = final.fidelity
    if fidelity is None:
        raise TrainerError("the run tells nothing of its fidelity")
    gguf = Path(result["gguf"])
    console.print("Asking the tuned model the same questions, none of which it was trained on …")
    clock = time.monotonic()
    after = ask(gguf, questions)
    seconds["ask_after"] = time.monotonic() - clock
    show(console, questions, before, after)
    figures = {
        "status": final.status.value,
        "output_model_ref": final.output_model_ref,
        "gguf": str(gguf),
        "modelfile": result["modelfile"],
        "accuracy_before": share_right(questions, before),
        "accuracy_after": share_right(questions, after),
        "learning_kept": fidelity.figures.learning_kept,
        "fidelity": fidelity.model_dump(mode="json"),
        "base_bytes": base.gguf.stat().st_size,
        "gguf_bytes": gguf.stat().st_size,
        "seconds": {**result["seconds"], **seconds, "total": time.monotonic() - started},
    }
    summarize(console, figures, final)
    return figures


def demo_settings(publisher: str | None, console: Console) -> Settings:
    """The user's settings, with a data directory of the demo's own."""
    flags: dict[str, object] = {"data_dir": ROOT / ".demo", "base": "smollm2"}
    settings = load_settings(flags)
    if publisher is None:
        publisher = "ollama"
        try:
            ollama_version(settings.ollama_host)
        except PublishError:
            publisher = "folder"
            console.print(
                f"No Ollama answers at {settings.ollama_host}: the model will lie in a folder, and"
                " the last line says how to publish it."
            )
    return load_settings({**flags, "publisher": publisher})


def read_questions(base: Path) -> list[Question]:
    rows = [json.loads(line) for line in HELD_OUT.read_text("utf-8").splitlines()]
    with open_prompt_format(read_gguf(base)) as form:
        return [
            Question(
                text=row["question"],
                expected=row["expected"],
                prompt_ids=tuple(form.prompt_ids(form.prompt(row["question"]))),
                example=form.tokenize(
                    Example.of(prompt=row["question"], completion=row["answer"], line=number)
                ),
            )
            for number, row in enumerate(rows, start=1)
        ]


def ask(gguf: Path, questions: list[Question]) -> list[str]:
    given = answers(gguf, [question.prompt_ids for question in questions], _MAX_TOKENS)
    with open_tokenizer(read_gguf(gguf)) as tokenizer:
        return [tokenizer.text(ids) for ids in given]


async def train(settings: Settings, console: Console) -> RunStatus:
    """Starts a server, posts the feedback and follows the run to its end."""
    async with running_server(settings) as trainer:
        console.print(f"POST {trainer.url}/train")
        run_id = await trainer.submit("demo", str(FEEDBACK))
        status = await follow(trainer, run_id, console)
    if status.status is RunState.FAILED:
        raise TrainerError(f"the run failed: {status.error}")
    return status


def is_right(question: Question, answer: str) -> bool:
    return question.expected.lower() in answer.lower()


def share_right(questions: list[Question], given: list[str]) -> float:
    right = sum(map(is_right, questions, given))
    return right / len(questions)


def show(console: Console, questions: list[Question], before: list[str], after: list[str]) -> None:
    table = Table(title="Questions that were never trained on")
    for title in ("question", "before", "after"):
        table.add_column(title, overflow="fold")
    for question, old, new in zip(questions, before, after, strict=True):
        cells = [
            f"[green]{text}[/green]" if is_right(question, text) else f"[red]{text}[/red]"
            for text in (_plain(old), _plain(new))
        ]
        table.add_row(question.text, *cells)
    console.print(table)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("[", "(").replace("]", ")")


def summarize(console: Console, figures: dict[str, Any], final: RunStatus) -> None:
    before, after = figures["accuracy_before"], figures["accuracy_after"]
    console.print(f"Answered rightly: {before:.0%} before, {after:.0%} after.")
    if final.fidelity is not None:
        for sentence in in_words(final.fidelity):
            console.print(sentence)
    console.print(
        f"The finished file has {figures['gguf_bytes'] / 1e6:.0f} MB, its base"
        f" {figures['base_bytes'] / 1e6:.0f} MB."
    )
    console.print(f"Model: {figures['output_model_ref']}\nType next:\n  {final.next_command}")


def shortfalls(figures: dict[str, Any]) -> list[str]:
    """What the demo promised and did not reach."""
    checks = {
        f"{figures['accuracy_before']:.2f} right before training": figures["accuracy_before"]
        <= _BEFORE_AT_MOST,
        f"only {figures['accuracy_after']:.2f} right after training": figures["accuracy_after"]
        >= _AFTER_AT_LEAST,
        f"only {figures['learning_kept']:.3f} of the learning kept": figures["learning_kept"]
        >= _KEPT_AT_LEAST,
    }
    return [problem for problem, reached in checks.items() if not reached]


if __name__ == "__main__":
    sys.exit(main())
