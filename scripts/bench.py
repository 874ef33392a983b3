"""Benchmarks, one function each: figures of one run, and the bounds that they are to reach.

Started by ./scripts/bench NAME [--json]. Bounds are on ratios and counts from that same run, so
that they hold on any machine; times are told beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench_dataset as dataset
import bench_export as export
import bench_fidelity as fidelity
import bench_recipe as recipe
import bench_server as server
import bench_wide as wide
import demo
from bench_plots import plot
from bench_processes import copy_seconds
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


def bench_fidelity(console: Console, only: Sequence[str] = ()) -> Figures:
    """The table of what is kept and what is spoilt, and the defaults' bounds."""
    figures = fidelity.bench_fidelity(console, only)
    bounds = []
    for row in figures["rows"]:
        promised = row["base"] not in fidelity.BELOW_FOUR_BITS
        if promised and row["training"] == "replay" and row["served"] == "compensated":
            name, unrelated = f"{row['base']}: ", "unrelated_over_trained"
            bounds += [
                reach(f"{name}learning_kept", row["learning_kept"], at_least=0.99),
                reach(f"{name}{unrelated}", row[unrelated], at_most=0.03),
            ]
            if row["base"] in fidelity.BASES:
                over_base = row["unrelated_over_base"]
                bounds += [
                    reach(f"{name}right", row["right"], at_least=0.95),
                    reach(f"{name}unrelated_over_base", over_base, at_most=0.03),
                ]
    for run in figures["runs"]:
        if run["training"] == "replay" and run["base"] in fidelity.BASES:
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
            at_most=0.6,
        )
        for row in figures["rows"]
    ]
    return {**figures, "reach": bounds}


def bench_export(console: Console, only: Sequence[str] = ()) -> Figures:
    """The export beside the usual way and a copy, its memory, and what it writes."""
    figures = export.bench_export(console, only)
    bounds = []
    for name, size in figures["sizes"].items():
        for rounding in export.ROUNDINGS:
            what = f"{name}, {rounding}: "
            row = size[rounding]
            bounds += [
                reach(f"{what}written_over_output", row["written_over_output"], at_most=1.02),
                reach(f"{what}peak_megabytes", row["peak_megabytes"], at_most=600.0),
            ]
            if name in figures["usual"]:
                faster = figures["usual"][name]["seconds"] / row["seconds"]
                times = 10.0 if rounding == "stochastic" else 2.0
                bounds.append(reach(f"{what}usual_over_export", faster, at_least=times))
            if name in figures["usual"] and rounding == "stochastic":
                copies = row["seconds"] / size["copy_s"]
                bounds.append(reach(f"{what}export_over_copy", copies, at_most=6.0))
    bounds += [
        reach(f"{rounding}: growth_of_time_a_parameter", growth, at_most=1.2)
        for rounding, growth in figures["growth"].items()
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
    "export": bench_export,
    "fidelity": bench_fidelity,
    "recipe": bench_recipe,
    "server": bench_server,
    "wide": bench_wide,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="Print one JSON object and no table.")
    parser.add_argument("--only", nargs="+", help="Data sets of `recipe`, bases of `fidelity`.")
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
