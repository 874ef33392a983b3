"""ollama-trainer models, rm and gc: what finished models cost in Ollama, and removing them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from ollama_trainer.display import gigabytes, harmless
from ollama_trainer.executors.housekeeping import Question, list_models, remove_models
from ollama_trainer.reports import ModelsReport, ModelVersion, RemovalReport
from ollama_trainer.settings import Settings, add_flags

COMMANDS = ("models", "rm", "gc")
_SETTINGS = ("ollama_host", "data_dir")


def add_parsers(commands: Any) -> None:
    """Adds the commands to a parser's."""
    models = commands.add_parser(
        "models", help="List the finished models in Ollama, and what each costs on disk."
    )
    models.add_argument("--job", help="Only those of this job.")
    models.add_argument("--json", action="store_true", help="As JSON.")
    add_flags(models, _SETTINGS)
    rm = commands.add_parser(
        "rm",
        help="Remove finished models from Ollama.",
        description="Remove finished models from Ollama. Their runs stay, and so do their GGUFs, "
        "to be published again. Nothing that this program did not make is touched.",
    )
    rm.add_argument("names", nargs="+", metavar="NAME", help="As `models` shows it.")
    add_flags(rm, _SETTINGS)
    gc = commands.add_parser(
        "gc",
        help="Remove all but the newest finished models of each job from Ollama.",
        description="Remove all but the newest finished models of each job from Ollama, but for "
        "those that have a second name or are in memory.",
    )
    gc.add_argument(
        "--keep", type=_count, default=3, metavar="N", help="So many of each job [default 3]."
    )
    gc.add_argument("--job", help="Only those of this job.")
    gc.add_argument(
        "--dry-run", action="store_true", help="Remove nothing, only say what would go."
    )
    gc.add_argument("--json", action="store_true", help="As JSON.")
    add_flags(gc, _SETTINGS)


async def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Does what one of the commands asks for; returns the exit code."""
    question = Question(
        what=parsed.command,
        ollama_host=settings.ollama_host,
        data_dir=settings.data_dir,
        job=getattr(parsed, "job", None),
        names=tuple(getattr(parsed, "names", ())),
        keep=getattr(parsed, "keep", 0),
        dry_run=getattr(parsed, "dry_run", False),
    )
    as_json = getattr(parsed, "json", False)
    out = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
    if question.what == "models":
        models = await list_models(question)
        if as_json:
            _as_json(models)
        else:
            show_models(models, out)
        return 0
    removal = await remove_models(question)
    if as_json:
        _as_json(removal)
    else:
        show_removal(removal, out)
    return 1 if removal.failed else 0


def show_models(report: ModelsReport, out: Console) -> None:
    """Each version: its names, where it is from, and what it costs."""
    for model in report.models:
        marks = [f"= {model.alias}"] if model.alias else []
        marks += [f"also {copy}" for copy in model.copies]
        marks += ["in memory"] if model.loaded else []
        out.print(Text.assemble((harmless(model.name), "bold"), "  ", ", ".join(marks)))
        made = model.made_at.astimezone().strftime("%Y-%m-%d %H:%M")
        out.print(f"  job {model.job}, run {model.run}, of {harmless(model.base)}, made {made}")
        out.print(f"  {_cost(model)}")
    if not report.models:
        out.print(f"Ollama at {report.ollama} has none of this program's models.")


def _cost(model: ModelVersion) -> str:
    size = gigabytes(model.n_bytes)
    if not model.frees_bytes:
        cost = f"{size} on disk, which another model has, too: removing it frees nothing"
    elif model.frees_bytes == model.n_bytes:
        cost = f"{size} on disk, which removing it frees"
    else:
        cost = f"{size} on disk; removing it frees {gigabytes(model.frees_bytes)}"
    if model.upload_bytes:
        cost += f"; Ollama's restart frees {gigabytes(model.upload_bytes)} of its upload"
    return cost


def show_removal(report: RemovalReport, out: Console) -> None:
    """What went or would go, what stays and why, and what that frees."""
    verb = "would remove" if report.dry_run else "removed"
    width = max(len(verb), len("failed"))
    for name in report.removed:
        out.print(f"{verb:<{width}}  {harmless(name)}")
    for word, models in (("kept", report.kept), ("failed", report.failed)):
        for model in models:
            out.print(f"{word:<{width}}  {harmless(model.name)}: {harmless(model.what)}")
    if not report.removed:
        out.print("There is nothing to remove." if not report.failed else "Nothing was removed.")
        return
    frees = "This would free" if report.dry_run else "Ollama has freed"
    out.print(f"{frees} {gigabytes(report.freed_bytes)}.")
    if report.at_restart_bytes:
        out.print(
            f"{gigabytes(report.at_restart_bytes)} more, which nothing uses any more, it frees "
            "when it is restarted, an hour or more after they came."
        )


def _as_json(report: BaseModel) -> None:
    # Past the console, which would break long lines.
    sys.stdout.buffer.write(report.model_dump_json(indent=2).encode() + b"\n")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number
