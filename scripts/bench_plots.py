"""The plots of docs/explanation/nothing-lost.md, from the rows of the benchmark `fidelity`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_MARKERS = {"Q4_1": "o", "Q4_0": "s", "Q5_0": "^"}


def plot(rows: Sequence[Row], folder: Path) -> None:
    """Writes kept-against-unrelated.svg and learning-against-forgetting.svg."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "ollama-trainer"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in rows if row["base"] in _MARKERS]
    _kept(rows, folder / "kept-against-unrelated.svg")
    _forgetting(rows, folder / "learning-against-forgetting.svg")


def _kept(rows: Sequence[Row], path: Path) -> None:
    """Every way of serving a training with replay: nothing lost is up, nothing spoilt is left."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    ways = dict.fromkeys(row["served"] for row in rows if row["training"] == "replay")
    for number, way in enumerate(ways):
        for row in rows:
            if (row["training"], row["served"]) == ("replay", way):
                axes.scatter(
                    row["unrelated_over_base"],
                    100 * row["learning_kept"],
                    color=f"C{number}",
                    marker=_MARKERS[row["base"]],
                    label=way if row["base"] == "Q4_1" else None,
                )
    axes.set_xlabel("loss on unrelated text above the base's, nats a token")
    axes.set_ylabel("learning kept, %")
    _finish(figure, axes, path)


def _forgetting(rows: Sequence[Row], path: Path) -> None:
    """The two trainings, before and after rounding: learning is up, forgetting is right."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for color, training in enumerate(("plain", "replay")):
        for served, fill in (("exact (F16)", "none"), ("compensated", f"C{color}")):
            for row in rows:
                if (row["training"], row["served"]) == (training, served):
                    axes.scatter(
                        row["unrelated_over_base"],
                        100 * row["right"],
                        facecolors=fill,
                        edgecolors=f"C{color}",
                        marker=_MARKERS[row["base"]],
                        label=f"{training}, {served}" if row["base"] == "Q4_1" else None,
                    )
    axes.set_xlabel("loss on unrelated text above the base's, nats a token")
    axes.set_ylabel("unseen questions answered rightly, %")
    _finish(figure, axes, path)


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.axvline(0, color="0.8", zorder=0)
    axes.legend(title="circle Q4_1, square Q4_0, triangle Q5_0")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
