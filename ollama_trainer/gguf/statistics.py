"""What the inputs of linear layers look like: their second moments, as files.

A training backend gathers them while the trained model reads texts; compensated rounding needs
them. Layers that share an input (query, key and value; gate and up) share one matrix. A matrix is
kept as correlations in float16 (their error, 0.0005, is far below any damping) with the roots of
its diagonal in float32, and only the part below the diagonal: 100 MB for a model of 135 million
weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_trainer.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "index.json"
#: Rows that are packed together, up to the diagonal's end.
_PANEL = 256


def write_moments(directory: Path, part: int, moments: Mapping[str, Tensor]) -> None:
    """Writes one part of the statistics.

    Args:
        directory: exists.
        part: number of the part; each holds what fits into memory at once.
        moments: name of the input -> float32 of shape (features, features).
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, moment in moments.items():
        roots = moment.diagonal().clamp(min=0).sqrt()
        inverse = (1 / roots).nan_to_num(posinf=0.0)
        correlations = moment * inverse[:, None] * inverse
        tensors[f"{name}.roots"] = roots
        tensors[f"{name}.correlations"] = _packed(correlations)
    save_file(tensors, directory / f"part-{part:03}.safetensors")


def write_index(directory: Path, inputs: Mapping[str, str], n_tokens: Mapping[str, int]) -> None:
    """Writes which layer has which input; the last file, without which the others mean nothing.

    Args:
        directory: holds the parts.
        inputs: module in transformers -> name of its input.
        n_tokens: kind of text -> how many tokens of it were read.
    """
    content = {"inputs": dict(inputs), "n_tokens": dict(n_tokens)}
    (directory / _INDEX).write_text(json.dumps(content), encoding="utf-8")


class InputStatistics:
    """Second moments of layers' inputs, read one at a time.

    Args:
        directory: as the functions above wrote it.

    Raises:
        ExportError: it is not whole.
    """

    def __init__(self, directory: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._directory = directory
        self._part_of: dict[str, Path] = {}
        try:
            index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
            self.inputs: dict[str, str] = dict(index["inputs"])
            for path in sorted(directory.glob("part-*.safetensors")):
                with safe_open(path, "pt") as part:
                    self._part_of |= dict.fromkeys(part.keys(), path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ExportError(
                f"The statistics in {directory} cannot be read: {error}",
                "Use rounding = stochastic, or train again.",
            ) from error

    def second_moment(self, name: str) -> Tensor:
        """float32 of shape (features, features), of the input of that name.

        Raises:
            ExportError: it is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._part_of[f"{name}.roots"], "pt") as part:
                roots = part.get_tensor(f"{name}.roots")
                packed = part.get_tensor(f"{name}.correlations")
            square = _unpacked(packed, len(roots))
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise ExportError(
                f"The statistics of {name} in {self._directory} cannot be read: {error}",
                "Use rounding = stochastic, or train again.",
            ) from error
        return square.mul_(roots[:, None]).mul_(roots)


def _packed(square: Tensor) -> Tensor:
    """The part below the diagonal, panel by panel, as float16 in one dimension."""
    import torch

    panels = range(0, len(square), _PANEL)
    return torch.cat(
        [square[start : start + _PANEL, : start + _PANEL].half().reshape(-1) for start in panels]
    )


def _unpacked(packed: Tensor, n: int) -> Tensor:
    """The inverse of `_packed`: float32, symmetric."""
    import torch

    square = torch.zeros((n, n))
    at = 0
    for start in range(0, n, _PANEL):
        stop = min(start + _PANEL, n)
        panel = packed[at : at + (stop - start) * stop].reshape(stop - start, stop).float()
        at += panel.numel()
        square[start:stop, :stop] = panel
        square[:start, start:stop] = panel[:, :start].T
    return square
