"""Error-compensated rounding: each column's rounding error is made good by the columns after it.

A layer computes y = W x, so what matters of a rounding error E = W - Q is how it acts on the inputs
that the layer really gets: E H E' with H = X'X over them. With H = L D L', L lower triangular with
ones on its diagonal and D diagonal, rounding column by column from the last to the first to

    Q[:, k] = round(W[:, k] + sum over j > k of E[:, j] L[j, k])

makes the sum of squares as small as a rounding in one pass can (GPTQ, Frantar et al. 2022; in this
form QuIP, Chee et al. 2023). Here the grid is the base's own and never changes, so the columns may
be taken in any order: those with the strongest inputs first, while there are many left to make
their errors good. They stand last.

A part of the rounding is left to chance (`dither`): H knows the inputs of some thousand tokens
only, and what it does not know would be rounded away without it.

H and L are kept as panels of rows, each as long as the part below the diagonal needs: half of the
square, and L takes H's place. The same code runs on numpy and on torch, see `Arrays`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError

#: Rows of a panel.
PANEL = 256
#: Columns that are factorised, and columns that are rounded, between two products of matrices.
_BLOCK, _LEAF = 64, 16
#: Rows of a panel that are one piece of work where there is but one panel.
_SLICE = 64
#: How often damping is raised tenfold where H is too near to singular for float32.
_ATTEMPTS = 4
#: A column is rounded in a dozen short steps. Of two threads at that, each would wait for Python's
#: own lock at every step; so one of them does it while the others multiply matrices.
_COLUMNS = threading.Lock()

#: Like `map`; the calls may run side by side.
Each = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]


@dataclass(frozen=True, slots=True)
class Arrays:
    """The library that works on arrays: numpy, or torch on a device."""

    xp: Any
    device: str | None = None

    def empty(self, *shape: int) -> Any:
        """float32, not initialised."""
        options = {} if self.device is None else {"device": self.device}
        return self.xp.empty(shape, dtype=self.xp.float32, **options)

    def put(self, array: NDArray[Any]) -> Any:
        """An array of this library with the same content; numpy's own is not copied."""
        if self.device is None:
            return array
        return self.xp.from_numpy(array).to(self.device)

    def get(self, array: Any) -> NDArray[Any]:
        """The inverse of `put`."""
        result: NDArray[Any] = array if self.device is None else array.cpu().numpy()
        return result

    def cholesky(self, square: Any) -> Any | None:
        """The lower factor of a small matrix; None where there is none."""
        if self.device is not None:
            lower, failed = self.xp.linalg.cholesky_ex(square)
            return None if failed or not lower.isfinite().all() else lower
        try:
            lower = np.linalg.cholesky(square)
        except np.linalg.LinAlgError:
            return None
        # Not every LAPACK notices what is not a number.
        return lower if np.isfinite(lower).all() else None


CPU = Arrays(np)


class Moment(Protocol):
    """Second moments of a layer's input: H."""

    @property
    def order(self) -> NDArray[np.intp]:
        """(columns,): the layer's columns in the order in which they stand here, strongest last."""

    @property
    def diagonal(self) -> NDArray[np.float32]:
        """(columns,), in that order."""

    def panel(self, index: int) -> NDArray[np.float32]:
        """Rows from `index` times PANEL on, up to the diagonal's end; the caller may change it."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the errors of some columns are made good by others, for one input of a layer."""

    arrays: Arrays
    #: As of the moment.
    order: NDArray[np.intp]
    #: L, in panels; what stands above its diagonal means nothing.
    panels: list[Any]


def feedback_of(moment: Moment, damping: float, arrays: Arrays = CPU, each: Each = map) -> Feedback:
    """The feedback for a layer's inputs.

    Args:
        moment: H.
        damping: share of the mean diagonal that is added to the diagonal.
        arrays: where it is worked out, and used.
        each: shares out the work on panels.

    Raises:
        ExportError: H holds values that are no numbers.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        added = damping * float(moment.diagonal.mean(dtype=np.float64)) or 1.0
    for _ in range(_ATTEMPTS):
        panels = _damped(moment, added, arrays, each)
        if _factorise(panels, arrays, each):
            return Feedback(arrays, moment.order, panels)
        added *= 10
    raise ExportError(
        "The statistics of a layer's inputs are no second moments",
        "Use rounding = stochastic, which needs none.",
    )


def _damped(moment: Moment, added: float, arrays: Arrays, each: Each) -> list[Any]:
    panels: list[Any] = [None] * -(-len(moment.order) // PANEL)

    def fill(index: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            panel = moment.panel(index)
            np.einsum("ii->i", panel[:, index * PANEL :])[...] += added
        panels[index] = arrays.put(panel)

    _all(each(fill, range(len(panels))))
    return panels


def _all(calls: Iterable[None]) -> None:
    for _ in calls:
        pass


def _factorise(panels: list[Any], arrays: Arrays, each: Each) -> bool:
    """H -> L in the same panels, columns of one panel after the other; False if H is not positive.

    Every panel is one piece of work, so that sums are the same however many threads share them.
    """
    pivots = arrays.empty(panels[-1].shape[1])
    for index in range(len(panels)):
        columns = _Columns(arrays, panels, index, pivots)
        _all(each(columns.subtract_own, range(0, columns.width, _SLICE)))
        if not columns.factorise_own():
            return False
        _all(each(columns.solve_below, range(index + 1, len(panels))))
    return True


class _Columns:
    """The columns of H that end with the diagonal block of panel `index`, becoming those of L."""

    def __init__(self, arrays: Arrays, panels: list[Any], index: int, pivots: Any) -> None:
        self._arrays, self._panels, self._pivots = arrays, panels, pivots
        self._own = panels[index]
        self.width = len(self._own)
        self._start = index * PANEL
        #: What later rows times this is, the columns before these explain.
        self._lead = (self._own[:, : self._start] * pivots[: self._start]).T
        #: For each block of columns: its range, what the blocks before it explain, and what turns
        #: the rest into rows of L.
        self._blocks: list[tuple[slice, Any, Any]] = []

    def subtract_own(self, first: int) -> None:
        """A slice of the panel's own rows, less what the columns before these explain."""
        self._subtract(self._own[first : first + _SLICE])

    def _subtract(self, rows: Any) -> None:
        if self._start:
            with np.errstate(over="ignore", invalid="ignore"):
                part = rows[:, self._start : self._start + self.width]
                part -= rows[:, : self._start] @ self._lead

    def factorise_own(self) -> bool:
        """The diagonal block of the panel; False where it is not positive."""
        with np.errstate(over="ignore", invalid="ignore"):
            blocks = (
                slice(at, min(at + _BLOCK, self.width)) for at in range(0, self.width, _BLOCK)
            )
            return all(self._factorise_block(columns) for columns in blocks)

    def _factorise_block(self, columns: slice) -> bool:
        xp, own = self._arrays.xp, self._own[:, self._start :]
        pivots = self._pivots[self._start : self._start + self.width]
        before = (own[columns, : columns.start] * pivots[: columns.start]).T
        self._take_off(own[columns.start :], columns, before)
        lower = self._arrays.cholesky(own[columns, columns])
        if lower is None:
            return False
        roots = xp.diagonal(lower)
        pivots[columns] = roots * roots
        unit = lower / roots
        own[columns, columns] = unit
        solver = xp.linalg.inv(unit).T / pivots[columns]
        own[columns.stop :, columns] = own[columns.stop :, columns] @ solver
        self._blocks.append((columns, before, solver))
        return True

    def _take_off(self, part: Any, columns: slice, before: Any) -> None:
        if columns.start:
            part[:, columns] -= part[:, : columns.start] @ before

    def solve_below(self, index: int) -> None:
        """The rows of a later panel."""
        rows = self._panels[index]
        self._subtract(rows)
        part = rows[:, self._start : self._start + self.width]
        with np.errstate(over="ignore", invalid="ignore"):
            for columns, before, solver in self._blocks:
                self._take_off(part, columns, before)
                part[:, columns] = part[:, columns] @ solver


@dataclass(frozen=True, slots=True)
class Grain:
    """The values that a chunk of rows may take; columns in the order of a feedback."""

    #: float32, (groups, rows): what one level is worth; zero where there is one value only.
    size: NDArray[np.float32]
    #: (columns,): the group of each column.
    group_of: NDArray[np.intp]
    #: The lowest and the highest code.
    low: int
    high: int
    #: The level of each code; None where it is the code itself.
    levels: NDArray[np.float32] | None = None


def between_levels(arrays: Arrays, values: Any, levels: Iterable[float]) -> Any:
    """Codes with fractions, piece by piece linear between the levels; float32."""
    xp = arrays.xp
    result, part = arrays.empty(*values.shape), arrays.empty(*values.shape)
    result[...] = 0
    for low, high in itertools.pairwise(float(level) for level in levels):
        xp.subtract(values, low, out=part)
        xp.divide(part, high - low, out=part)
        xp.clip(part, 0, 1, out=part)
        xp.add(result, part, out=result)
    return result


def round_compensated(
    wished: NDArray[np.float32],
    codes: NDArray[np.uint8],
    grain: Grain,
    feedback: Feedback,
    noise: Callable[[int], NDArray[np.float32]] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes in the place of wished changes of weights.

    Args:
        wished: float32, (columns, rows) in the feedback's order: the wished change of each weight.
            On the CPU, the errors take its place.
        codes: (columns, rows), likewise: where each weight stands before; replaced on the CPU.
        grain: which values the codes stand for.
        feedback: of the layer's input.
        noise: gives that many numbers between -0.5 and 0.5; without it rounding is to nearest.

    Returns:
        The codes, and what is left of the wished changes.
    """
    arrays = feedback.arrays
    rounder = _Rounder(arrays, arrays.put(wished), arrays.put(codes), grain)
    n, rows = wished.shape
    product = arrays.empty(PANEL, rows)
    for index in reversed(range(len(feedback.panels))):
        start, stop = index * PANEL, min(n, (index + 1) * PANEL)
        rounder.begin(start, stop, noise)
        for later in range(index + 1, len(feedback.panels)):
            panel = feedback.panels[later]
            errors = rounder.wished[later * PANEL : later * PANEL + len(panel)]
            arrays.xp.matmul(panel[:, start:stop].T, errors, out=product[: stop - start])
            rounder.aim[: stop - start] += product[: stop - start]
        rounder.solve(feedback.panels[index][:, start:stop], 0, stop - start, product)
    return arrays.get(rounder.codes), arrays.get(rounder.wished)


class _Rounder:
    """The columns of one panel, and room to work on them."""

    def __init__(self, arrays: Arrays, wished: Any, codes: Any, grain: Grain) -> None:
        self._arrays, self._grain = arrays, grain
        self.wished, self.codes = wished, codes
        rows = wished.shape[1]
        #: What the columns of the panel are to be rounded to: the wish and other columns' errors.
        self.aim = arrays.empty(PANEL, rows)
        self._threshold = arrays.empty(PANEL, rows)
        self._old, self._base, self._new = (arrays.empty(_LEAF, rows) for _ in range(3))
        self._value = arrays.empty(1, rows)
        self._size = arrays.put(grain.size)
        self._inverse = arrays.put(inverse_of(grain.size))
        self._ends = [arrays.put(np.array(end, np.float32)) for end in (grain.low, grain.high)]
        self._levels = None if grain.levels is None else arrays.put(grain.levels.copy())
        self._start = 0

    def begin(
        self, start: int, stop: int, noise: Callable[[int], NDArray[np.float32]] | None
    ) -> None:
        """Goes on to the panel of these columns."""
        self._start = start
        width, rows = stop - start, self.wished.shape[1]
        self.aim[:width] = self.wished[start:stop]
        threshold = self._threshold[:width]
        if noise is None:
            threshold[...] = 0.5
        else:
            drawn = self._arrays.put(noise(width * rows).reshape(width, rows))
            self._arrays.xp.add(drawn, 0.5, out=threshold)

    def solve(self, own: Any, first: int, last: int, product: Any) -> None:
        """Rounds columns of the panel, the last first; `own` is L between its columns."""
        if last - first <= _LEAF:
            self._round(own, first, last)
            return
        middle = (first + last) // 2
        self.solve(own, middle, last, product)
        errors = self.wished[self._start + middle : self._start + last]
        part = product[: middle - first]
        self._arrays.xp.matmul(own[middle:last, first:middle].T, errors, out=part)
        self.aim[first:middle] += part
        self.solve(own, first, middle, product)

    def _round(self, own: Any, first: int, last: int) -> None:
        """Rounds a few columns, one after the other."""
        width, place = last - first, self._start + first
        feedback = self._arrays.empty(width, width)
        feedback[...] = own[first:last, first:last].T
        codes, old, new = self.codes[place : place + width], self._old[:width], self._new[:width]
        old[...] = self._levels_of(codes)
        base = self._threshold[first:last]
        if self._levels is None:
            # A float has room for the largest code beside the finest threshold.
            base = self._arrays.xp.add(base, old, out=self._base[:width])
        with _COLUMNS, np.errstate(over="ignore", invalid="ignore"):
            for index in reversed(range(width)):
                aim = self.aim[first + index]
                if index + 1 < width:
                    errors = self.wished[place + index + 1 : place + width]
                    later = feedback[index : index + 1, index + 1 :]
                    aim += self._arrays.xp.matmul(later, errors, out=self._value)[0]
                self._round_column(place + index, aim, old[index], base[index], new[index])
        codes[...] = new

    def _round_column(self, place: int, aim: Any, old: Any, base: Any, code: Any) -> None:
        """Rounds one column: finds its codes, and leaves its errors where its wishes were."""
        xp, value, wished = self._arrays.xp, self._value[0], self.wished[place]
        group = self._grain.group_of[place]
        xp.multiply(aim, self._inverse[group], out=value)
        if self._grain.levels is not None:
            xp.add(value, old, out=value)
            value = between_levels(self._arrays, value, self._grain.levels)
        xp.add(value, base, out=value)
        xp.floor(value, out=code)
        xp.maximum(code, self._ends[0], out=code)
        xp.minimum(code, self._ends[1], out=code)
        xp.subtract(self._levels_of(code), old, out=value)
        # The error counts from what was wished for, not from what was made of it.
        xp.multiply(value, self._size[group], out=value)
        xp.subtract(wished, value, out=wished)

    def _levels_of(self, codes: Any) -> Any:
        if self._levels is None:
            return codes
        indices = codes.astype(np.intp) if self._arrays.device is None else codes.long()
        return self._levels[indices]


def inverse_of(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale; zero where the scale is zero: there is one value only."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
