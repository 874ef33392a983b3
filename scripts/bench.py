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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench_dataset as dataset
import bench_fidelity as fidelity
import bench_recipe as recipe
import bench_server as server
import bench_wide as wide
import demo
from bench_plots import plot
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
            reach("accuracy_after", figures["accuracy_after"], at_least=0.95),
            reach("learning_kept", figures["learning_kept"], at_least=0.99),
            reach("size_over_base", figures["gguf_bytes"] / figures["base_bytes"], at_most=1.001),
            reach("total_s", seconds["total"], at_most=200.0),
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


def bench_fidelity(console: Console) -> Figures:
    """The table of what is kept and what is spoilt, and the defaults' bounds."""
    figures = fidelity.bench_fidelity(console)
    bounds = []
    for row in figures["rows"]:
        if row["training"] == "replay" and row["served"] == "compensated":
            name = f"{row['base']}: "
            bounds += [
                reach(f"{name}right", row["right"], at_least=0.95),
                reach(f"{name}learning_kept", row["learning_kept"], at_least=0.99),
                reach(f"{name}unrelated_over_base", row["unrelated_over_base"], at_most=0.03),
            ]
    for run in figures["runs"]:
        if run["training"] == "replay":
            name = f"{run['base']}: "
            bounds += [
                reach(f"{name}replay_over_training", run["replay_over_training"], at_most=0.4),
                reach(f"{name}rounding_over_training", run["rounding_over_training"], at_most=0.25),
            ]
    return {**figures, "reach": bounds}


def bench_recipe(console: Console, only: Sequence[str] = ()) -> Figures:
    """The recipe on every data set; settings come from the environment, as for the server."""
    figures = recipe.bench_recipe(console, only)
    bounds = [
        reach(f"{row['data']}: unrelated_over_base", row["unrelated_over_base"], at_most=0.03)
        for row in figures["rows"]
    ]
    return {**figures, "reach": bounds}


def bench_wide(console: Console) -> Figures:
    """Layers of an 8B model: the process never holds more than a small computer has."""
    figures = wide.bench_wide(console)
    bounds = [
        reach(
            f"{row['inputs']} x {row['outputs']}: peak_gigabytes",
            row["peak_gigabytes"],
            at_most=6.0,
        )
        for row in figures["rows"]
    ]
    return {**figures, "reach": bounds}


def bench_server(console: Console) -> Figures:
    """The server beside bare aiohttp: while a training takes every core, and with many runs."""
    figures = server.bench_server(console)
    few, many = (figures["latency_ms"][str(n)] for n in (server.FEW, server.MANY))
    bounds = [
        reach("training: status_p99_ms", few["status"]["training"]["p99"], at_most=50.0),
        reach(
            f"training, {server.MANY} runs: status_p99_ms",
            many["status"]["training"]["p99"],
            at_most=50.0,
        ),
    ]
    bounds += [
        reach(f"{phase}: status_over_bare", rates["status"]["ratio"], at_least=0.6)
        for phase, rates in figures["throughput"].items()
    ]
    bounds += [
        reach(f"{what}: {server.MANY}_over_{server.FEW}_runs", figures["slope"][what], at_most=1.2)
        for what in ("status", "train", "list")
    ]
    return {**figures, "reach": bounds}


def bench_dataset(console: Console) -> Figures:
    """The data set compiler beside json.loads, its memory, and what it finds of planted secrets."""
    figures = dataset.bench_dataset(console)
    rows = {size["rows"]: size for size in figures["sizes"]}
    peaks = [rows[n]["peak_megabytes"] for n in (10_000, 1_000_000)]
    # A thousand rows take a tenth of a second: the tokens of the samples are most of it.
    bounds = [
        reach(f"{n} rows: share_of_json_loads", row["share_of_json_loads"], at_least=0.25)
        for n, row in rows.items()
        if n >= 100_000
    ]
    bounds += [
        reach("peak_megabytes_1M_over_10k", peaks[1] / peaks[0], at_most=1.5),
        reach("secrets: recall", figures["secrets"]["recall"], at_least=0.95),
        reach(
            "secrets: false_alarms_per_1000",
            figures["secrets"]["false_alarms_per_1000"],
            at_most=1.0,
        ),
    ]
    return {**figures, "reach": bounds}


BENCHMARKS: dict[str, Callable[..., Figures]] = {
    "dataset": bench_dataset,
    "demo": bench_demo,
    "fidelity": bench_fidelity,
    "recipe": bench_recipe,
    "server": bench_server,
    "wide": bench_wide,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="Print one JSON object and no table.")
    parser.add_argument("--only", nargs="+", help="Data sets of `recipe`; all by default.")
    parser.add_argument("--plots", type=Path, help="Folder for the plots of `fidelity`.")
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=arguments.json)
    options = {"only": arguments.only} if arguments.only else {}
    figures = BENCHMARKS[arguments.name](console, **options)
    print(json.dumps(figures, indent=None if arguments.json else 2))
    if arguments.plots and arguments.name == "fidelity":
        plot(figures["rows"], arguments.plots)
    missed = [entry["name"] for entry in figures["reach"] if not entry["ok"]]
    Console(stderr=True, highlight=False).print(
        f"[red]MISSED[/red]: {', '.join(missed)}"
        if missed
        else "[green]REACHED[/green]: all bounds"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
