"""Second moments as plain squares, on both sides of `ollama_trainer.gguf.compensation`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.gguf.compensation import PANEL, Moment


class PlainMoment:
    """A `Moment` from a square in the layer's own order."""

    def __init__(self, square: NDArray[np.float32]) -> None:
        self.order = np.argsort(square.diagonal(), kind="stable")
        self.diagonal = square.diagonal()[self.order]
        self._square = square

    def panel(self, index: int) -> NDArray[np.float32]:
        rows = self.order[index * PANEL : (index + 1) * PANEL]
        return self._square[np.ix_(rows, self.order[: (index + 1) * PANEL])].copy()


def dense(moment: Moment) -> NDArray[np.float32]:
    """The symmetric square of a moment, in the layer's own order."""
    n = len(moment.order)
    square = np.zeros((n, n), np.float32)
    for start in range(0, n, PANEL):
        panel = moment.panel(start // PANEL)
        rows, columns = (
            moment.order[part] for part in (slice(start, start + PANEL), slice(panel.shape[1]))
        )
        square[np.ix_(rows, columns)] = panel
        square[np.ix_(columns, rows)] = panel.T
    return square
