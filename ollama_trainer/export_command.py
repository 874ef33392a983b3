"""ollama-trainer export BASE.gguf ADAPTER_DIR OUT.gguf: the merge alone, without a run."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.executors.exporting import Exported, ExportQuestion, export_adapter

_QUANTIZATIONS = ("same", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
_MAX_SEED = (1 << 32) - 1


def add_parser(commands: Any) -> None:
    """Adds the command to a parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="Merge a LoRA adapter into a GGUF file.",
        description="Merge a LoRA adapter into the GGUF file that it was trained on.",
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="GGUF file, or one part of it.")
    parser.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="Directory of the adapter, as PEFT saves it."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="GGUF file to write.")
    parser.add_argument(
        "--quantization",
        choices=_QUANTIZATIONS,
        default="same",
        help="What the tensors become that the adapter changes [default same: the base's types].",
    )
    parser.add_argument(
        "--rounding",
        choices=("compensated", "stochastic"),
        help="How weights come onto the base's grid [default compensated where statistics are"
        " given, else stochastic].",
    )
    parser.add_argument(
        "--statistics",
        type=Path,
        metavar="DIR",
        help="Statistics of the layers' inputs, which a run leaves in its directory.",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=1,
        metavar="N",
        help="Of the rounding: the same seed gives the same bytes [default 1].",
    )
    parser.add_argument("--force", action="store_true", help="Replace OUT if it exists.")
    parser.add_argument("--json", action="store_true", help="Tell the result as JSON.")


def run(arguments: argparse.Namespace) -> int:
    """Does what was asked; returns the exit code.

    Raises:
        TrainerError: as of `export_adapter`, or what was asked cannot be done.
    """
    question = _question(arguments)
    with _bar(Console(stderr=True)) as progress:
        exported = asyncio.run(export_adapter(question, progress))
    if arguments.json:
        # Past the console, which would break long lines.
        sys.stdout.buffer.write(exported.model_dump_json(indent=2).encode() + b"\n")
    else:
        _show(exported, Console(soft_wrap=True, markup=False, highlight=False, emoji=False))
    return 0


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number <= _MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {_MAX_SEED}")
    return number


def _question(arguments: argparse.Namespace) -> ExportQuestion:
    statistics: Path | None = arguments.statistics
    if arguments.rounding == "compensated" and statistics is None:
        raise InvalidRequest(
            "compensated rounding needs statistics of the layers' inputs",
            "Name them with --statistics, or use --rounding stochastic.",
        )
    if arguments.rounding == "stochastic" and statistics is not None:
        raise InvalidRequest(
            "stochastic rounding has no use for statistics", "Leave out one of the two."
        )
    out = _absolute(arguments.out)
    _check_out(out, arguments.force)
    return ExportQuestion(
        base=_absolute(arguments.base),
        adapter=_absolute(arguments.adapter),
        out=out,
        quantization=arguments.quantization,
        statistics=None if statistics is None else _absolute(statistics),
        seed=arguments.seed,
    )


def _absolute(path: Path) -> Path:
    absolute = path.expanduser().absolute()
    try:
        str(absolute).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the name {str(absolute)!r} is not UTF-8", "Rename it.") from error
    return absolute


def _check_out(out: Path, force: bool) -> None:
    if not out.parent.is_dir():
        raise InvalidRequest(f"there is no directory {out.parent}", "Create it first.")
    if out.is_dir():
        raise InvalidRequest(f"{out} is a directory", "Name the file to write.")
    if out.exists() and not force:
        raise InvalidRequest(f"{out} exists", "Choose another name, or replace it with --force.")


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[float], None]]:
    """Shows how far the work is, on a terminal."""
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("merging", total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


def _show(exported: Exported, out: Console) -> None:
    out.print(f"wrote     {exported.path}")
    out.print(f"size      {exported.n_bytes:,} bytes in {exported.seconds:.1f} s")
    out.print(f"digest    sha256:{exported.digest}")
    out.print(
        f"tensors   {exported.n_touched} changed, {exported.n_copied} as they are in the base"
    )
    out.print(f"rounding  {_rounding(exported)}, seed {exported.seed}")


def _rounding(exported: Exported) -> str:
    left = exported.n_touched - exported.n_compensated
    if exported.rounding == "stochastic":
        return "stochastic"
    return f"compensated, but for {left} tensors without statistics" if left else "compensated"
