"""Benchmarks, one function each: figures of one run, and the bounds that they are to reach.

Started by ./scripts/bench NAME [--json]. Bounds are on ratios and counts from that same run, so
that they hold on any machine; times are told beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import demo
from rich.console import Console

from ollama_trainer.bases import resolve_base

Figures = dict[str, Any]


def reach(name: str, value: float, *, at_least: float | None = None, at_most: float | None = None
) -> Figures:  # fmt: skip
    """An entry of the list `reach`: a figure beside its bound."""
    if at_least is not None:
        return {"name": name, "value": value, "bound": f">= {at_least}", "ok": value >= at_least}
    if at_most is not None:
        return {"name": name, "value": value, "bound": f"<= {at_most}", "ok": value <= at_most}
    raise ValueError("a bound is needed")


def bench_demo(console: Console) -> Figures:
    """The demo, with `cp` of the base as the yardstick of the export."""
    figures = demo.demo(None, console)
    base = resolve_base("smollm2").gguf
    copy_s = min(copy_seconds(base, Path(figures["gguf"]).with_name("copy.gguf")) for _ in range(3))
    seconds = figures["seconds"]
    return {
        "benchmark": "demo",
        "cores": os.cpu_count(),
        **{key: figures[key] for key in ("accuracy_before", "accuracy_after", "learning_kept")},
        "seconds": seconds,
        "copy_s": copy_s,
        "export_over_copy": seconds["export"] / copy_s,
        "reach": [
            reach("accuracy_before", figures["accuracy_before"], at_most=0.1),
            reach("accuracy_after", figures["accuracy_after"], at_least=0.85),
            reach("learning_kept", figures["learning_kept"], at_least=0.97),
            reach("size_over_base", figures["gguf_bytes"] / figures["base_bytes"], at_most=1.001),
            reach("total_s", seconds["total"], at_most=150.0),
        ],
    }


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds that a copy of a file takes until it is on the disk."""
    started = time.monotonic()
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 24)
            writer.flush()
            os.fsync(writer.fileno())
        return time.monotonic() - started
    finally:
        target.unlink(missing_ok=True)


BENCHMARKS: dict[str, Callable[[Console], Figures]] = {"demo": bench_demo}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="Print one JSON object and no table.")
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=arguments.json)
    figures = BENCHMARKS[arguments.name](console)
    print(json.dumps(figures, indent=None if arguments.json else 2))
    missed = [entry["name"] for entry in figures["reach"] if not entry["ok"]]
    Console(stderr=True, highlight=False).print(
        f"[red]MISSED[/red]: {', '.join(missed)}"
        if missed
        else "[green]REACHED[/green]: all bounds"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
