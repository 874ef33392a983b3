"""What compensated rounding knows of each layer: statistics and adapter become feedback."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.gguf.adapter import LoraPair
from ollama_trainer.gguf.compensation import (
    CPU,
    PANEL,
    Arrays,
    Each,
    Feedback,
    Moment,
    feedback_of,
)
from ollama_trainer.gguf.statistics import InputStatistics
from ollama_trainer.gguf.touched import Compensation

#: Inputs from which on a GPU is faster: it waits for each column as long as a CPU, and only the
#: work within a column is quicker.
_WIDE = 2048
#: Bytes of a matrix that is not made beside the work with another one.
_LARGE_BYTES = 1 << 26
#: Bytes of matrices that are kept for layers to come. Those of a file in the usual order take less;
#: in any other, they are made again.
_KEPT_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingOptions:
    """How compensated rounding is done; docs/explanation/nothing-lost.md has the measurements."""

    #: Share of the mean diagonal that is added to the diagonal of the second moments.
    damping: float = 0.01
    #: Share of the rounding that is left to chance.
    dither: float = 0.6
    #: How much the directions that the adapter reads count, beside the mean diagonal.
    protection: float = 5.0


DEFAULT_ROUNDING = RoundingOptions()


class Feedbacks:
    """Compensation for each module, kept only as long as layers with the same input are to come.

    Args:
        statistics: of the layers' inputs; layers that they do not know get no compensation.
        adapter: what is read of these inputs.
        modules: that will ask, once each.
        rounding: how it is done.
        each: shares out the work.
    """

    def __init__(
        self,
        statistics: InputStatistics | None,
        adapter: Mapping[str, LoraPair],
        modules: Collection[str],
        rounding: RoundingOptions,
        each: Each,
    ) -> None:
        self._statistics, self._adapter = statistics, adapter
        self._rounding, self._each = rounding, each
        inputs = statistics.inputs if statistics is not None else {}
        self._input_of = {module: inputs[module] for module in adapter if module in inputs}
        self._to_come = Counter(
            self._input_of[module] for module in modules if module in self._input_of
        )
        self._kept: dict[str, Feedback] = {}
        self._last: Feedback | None = None
        self.n_taken = 0

    @property
    def n_bytes(self) -> int:
        """Of the matrices that are kept, and of the one in use."""
        used = {id(feedback): feedback for feedback in self._kept.values()}
        if self._last is not None:
            used[id(self._last)] = self._last
        return sum(map(_kept_bytes, used.values()))

    def needs_room(self, module: str) -> bool:
        """Whether `take` is about to make a matrix so large that others should be gone."""
        name = self._input_of.get(module)
        if name is None or self._statistics is None or name in self._kept:
            return False
        return _n_bytes(len(self._statistics.moment(name).order)) > _LARGE_BYTES

    def take(self, module: str) -> Compensation | None:
        """The compensation of a module; each module takes it once.

        Raises:
            ExportError: the statistics of its input cannot be read, or are none.
        """
        name = self._input_of.get(module)
        if name is None or self._statistics is None:
            return None
        if name not in self._kept:
            self._last = None
            self._kept[name] = self._made(name, self._statistics)
        feedback = self._last = self._kept[name]
        self._to_come[name] -= 1
        if not self._to_come[name]:
            del self._kept[name]
        self.n_taken += 1
        return Compensation(feedback, self._rounding.dither)

    def _made(self, name: str, statistics: InputStatistics) -> Feedback:
        stored = statistics.moment(name)
        n = len(stored.order)
        while self._kept and _n_bytes(n) + sum(map(_kept_bytes, self._kept.values())) > _KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        readers = [module for module, own in self._input_of.items() if own == name]
        pairs = [self._adapter[module] for module in readers]
        moment = Protected(stored, pairs, self._rounding.protection)
        return feedback_of(moment, self._rounding.damping, _arrays_for(n), self._each)


def _n_bytes(n: int) -> int:
    """Of the panels of a matrix of `n` columns."""
    return 2 * n * (n + PANEL)


def _kept_bytes(feedback: Feedback) -> int:
    return _n_bytes(len(feedback.order)) if feedback.arrays is CPU else 0


def _arrays_for(n: int) -> Arrays:
    """A GPU for wide layers, where torch is loaded anyway: loading it costs more than it saves."""
    if n >= _WIDE and "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            return Arrays(torch, "cuda")
    return CPU


class Protected:
    """Second moments with the directions that an adapter reads added to them.

    The moments know the inputs of the rows that were trained on. Other questions have other inputs,
    and what the adapter does with those lies in the few directions that it reads at all: D'D of its
    change D, scaled so that each of them counts `protection` times the mean diagonal.
    """

    def __init__(self, moment: Moment, pairs: Sequence[LoraPair], protection: float) -> None:
        self._moment = moment
        self.order = moment.order
        self.diagonal = moment.diagonal
        #: Halves of what is added: (columns, rank) and (rank, columns).
        self._added: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        mean = float(moment.diagonal.mean(dtype=np.float64))
        ranks = sum(len(pair.down) for pair in pairs)
        for pair in pairs:
            down, up = pair.down.astype(np.float64), pair.up.astype(np.float64)
            inner = up.T @ up
            total = float((inner * (down @ down.T)).sum())
            if total > 0:
                ordered = pair.down[:, self.order]
                left = ordered.T @ (inner * (protection * mean * ranks / total)).astype(np.float32)
                self._added.append((left, ordered))
                self.diagonal = self.diagonal + np.einsum("ir,ri->i", left, ordered)

    def panel(self, index: int) -> NDArray[np.float32]:
        """As of `Moment`."""
        panel = self._moment.panel(index)
        rows, columns = panel.shape
        for left, right in self._added:
            panel += left[index * PANEL : index * PANEL + rows] @ right[:, :columns]
        return panel
