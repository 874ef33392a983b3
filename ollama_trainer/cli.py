"""The command line: `ollama-trainer serve` and `ollama-trainer train FILE`."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from ollama_trainer import __version__, client, server
from ollama_trainer.client import RunStatus, TrainerClient
from ollama_trainer.errors import InvalidRequest, ServerError, TrainerError
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.records import Progress, RunState, TrainingOptions
from ollama_trainer.settings import (
    Settings,
    add_flags,
    flag_name,
    given_flags,
    load_settings,
    unknown_variables,
)

_INTERRUPTED = 130
#: Settings that a run may have of its own; the others belong to the server.
_PER_RUN = {"base", "publisher", "quantization", *TrainingOptions.model_fields}
#: Settings that say which server is meant.
_ADDRESS = {"host", "port"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 1 for an error that was told, 2 for wrong usage."""
    parsed = _parser().parse_args(arguments)
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        flags = given_flags(parsed)
        settings = load_settings(flags, parsed.config)
        if parsed.command == "serve":
            return _serve(settings)
        dataset = parsed.file.expanduser().absolute()
        return asyncio.run(_train(dataset, parsed.name, settings, flags))
    except TrainerError as error:
        errors.print(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted")
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ollama-trainer",
        description="Turns feedback on a model that you run in Ollama into a better model.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="Serve POST /train and GET /status/{runId}.")
    add_flags(serve)
    train = commands.add_parser(
        "train",
        help="Train on one file and say how to use the result.",
        description="Train on one file: by the server that runs, or by one started for this run.",
    )
    train.add_argument("file", type=Path, metavar="FILE", help="Data set, a JSONL file.")
    train.add_argument(
        "--name", help="Name of the job, part of the finished model's name; default: the file's."
    )
    add_flags(train)
    return parser


def _serve(settings: Settings) -> int:
    exit_with_parent()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    log = logging.getLogger(__name__)
    for name in unknown_variables():
        log.warning("the environment variable %s is no setting", name)
    if settings.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning("listening on %s: whoever reaches it can start trainings", settings.host)

    def ready(url: str) -> None:
        log.info("listening on %s, data in %s", url, settings.data_dir)

    asyncio.run(server.serve(settings, ready=ready))
    return 0


async def _train(
    dataset: Path, name: str | None, settings: Settings, flags: dict[str, object]
) -> int:
    out = Console(soft_wrap=True, markup=False, highlight=False)
    async with _server(settings, flags, out) as trainer:
        options = {key: getattr(settings, key) for key in flags if key in _PER_RUN}
        run_id = await trainer.submit(name or dataset.stem or "job", str(dataset), **options)
        out.print(f"run {run_id}")
        display: _Display = _LiveBar(out) if out.is_terminal else _PlainLines(out)
        try:
            async for status in trainer.follow(run_id):
                display.show(status)
        finally:
            display.close()
    return _conclude(status, out)


@asynccontextmanager
async def _server(
    settings: Settings, flags: dict[str, object], out: Console
) -> AsyncIterator[TrainerClient]:
    """The server that runs, else one for this run alone."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(TrainerClient(client.server_url(settings)))
        try:
            await running.health()
        except (ServerError, InvalidRequest):
            out.print("no server is running: one is started for this run")
            yield await stack.enter_async_context(
                client.running_server(settings, command=client.SERVE_COMMAND)
            )
        else:
            for name in sorted(flags.keys() - _PER_RUN - _ADDRESS):
                out.print(
                    f"{flag_name(name)} has no effect: it belongs to the server at {running.url}"
                )
            yield running


def _conclude(status: RunStatus, out: Console) -> int:
    if status.status is RunState.FAILED:
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(
            f"error: {status.error}"
        )
        return 1
    out.print(f"completed: {status.output_model_ref}")
    if status.next_command:
        out.print(f"type next:\n{status.next_command}")
    return 0


class _Display(Protocol):
    """Shows a run while it goes on."""

    def show(self, status: RunStatus) -> None: ...

    def close(self) -> None: ...


class _LiveBar:
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


class _PlainLines:
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
