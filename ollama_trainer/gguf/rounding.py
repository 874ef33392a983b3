"""How a value between two codes becomes one of them.

A LoRA's change to a weight is a few hundredths of the distance between two codes of a 4-bit base.
Rounding to nearest throws all such changes away; rounding up with a probability equal to the
fraction keeps every one of them in expectation, and a layer sums over hundreds of weights. Where
the inputs of a layer are known, compensation.py does better still: its noise costs nearly nothing.

Between levels that are not evenly spaced, the fraction is that of the way from one to the next.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.random import SFC64
from numpy.typing import NDArray

from ollama_trainer.gguf.compensation import (
    CPU,
    Feedback,
    Grain,
    between_levels,
    inverse_of,
    round_compensated,
)
from ollama_trainer.gguf.file import TensorType
from ollama_trainer.gguf.grids import Decoded, Grid, as_float_bytes, dequantize, grid_of

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
#: Noise is a whole number between plus and minus half of this, never an even one: it is centred,
#: and never reaches the half at which a weight without a change would move.
_NOISE = 65536
#: As many steps leave room in a byte for the largest code that is worked on in one.
_FEW_STEPS = 63
#: Odd, so that no number is left out; of those tried, the one that relates them least.
_MULTIPLIER = np.uint16(0xD9ED)
#: Rows that are transposed at once.
_STRIPE = 32


def generator_for(seed: int, tensor_name: str, first_row: int = 0) -> SFC64:
    """Random bits that depend on the seed and the place alone, not on who rounds what when."""
    digest = hashlib.sha256(f"{seed}:{tensor_name}:{first_row}".encode()).digest()
    return SFC64(int.from_bytes(digest[:16], "little"))


def noise(generator: SFC64, n: int) -> NDArray[np.int16]:
    """`n` odd whole numbers, evenly from all between -32768 and 32767.

    Drawing them takes as long as all else that is done to a weight by chance. So half of them are
    drawn; the others are these, times a number that leaves them as even and hardly related.
    """
    half = -(-n // 8)
    words = np.empty(2 * half, np.uint64)
    words[:half] = generator.random_raw(half)
    numbers = words.view(np.uint16)
    np.multiply(numbers[: 4 * half], _MULTIPLIER, out=numbers[4 * half :])
    words |= np.uint64(0x0001000100010001)
    return words.view(np.int16)[:n]


def add_on_grid(
    raw: _Bytes,
    delta: _Floats,
    kind: TensorType,
    generator: SFC64,
    largest: float = math.inf,
) -> _Bytes:
    """Adds `delta` to quantised rows by chance, keeping every scale.

    Args:
        raw: uint8 of shape (rows, bytes a row).
        delta: float32 of shape (rows, weights a row), finite; it is used up.
        kind: the type of `raw`, which the result has too.
        generator: consumed by eight bits a weight; not by F32 and F16.
        largest: what no change exceeds, where that is known: most chunks then need no check.

    Returns:
        uint8 of the shape of `raw`.
    """
    if kind.name in ("F32", "F16", "BF16"):
        return _add_to_floats(raw, delta, kind, generator)
    grid = grid_of(kind)
    blocks = raw.reshape(-1, kind.n_bytes)
    decoded = grid.decode(blocks)
    codes = _by_chance(decoded, grid, delta.reshape(decoded.codes.shape), generator, largest)
    return grid.with_codes(blocks, codes).reshape(raw.shape)


def _by_chance(
    decoded: Decoded, grid: Grid, delta: _Floats, generator: SFC64, largest: float
) -> _Bytes:
    """New codes; each step is an operation on a whole chunk that stays in the cache."""
    inverse = inverse_of(_usable(decoded.scale))
    by_chance = noise(generator, delta.size).reshape(delta.shape)
    if grid.levels is not None:
        steps = delta * inverse
        steps += grid.levels.take(decoded.codes)
        places: _Floats = between_levels(CPU, steps, grid.levels)
        places += by_chance * np.float32(1 / _NOISE)
        np.rint(places, out=places)
        return np.clip(places, grid.low, grid.high, out=places).astype(np.uint8)
    # From here on in units of the noise. Repeated, scales are multiplied in one go.
    inverse *= np.float32(_NOISE)
    with np.errstate(over="ignore"):
        delta *= np.repeat(inverse, delta.shape[-1], axis=-1)
    if not largest * float(np.abs(inverse).max()) < _FEW_STEPS * _NOISE:
        end = np.float32((grid.high - grid.low) * _NOISE)
        np.clip(delta, -end, end, out=delta)
    delta += by_chance.astype(np.float32)
    # Beside this, a float has room for whole steps only, and its lowest bits count them.
    delta += np.float32(1.5 * 2**23 * _NOISE)
    # Single bytes, where the sum of any code and any step fits into one.
    moved: NDArray[Any] = delta.view(np.int32).astype(np.int8 if grid.high < 64 else np.int16)
    codes: NDArray[Any] = decoded.codes.view(np.int8) if grid.high < 64 else decoded.codes
    moved += codes
    return np.clip(moved, grid.low, grid.high, out=moved).astype(np.uint8)


def add_compensated(
    raw: _Bytes,
    wished: _Floats,
    kind: TensorType,
    feedback: Feedback,
    dither: float,
    generator: SFC64,
) -> _Bytes:
    """Adds changes to quantised rows with the errors made good, keeping every scale.

    Args:
        raw: uint8 of shape (rows, bytes a row), of a quantised type.
        wished: float32 of shape (weights a row, rows), in the feedback's order; it is used up.
        kind: the type of `raw`, which the result has too.
        feedback: of the layer's input.
        dither: 0 rounds to nearest, 1 with a probability equal to the fraction.
        generator: consumed by eight bits a weight, unless `dither` is 0.

    Returns:
        uint8 of the shape of `raw`.
    """
    grid = grid_of(kind)
    blocks = raw.reshape(-1, kind.n_bytes)
    decoded = grid.decode(blocks)
    rows, order = len(raw), feedback.order
    grain = Grain(
        size=_usable(decoded.scale).reshape(rows, -1).T.copy(),
        group_of=order // decoded.codes.shape[2],
        low=grid.low,
        high=grid.high,
        levels=grid.levels,
    )

    def by_chance(n: int) -> _Floats:
        return noise(generator, n) * np.float32(dither / _NOISE)

    codes, _ = round_compensated(
        wished,
        transposed(decoded.codes.reshape(rows, -1)).take(order, axis=0),
        grain,
        feedback,
        by_chance if dither else None,
    )
    placed = np.empty_like(codes)
    placed[order] = codes
    return grid.with_codes(blocks, transposed(placed).reshape(decoded.codes.shape)).reshape(
        raw.shape
    )


def transposed(matrix: NDArray[Any]) -> NDArray[Any]:
    """A contiguous copy, columns as rows; in stripes, which numpy copies several times as fast."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), _STRIPE):
        result[:, start : start + _STRIPE] = matrix[start : start + _STRIPE].T
    return result


def _usable(scale: _Floats) -> _Floats:
    """Scales, and zero for what is not a number: those weights stay as they are, too."""
    return np.where(np.isfinite(scale), scale, np.float32(0))


def _add_to_floats(raw: _Bytes, delta: _Floats, kind: TensorType, generator: SFC64) -> _Bytes:
    delta += dequantize(raw, kind)
    return round_to_float(delta, kind, generator)


def round_to_float(values: _Floats, kind: TensorType, generator: SFC64) -> _Bytes:
    """Bytes of F32, F16 or BF16.

    F32 and F16 are finer than any change of a LoRA; BF16 is not: its lower bits are rounded by
    chance.
    """
    if kind.name != "BF16":
        return as_float_bytes(values, kind)
    bits = values.view(np.uint32)
    by_chance = generator.random_raw(-(-bits.size // 4)).view(np.uint16)[: bits.size]
    # What is not finite has no last bit to round.
    by_chance = np.where(np.isfinite(values), by_chance.reshape(bits.shape), np.uint16(0))
    return ((bits + by_chance) >> 16).astype(np.uint16).view(np.uint8)
