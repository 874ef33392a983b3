"""How a value between two codes becomes one of them.

A LoRA's change to a weight is a few hundredths of the distance between two codes of a 4-bit base.
Rounding to nearest throws all such changes away; rounding up with a probability equal to the
fraction keeps every one of them in expectation, and a layer sums over hundreds of weights. Where
the inputs of a layer are known, compensation.py does better still: its noise costs nearly nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ollama_trainer.gguf.compensation import Feedback, round_compensated
from ollama_trainer.gguf.file import TensorType
from ollama_trainer.gguf.grids import Decoded, Grid, as_float_bytes, grid_of

if TYPE_CHECKING:
    from torch import Generator, Tensor


def generator_for(seed: int, tensor_name: str) -> Generator:
    """A generator that depends on the seed and the tensor alone, not on the order of tensors."""
    import torch

    digest = hashlib.sha256(f"{seed}:{tensor_name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True, slots=True)
class Compensation:
    """What compensated rounding needs beside the weights."""

    feedback: Feedback
    dither: float


def add_on_grid(
    raw: Tensor,
    delta: Tensor,
    kind: TensorType,
    generator: Generator,
    compensation: Compensation | None = None,
) -> Tensor:
    """Adds `delta` to quantised rows, keeping every scale.

    Args:
        raw: uint8 of shape (rows, bytes a row).
        delta: float32 of shape (rows, weights a row).
        kind: the type of `raw`, which the result has too.
        generator: consumed by one number a weight, except for F32 and F16.
        compensation: rounds with the errors made good; without it, rounding is stochastic.

    Returns:
        uint8 of the shape of `raw`.
    """
    if kind.name in ("F32", "F16", "BF16"):
        return _add_to_floats(raw, delta, kind, generator)
    grid = grid_of(kind)
    blocks = raw.reshape(-1, kind.n_bytes)
    decoded = grid.decode(blocks)
    if compensation is None:
        codes = _stochastic(decoded, delta, generator)
    else:
        codes = _compensated(decoded, grid, delta, compensation, generator)
    return grid.with_codes(blocks, codes.clamp_(grid.low, grid.high)).reshape(raw.shape)


def _stochastic(decoded: Decoded, delta: Tensor, generator: Generator) -> Tensor:
    import torch

    steps = delta.reshape(decoded.codes.shape) / decoded.scale
    # A scale of zero has one value only, whatever the code.
    steps = torch.nan_to_num(steps, nan=0.0, posinf=0.0, neginf=0.0)
    noise = torch.rand(steps.shape, generator=generator)
    # The code is added last: beside it, a noise just below 1 would round up to 1.
    return (steps + noise).floor_() + decoded.codes


def _compensated(
    decoded: Decoded, grid: Grid, delta: Tensor, compensation: Compensation, generator: Generator
) -> Tensor:
    codes = decoded.codes.reshape(delta.shape)
    scale = decoded.scale.expand(decoded.codes.shape).reshape(delta.shape)
    steps = round_compensated(
        delta,
        scale,
        (grid.low - codes, grid.high - codes),
        compensation.feedback,
        compensation.dither,
        generator,
    )
    return (codes + steps).reshape(decoded.codes.shape)


def _add_to_floats(raw: Tensor, delta: Tensor, kind: TensorType, generator: Generator) -> Tensor:
    """F32 and F16 are finer than any delta; BF16 is not: its lower bits are rounded by chance."""
    import torch

    if kind.name == "F32":
        return as_float_bytes(raw.view(torch.float32) + delta, kind)
    if kind.name == "F16":
        return as_float_bytes(raw.view(torch.float16).float() + delta, kind)
    values = raw.view(torch.bfloat16).float() + delta
    bits = values.view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32)
    finite = torch.isfinite(values)
    rounded = torch.where(finite, (bits + noise) & -65536, bits & -65536)
    return as_float_bytes(rounded.view(torch.float32), kind)
