"""What the inputs of linear layers look like: their second moments, as files.

A training backend gathers them while the trained model reads texts; compensated rounding needs
them. Layers that share an input (query, key and value; gate and up) share one matrix. A matrix is
kept as correlations in float16 (their error, 0.0005, is far below any damping) with the roots of
its diagonal in float32, and only the part below the diagonal: 100 MB for a model of 135 million
weights. Features stand in the order of their strength, the weakest first: that of compensation.py,
which then reads a matrix from its beginning to its end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.compensation import PANEL, Moment
from ollama_trainer.gguf.stored import StoredArrays

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "index.json"


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
        order = roots.argsort(stable=True)
        tensors[f"{name}.order"] = order.int()
        tensors[f"{name}.roots"] = roots[order]
        tensors[f"{name}.correlations"] = _packed(moment, roots, order)
    save_file(tensors, directory / f"part-{part:03}.safetensors")


def _packed(moment: Tensor, roots: Tensor, order: Tensor) -> Tensor:
    """Correlations below the diagonal, panel by panel, as float16 in one dimension."""
    import torch

    inverse = (1 / roots).nan_to_num(posinf=0.0)
    panels = []
    for start in range(0, len(order), PANEL):
        rows, columns = order[start : start + PANEL], order[: start + PANEL]
        panel = moment[rows][:, columns] * inverse[rows][:, None] * inverse[columns]
        panels.append(panel.half().reshape(-1))
    return torch.cat(panels)


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
        self._directory = directory
        self._part_of: dict[str, StoredArrays] = {}
        try:
            index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
            self.inputs: dict[str, str] = dict(index["inputs"])
            for path in sorted(directory.glob("part-*.safetensors")):
                part = StoredArrays(path)
                self._part_of |= dict.fromkeys(part, part)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _unreadable(f"The statistics in {directory}", error) from error

    def moment(self, name: str) -> Moment:
        """The second moments of the input of that name.

        Raises:
            ExportError: they are missing or damaged.
        """
        what = f"The statistics of {name} in {self._directory}"
        try:
            return StoredMoment(name, self._part_of[f"{name}.roots"], what)
        except (OSError, KeyError, ValueError) as error:
            raise _unreadable(what, error) from error


class StoredMoment:
    """A `compensation.Moment` on disk: panels are read as they are asked for."""

    def __init__(self, name: str, part: StoredArrays, what: str) -> None:
        self._name, self._part, self._what = f"{name}.correlations", part, what
        self._roots: NDArray[np.float32] = part[f"{name}.roots"].astype(np.float32)
        n = self._roots.size
        self.order = part[f"{name}.order"].astype(np.intp)
        n_packed = sum(_size(start, n) for start in range(0, n, PANEL))
        shapes = (self._roots.shape, part.shape(self._name))
        if shapes != ((n,), (n_packed,)) or not np.array_equal(np.sort(self.order), np.arange(n)):
            raise ValueError(f"its arrays do not fit together for {n} features")

    @property
    def diagonal(self) -> NDArray[np.float32]:
        return self._roots**2

    def panel(self, index: int) -> NDArray[np.float32]:
        """Rows from `index` times PANEL on, up to the diagonal's end.

        Raises:
            ExportError: the file is gone, or was cut.
        """
        n, start = self._roots.size, index * PANEL
        before = sum(_size(earlier, n) for earlier in range(0, start, PANEL))
        try:
            packed: NDArray[Any] = self._part.part(self._name, before, _size(start, n))
        except (OSError, ValueError) as error:
            raise _unreadable(self._what, error) from error
        stop = min(start + PANEL, n)
        panel = packed.reshape(stop - start, stop).astype(np.float32)
        panel *= self._roots[start:stop, None]
        panel *= self._roots[:stop]
        return panel


def _size(start: int, n: int) -> int:
    """Numbers in the panel that begins with row `start`."""
    stop = min(start + PANEL, n)
    return (stop - start) * stop


def _unreadable(what: str, error: Exception) -> ExportError:
    return ExportError(
        f"{what} cannot be read: {error}", "Use rounding = stochastic, or train again."
    )
