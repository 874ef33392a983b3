"""The command line: serve, train, runs, cancel, dataset inspect, export, bases, doctor, models, rm,
gc."""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import math
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from rich.console import Console

from ollama_trainer import __version__, client, export_command, housekeeping_command, server
from ollama_trainer.client import RunStatus, TrainerClient
from ollama_trainer.display import (
    follow,
    in_a_line,
    in_words,
    show_bases,
    show_doctor,
    show_report,
)
from ollama_trainer.errors import InvalidRequest, ServerError, TrainerError
from ollama_trainer.executors.inspection import Question, inspect_dataset
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.executors.surveying import survey_bases, survey_machine
from ollama_trainer.queue.snapshot import check_source
from ollama_trainer.records import DatasetOptions, RunState, TrainingOptions
from ollama_trainer.settings import (
    Settings,
    add_flags,
    flag_name,
    given_flags,
    load_settings,
    unknown_variables,
)
from ollama_trainer.workspace import DataDirectory

_Report = TypeVar("_Report", bound=BaseModel)

_INTERRUPTED = 130
#: Settings that a run may have of its own; the others belong to the server.
_PER_RUN = {
    "base", "publisher", "quantization", *TrainingOptions.model_fields, *DatasetOptions.model_fields
}  # fmt: skip
#: Settings that say which server is meant.
_ADDRESS = {"host", "port"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 1 for an error that was told, 2 for wrong usage."""
    parsed = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show it shows as an escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    try:
        if parsed.command == "export":
            return export_command.run(parsed)
        flags = given_flags(parsed)
        settings = load_settings(flags, parsed.config)
        if parsed.command == "serve":
            return _serve(settings)
        return asyncio.run(_do(parsed, settings, flags))
    except TrainerError as error:
        errors.print(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted")
        return _INTERRUPTED


async def _do(parsed: argparse.Namespace, settings: Settings, flags: dict[str, object]) -> int:
    """Does what one command asks for; returns the exit code."""
    if parsed.command in housekeeping_command.COMMANDS:
        return await housekeeping_command.run(parsed, settings)
    match parsed.command:
        case "runs":
            return await _runs(settings, parsed.job, parsed.state)
        case "cancel":
            return await _cancel(settings, parsed.run)
        case "dataset":
            return await _inspect(parsed.file.expanduser().absolute(), settings, parsed.json)
        case "bases":
            return await _bases(settings, parsed.json)
        case "doctor":
            return await _doctor(settings, parsed.json)
    return await _train(parsed.file.expanduser().absolute(), parsed.name, settings, flags)


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
    runs = commands.add_parser("runs", help="List the runs of the server, the newest first.")
    runs.add_argument("--job", help="Only those of this job.")
    runs.add_argument(
        "--state", type=RunState, choices=list(RunState), metavar="STATE",
        help=f"Only those in this state: {', '.join(RunState)}.",
    )  # fmt: skip
    add_flags(runs, sorted(_ADDRESS))
    cancel = commands.add_parser("cancel", help="End a run before its end.")
    cancel.add_argument("run", metavar="RUN", help="Its id, as `runs` shows it.")
    add_flags(cancel, sorted(_ADDRESS))
    dataset = commands.add_parser("dataset", help="Look at a data set without training on it.")
    verbs = dataset.add_subparsers(dest="verb", required=True, metavar="VERB")
    inspect = verbs.add_parser("inspect", help="Say what a run would learn from it, and what not.")
    inspect.add_argument("file", type=Path, metavar="FILE", help="Data set, a JSONL file.")
    inspect.add_argument("--json", action="store_true", help="As JSON.")
    add_flags(
        inspect,
        ["base", "ollama_host", *TrainingOptions.model_fields, *DatasetOptions.model_fields],
    )
    export_command.add_parser(commands)
    housekeeping_command.add_parsers(commands)
    _add_looks(commands)
    return parser


def _add_looks(commands: Any) -> None:
    """The commands that look at this machine."""
    bases = commands.add_parser(
        "bases", help="List the models in Ollama, and say which can be trained."
    )
    bases.add_argument("--json", action="store_true", help="As JSON.")
    add_flags(bases, ["ollama_host", "name_prefix", *TrainingOptions.model_fields])
    doctor = commands.add_parser(
        "doctor", help="Look whether this machine can train, and say what helps where it cannot."
    )
    doctor.add_argument("--json", action="store_true", help="As JSON.")
    add_flags(doctor)


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
        status = await follow(trainer, run_id, out)
    return _conclude(status, out)


async def _runs(settings: Settings, job: str | None, state: RunState | None) -> int:
    out = Console(soft_wrap=True, markup=False, highlight=False)
    async with TrainerClient(client.server_url(settings)) as trainer:
        for status in await trainer.runs(job, state):
            out.print(in_a_line(status))
    return 0


async def _cancel(settings: Settings, run_id: str) -> int:
    out = Console(soft_wrap=True, markup=False, highlight=False)
    async with TrainerClient(client.server_url(settings)) as trainer:
        await trainer.cancel(run_id)
        status = await trainer.wait(run_id)
    out.print(f"{run_id}: {status.error or status.output_model_ref}")
    return 0


async def _inspect(path: Path, settings: Settings, as_json: bool) -> int:
    question = Question(
        path=check_source(str(path)),
        base=settings.base,
        ollama_host=settings.ollama_host,
        name_prefix=settings.name_prefix,
        training=settings.training,
        dataset=settings.dataset,
        cache=DataDirectory(settings.data_dir).cache,
    )
    report = await inspect_dataset(question, math.inf)
    _show(report, as_json, show_report)
    return 0


async def _bases(settings: Settings, as_json: bool) -> int:
    _show(await survey_bases(settings), as_json, show_bases)
    return 0


async def _doctor(settings: Settings, as_json: bool) -> int:
    report = await survey_machine(settings)
    _show(report, as_json, show_doctor)
    return 1 if report.failed else 0


def _show(report: _Report, as_json: bool, show: Callable[[_Report, Console], None]) -> None:
    if as_json:
        # Past the console, which would draw its pictures for `:smile:`.
        sys.stdout.buffer.write(report.model_dump_json(indent=2).encode() + b"\n")
    else:
        show(report, Console(soft_wrap=True, markup=False, highlight=False, emoji=False))


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
    if status.fidelity is not None:
        for sentence in in_words(status.fidelity):
            out.print(sentence)
    if status.next_command:
        out.print(f"type next:\n{status.next_command}")
    return 0
