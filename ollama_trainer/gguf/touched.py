"""The tensors that an adapter changes: old rows and a change become new rows, chunk by chunk.

A chunk depends on its place in the tensor alone, so chunks may be made in any order, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.random import SFC64
from numpy.typing import NDArray

from ollama_trainer.gguf.adapter import LoraPair
from ollama_trainer.gguf.compensation import Feedback
from ollama_trainer.gguf.file import TensorInfo, TensorReader
from ollama_trainer.gguf.grids import dequantize
from ollama_trainer.gguf.pieces import Piece
from ollama_trainer.gguf.quantize import QUANTIZABLE, quantize
from ollama_trainer.gguf.rounding import (
    add_compensated,
    add_on_grid,
    generator_for,
    round_to_float,
    transposed,
)

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
#: Weights that are worked on at once. A quarter of them would stay in a core's own cache, but the
#: starts of sixty steps a chunk, and Python's lock at each, cost more than the way to the next one.
_CHUNK_WEIGHTS = 1 << 19
#: Chunks that are one piece of work: handing a piece from thread to thread takes its time, too.
_PIECE_CHUNKS = 2
#: Weights that are compensated at once, and rows: the more rows, the less each column costs, and
#: the matrices are read as often as there are chunks.
_COMPENSATED_WEIGHTS, _COMPENSATED_ROWS = 1 << 22, 4096
#: Bytes that making a piece takes for each weight, at most; compensated, on the tensor's own grid
#: and on another one.
_BYTES_BY_CHANCE, _BYTES_COMPENSATED, _BYTES_ELSEWHERE = 8, 10, 16


@dataclass(frozen=True, slots=True)
class Compensation:
    """What compensated rounding needs beside the weights."""

    feedback: Feedback
    #: Share of the rounding that is left to chance.
    dither: float


@dataclass(frozen=True, slots=True)
class Sources:
    """Open files: the weights, and the file whose form the result has; often the same one."""

    base: TensorReader
    form: TensorReader


@dataclass(slots=True, kw_only=True)
class Touched:
    """A tensor with an adapter's change, in the row order of the GGUF."""

    module: str
    #: In the file whose weights are changed.
    before: TensorInfo
    #: Name, shape and type that it will have.
    after: TensorInfo
    #: In a file of the same model, whose scales the result takes over; None where they are those
    #: of `before`, or are made anew.
    scales: TensorInfo | None
    #: Whether the adapter changes any weight; known once all pieces are made, by any thread, each
    #: of which may only ever set it.
    changed: bool = field(default=False, init=False)

    @property
    def on_own_grid(self) -> bool:
        """Whether type and scales stay those that the weights have."""
        return self.scales is None and self.after.type == self.before.type

    @property
    def is_quantised(self) -> bool:
        """Whether the result has codes, which can make errors good."""
        return self.after.type.name in QUANTIZABLE


class Rewriter:
    """Makes the new rows of one tensor.

    Args:
        tensor: which one.
        pair: its change, or a part of it, rows in the order of the GGUF.
        sources: the files that tensors are read from.
        seed: of the rounding.
        compensation: makes errors good; without it rounding is by chance, or to nearest where
            scales are made anew.
        first_row: of the tensor, that `pair` begins with.
    """

    def __init__(
        self,
        tensor: Touched,
        pair: LoraPair,
        sources: Sources,
        seed: int,
        compensation: Compensation | None,
        first_row: int = 0,
    ) -> None:
        self._tensor, self._pair, self._sources = tensor, pair, sources
        self._first_row = first_row
        self._seed, self._compensation = seed, compensation
        # No product of a row and a column is larger than that of their lengths; sums are rounded.
        longest = (float(np.linalg.norm(half, axis=1).max()) for half in (pair.up, pair.down.T))
        self._largest = 1.001 * math.prod(longest)

    def pieces(self) -> Iterator[Piece]:
        """Pieces of whole rows, in their order."""
        n, end = self._tensor.before.row_length, self._first_row + len(self._pair.up)
        make, n_bytes = self._by_chunks, _BYTES_BY_CHANCE
        rows = _PIECE_CHUNKS * _chunk_rows(n)
        if self._compensation is not None:
            make = self._rows
            n_bytes = _BYTES_COMPENSATED if self._tensor.on_own_grid else _BYTES_ELSEWHERE
            rows = compensated_rows(n)
        for start in range(self._first_row, end, rows):
            stop = min(end, start + rows)
            yield Piece(partial(make, start, stop), n_bytes * (stop - start) * n)

    def _by_chunks(self, start: int, stop: int) -> _Bytes:
        """Rows in chunks that fit the cache."""
        result = np.empty((stop - start, self._tensor.after.row_bytes), np.uint8)
        rows = _chunk_rows(self._tensor.before.row_length)
        for first in range(start, stop, rows):
            last = min(stop, first + rows)
            result[first - start : last - start] = self._rows(first, last)
        return result

    def _rows(self, start: int, stop: int) -> _Bytes:
        tensor = self._tensor
        raw = _read(self._sources.base, tensor.before, start, stop)
        generator = generator_for(self._seed, tensor.before.name, start)
        up = self._pair.up[start - self._first_row : stop - self._first_row]
        if not tensor.on_own_grid:
            return self._on_other_grid(raw, up, start, stop, generator)
        if self._compensation is None:
            delta = up @ self._pair.down
            result = add_on_grid(raw, delta, tensor.after.type, generator, self._largest)
        else:
            feedback, dither = self._compensation.feedback, self._compensation.dither
            wished = self._pair.down.T[feedback.order] @ up.T
            result = add_compensated(raw, wished, tensor.after.type, feedback, dither, generator)
        if not tensor.changed and not np.array_equal(result, raw):
            tensor.changed = True
        return result

    def _on_other_grid(
        self, raw: _Bytes, up: _Floats, start: int, stop: int, generator: SFC64
    ) -> _Bytes:
        """Of another type, or on the scales of another file.

        No weight lies on a new grid to begin with, so rounding to nearest loses no change there.
        """
        tensor, kind = self._tensor, self._tensor.after.type
        wished = up @ self._pair.down
        if not tensor.changed and wished.any():
            tensor.changed = True
        wished += dequantize(raw, tensor.before.type)
        if not tensor.is_quantised:
            return round_to_float(wished, kind, generator)
        if tensor.scales is None:
            raw = quantize(wished, kind)
        else:
            raw = _read(self._sources.form, tensor.scales, start, stop)
        if self._compensation is None and tensor.scales is None:
            return raw
        wished -= dequantize(raw, kind)
        if self._compensation is None:
            return add_on_grid(raw, wished, kind, generator)
        feedback = self._compensation.feedback
        wished = transposed(wished).take(feedback.order, axis=0)
        return add_compensated(raw, wished, kind, feedback, 0.0, generator)


def compensated_rows(row_length: int) -> int:
    """Rows of such a length that are compensated at once."""
    return min(max(1, _COMPENSATED_WEIGHTS // row_length), _COMPENSATED_ROWS)


def _chunk_rows(row_length: int) -> int:
    return max(1, _CHUNK_WEIGHTS // row_length)


def _read(reader: TensorReader, info: TensorInfo, start: int, stop: int) -> _Bytes:
    data = reader.read(info, start * info.row_bytes, (stop - start) * info.row_bytes)
    return np.frombuffer(data, np.uint8).reshape(stop - start, -1)
