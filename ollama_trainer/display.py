"""A run as it goes on, on a terminal or in a log."""

from __future__ import annotations

import unicodedata
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from ollama_trainer.client import RunStatus, TrainerClient
from ollama_trainer.records import DatasetReport, Fidelity, Progress, RunState
from ollama_trainer.reports import BasesReport, DoctorReport, LocalBase

_LINES_SHOWN = 8


async def follow(trainer: TrainerClient, run_id: str, out: Console) -> RunStatus:
    """Shows a run until it has ended; returns its last status."""
    display = display_for(out)
    try:
        async for status in trainer.follow(run_id):
            display.show(status)
    finally:
        display.close()
    return status


def display_for(out: Console) -> Display:
    """A live bar for terminals, lines for everything else."""
    return LiveBar(out) if out.is_terminal else PlainLines(out)


def in_words(fidelity: Fidelity) -> list[str]:
    """What was measured on a finished model, as sentences for a person."""
    figures = fidelity.figures
    parts = []
    if fidelity.n_rows:
        parts.append(f"{_count(fidelity.n_rows, 'row')} kept from training")
    if fidelity.n_rephrased:
        parts.append(f"{_count(fidelity.n_rephrased, 'trained row')} asked in other words")
    judged = " and ".join(parts)
    learned = (
        "there was next to nothing to learn"
        if figures.learning_kept is None
        else f"the finished model has {figures.learning_kept:.1%} of what was learned"
    )
    unrelated = figures.unrelated
    sentences = [
        f"On {judged}, {learned}; it says the same as the trained model at "
        f"{figures.agreement:.1%} of the answers' tokens.",
        f"On unrelated text its loss is {unrelated.served:.3f}; "
        f"its base's is {unrelated.base:.3f}, the trained model's {unrelated.trained:.3f}.",
    ]
    sentences += [
        f"With the weights as {earlier.quantization}, {' and '.join(earlier.missed)}: "
        "a larger type was taken."
        for earlier in fidelity.earlier
    ]
    if figures.missed:
        sentences.append(f"Mind: {' and '.join(figures.missed)}.")
    return sentences


def in_a_line(status: RunStatus) -> str:
    """A run in a list: id, when, state, job, and what came of it or what it waits for."""
    outcome = status.output_model_ref or status.error
    if outcome is None and status.waiting is not None:
        outcome = _headline(status)
    parts = (status.run_id, status.created_at[:19], f"{status.status.value:<9}", status.job_id)
    return "  ".join((*parts, outcome) if outcome else parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_report(report: DatasetReport, out: Console) -> None:
    """What a run would make of a data set, for a person; what is learned is bold."""
    held_out = f", {report.held_out} of them to judge the result" if report.held_out else ""
    out.print(f"format    {report.format}")
    out.print(
        f"rows      {report.rows_used} of {report.rows_read} are used"
        f" ({_count(report.examples, 'answer')}{held_out})"
    )
    for reason, rows in report.dropped.items():
        more = ", …" if rows.count > _LINES_SHOWN else ""
        lines = ", ".join(map(str, rows.lines[:_LINES_SHOWN]))
        out.print(f"dropped   {rows.count}: {reason} (line {lines}{more})")
    out.print(f"method    {report.method}: {report.method_reason}")
    if report.secrets:
        found = ", ".join(f"{kind}: {n}" for kind, n in report.secrets.items())
        out.print(f"secrets   {found}")
    if report.tokens is not None:
        about = "about " if report.tokens_estimated else ""
        longest = f", the longest of {report.longest_tokens:,}" if report.longest_tokens else ""
        out.print(f"tokens    {about}{report.tokens:,}{longest}")
    out.print(f"steps     {report.steps} at most")
    for warning in report.warnings:
        out.print(f"mind      {warning}")
    for sample in report.samples:
        out.print(f"\nline {sample.line}, as the model sees it; what is learned between ⟦ ⟧:")
        trained = f"⟦{harmless(sample.trained)}⟧"
        out.print(Text.assemble(harmless(sample.prompt), (trained, "bold green")))
        if sample.rejected is not None:
            out.print(Text.assemble("rather than ", (f"⟦{harmless(sample.rejected)}⟧", "red")))


def show_bases(report: BasesReport, out: Console) -> None:
    """The models in Ollama, those first that can be trained."""
    free = report.memory.usable_bytes
    where = report.memory.gpu or "this machine"
    out.print(f"Ollama at {report.ollama} has {_count(len(report.models), 'model')};")
    out.print(f"{where} has {gigabytes(free)} of memory free.")
    models = sorted(report.models, key=lambda model: not model.trainable)
    width = max((len(model.name) for model in models), default=0)
    for model in models:
        out.print(Text.assemble(f"\n{model.name:<{width}}  ", *_judgement(model, free)))
        facts = [harmless(model.architecture), model.quantization, gigabytes(model.n_bytes)]
        if model.n_parameters is not None:
            facts.insert(1, f"{model.n_parameters / 1e6:,.0f} M parameters")
        out.print(f"{'':<{width}}  {', '.join(fact for fact in facts if fact)}")
        for line in (model.reason, model.remedy, *model.notes):
            if line:
                out.print(f"{'':<{width}}  {harmless(line)}")
    if not models:
        out.print("Pull one, for instance: ollama pull qwen3:0.6b")


def _judgement(model: LocalBase, free: int) -> list[tuple[str, str]]:
    if not model.trainable:
        return [("cannot be trained", "yellow")]
    parts = [("can be trained", "bold green")]
    if model.needs_bytes is not None:
        enough = model.needs_bytes <= free
        needs = f", needs about {gigabytes(model.needs_bytes)} of memory"
        parts.append((needs if enough else f"{needs}, more than is free", "" if enough else "red"))
    if model.tuned:
        parts.append((", made by this program", ""))
    return parts


def show_doctor(report: DoctorReport, out: Console) -> None:
    """A line for each thing that was looked at, and one for what helps."""
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[check.state]
        name = f"{check.name:<{width}}"
        out.print(Text.assemble((f"{check.state:<4}", style), f"  {name}  {harmless(check.found)}"))
        if check.remedy:
            out.print(f"{'':<{width + 8}}{harmless(check.remedy)}")


def gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.0f} MB"


def harmless(text: str) -> str:
    """Without characters that a terminal would obey."""
    return "".join(
        repr(letter)[1:-1]
        if unicodedata.category(letter) == "Cc" and letter not in "\n\t"
        else letter
        for letter in text
    )


class Display(Protocol):
    """Shows a run while it goes on."""

    def show(self, status: RunStatus) -> None: ...

    def close(self) -> None: ...


class LiveBar:
    """One bar that is redrawn, for terminals."""

    def __init__(self, out: Console) -> None:
        columns = (
            TextColumn("{task.description:<8}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[details]}"),
        )
        self._bar = Bar(*columns, console=out)
        self._task = self._bar.add_task("waiting", total=1.0, details="")
        self._bar.start()

    def show(self, status: RunStatus) -> None:
        self._bar.update(
            self._task,
            description=_headline(status),
            completed=status.progress.fraction if status.progress else 0.0,
            details=_details(status.progress),
        )

    def close(self) -> None:
        self._bar.stop()


class PlainLines:
    """A line for each stage and each tenth of it, for pipes and logs."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._shown: tuple[str, int] | None = None

    def show(self, status: RunStatus) -> None:
        fraction = status.progress.fraction if status.progress else 0.0
        key = (_headline(status), int(fraction * 10))
        if key != self._shown and not status.status.terminal:
            self._shown = key
            words = (
                key[0],
                f"{fraction:.0%}" if status.progress else "",
                _details(status.progress),
            )
            self._out.print("  ".join(word for word in words if word))

    def close(self) -> None:
        """Nothing is left open."""


def _headline(status: RunStatus) -> str:
    if status.waiting is not None:
        return f"waiting: {status.waiting.get('error', '')}"
    if status.progress is not None:
        return status.progress.stage.value
    if status.queue_position is not None and status.queue_position > 1:
        return f"waiting, number {status.queue_position} in the queue"
    return "starting" if status.status is RunState.RUNNING else "waiting"


def _details(progress: Progress | None) -> str:
    """Step, loss, speed and time left, as far as they are known."""
    if progress is None:
        return ""
    parts = []
    if progress.step is not None:
        parts.append(f"step {progress.step}" + (f"/{progress.steps}" if progress.steps else ""))
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.left_s is not None:
        minutes, seconds = divmod(round(progress.left_s), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)
