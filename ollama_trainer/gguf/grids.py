"""The grid of each tensor type: which values its codes stand for, and where the codes lie.

A quantised block holds scales and codes; weight = scale * code + offset. Everything here keeps the
scales: `decode` takes a block's bytes apart, `with_codes` puts other codes into the same block.
No function here searches for new scales; `quantize` makes blocks with scales of their own.

Layouts: ggml-common.h (structs) and ggml-quants.c (dequantize_row_*). Throughout, `raw` is a
uint8 tensor of shape (blocks, bytes a block); the results have shape (blocks, groups, weights a
group), where a group shares one scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.file import TensorType

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Decoded:
    """Codes with the line that they lie on; float32 throughout."""

    #: (blocks, groups, weights): whole numbers.
    codes: Tensor
    #: (blocks, groups, 1): the distance of two neighbouring values; may be negative or zero.
    scale: Tensor
    #: (blocks, groups, 1): the value of code 0.
    offset: Tensor

    @property
    def values(self) -> Tensor:
        return self.scale * self.codes + self.offset


@dataclass(frozen=True, slots=True)
class Grid:
    """How one quantised type is read and rewritten."""

    #: Smallest and largest code.
    low: int
    high: int
    decode: Callable[[Tensor], Decoded]
    #: (raw, codes) -> raw with these codes; codes are whole numbers within low and high.
    with_codes: Callable[[Tensor, Tensor], Tensor]


def grid_of(kind: TensorType) -> Grid:
    """The grid of a quantised type.

    Raises:
        ExportError: the type has no grid here.
    """
    try:
        return _GRIDS[kind.name]
    except KeyError:
        raise ExportError(
            f"A LoRA cannot be merged into tensors of the type {kind.name}",
            f"Use a base whose tensors are of {', '.join(sorted(MERGEABLE))}.",
        ) from None


def _half(raw: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, as float32 of shape (blocks, 1, 1)."""
    import torch

    return raw[:, start : start + 2].contiguous().view(torch.float16).float().unsqueeze(-1)


def _nibbles(packed: Tensor) -> Tensor:
    """(blocks, parts, n) bytes -> (blocks, parts, 2, n): low halves, then high halves."""
    import torch

    return torch.stack((packed & 15, packed >> 4), dim=2)


def _pack_nibbles(codes: Tensor) -> Tensor:
    """The inverse of `_nibbles`."""
    return codes[:, :, 0] | (codes[:, :, 1] << 4)


def _bits(raw: Tensor, start: int) -> Tensor:
    """Bit i of the 32-bit number at byte `start`, as (blocks, 1, 32) of 0 and 1."""
    import torch

    shifts = torch.arange(8, dtype=torch.uint8)
    return ((raw[:, start : start + 4, None] >> shifts) & 1).reshape(len(raw), 1, 32)


def _pack_bits(bits: Tensor) -> Tensor:
    """The inverse of `_bits`: (blocks, 1, 32) -> (blocks, 4) bytes."""
    import torch

    weights = (1 << torch.arange(8)).to(torch.int32)
    return (bits.reshape(len(bits), 4, 8).int() * weights).sum(-1).to(torch.uint8)


def _replaced(raw: Tensor, start: int, packed: Tensor) -> Tensor:
    result = raw.clone()
    flat = packed.reshape(len(raw), -1)
    result[:, start : start + flat.shape[1]] = flat
    return result


def _block32(*, bits: int, has_minimum: bool) -> Grid:
    """Q4_0, Q4_1, Q5_0 and Q5_1: a scale, perhaps a minimum, perhaps fifth bits, 16 bytes."""
    codes_at = (4 if has_minimum else 2) + (4 if bits == 5 else 0)
    high_at = codes_at - 4
    centre = 0 if has_minimum else 1 << (bits - 1)

    def decode(raw: Tensor) -> Decoded:
        codes = _nibbles(raw[:, None, codes_at : codes_at + 16]).reshape(len(raw), 1, 32)
        if bits == 5:
            codes = codes | (_bits(raw, high_at) << 4)
        scale = _half(raw, 0)
        offset = _half(raw, 2) if has_minimum else -centre * scale
        return Decoded(codes.float(), scale, offset)

    def with_codes(raw: Tensor, codes: Tensor) -> Tensor:
        whole = codes.byte()
        low = _pack_nibbles((whole & 15).reshape(len(raw), 1, 2, 16))
        result = _replaced(raw, codes_at, low)
        return _replaced(result, high_at, _pack_bits(whole >> 4)) if bits == 5 else result

    return Grid(0, (1 << bits) - 1, decode, with_codes)


def _decode_q8_0(raw: Tensor) -> Decoded:
    import torch

    scale = _half(raw, 0)
    codes = raw[:, 2:].contiguous().view(torch.int8).float().unsqueeze(1)
    return Decoded(codes, scale, torch.zeros_like(scale))


def _q8_0_with_codes(raw: Tensor, codes: Tensor) -> Tensor:
    import torch

    return _replaced(raw, 2, codes.to(torch.int8).view(torch.uint8))


def _scales_and_minima(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and minima that Q4_K and Q5_K pack into bytes 4 to 15."""
    import torch

    a, b, c = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat((a & 63, (c & 15) | ((a >> 6) << 4)), dim=1)
    minima = torch.cat((b & 63, (c >> 4) | ((b >> 6) << 4)), dim=1)
    return scales.float().unsqueeze(-1), minima.float().unsqueeze(-1)


def _k45(*, bits: int) -> Grid:
    """Q4_K and Q5_K: eight groups of 32 with a scale and a minimum each."""
    codes_at = 48 if bits == 5 else 16

    def decode(raw: Tensor) -> Decoded:
        import torch

        packed = raw[:, codes_at : codes_at + 128].reshape(len(raw), 4, 32)
        codes = _nibbles(packed).reshape(len(raw), 8, 32)
        if bits == 5:
            shifts = torch.arange(8, dtype=torch.uint8)[:, None]
            codes = codes | (((raw[:, None, 16:48] >> shifts) & 1) << 4)
        scales, minima = _scales_and_minima(raw)
        return Decoded(codes.float(), _half(raw, 0) * scales, -_half(raw, 2) * minima)

    def with_codes(raw: Tensor, codes: Tensor) -> Tensor:
        import torch

        whole = codes.byte()
        low = _pack_nibbles((whole & 15).reshape(len(raw), 4, 2, 32))
        result = _replaced(raw, codes_at, low)
        if bits == 4:
            return result
        weights = (1 << torch.arange(8)).to(torch.int32)[:, None]
        high = ((whole >> 4).int() * weights).sum(1).to(torch.uint8)
        return _replaced(result, 16, high)

    return Grid(0, (1 << bits) - 1, decode, with_codes)


def _decode_q6_k(raw: Tensor) -> Decoded:
    import torch

    low = _nibbles(raw[:, :128].reshape(len(raw), 2, 64)).reshape(len(raw), 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (raw[:, 128:192].reshape(len(raw), 2, 1, 32) >> shifts) & 3
    codes = (low | (high << 4)).reshape(len(raw), 16, 16).float()
    groups = raw[:, 192:208].contiguous().view(torch.int8).float().unsqueeze(-1)
    scale = _half(raw, 208) * groups
    return Decoded(codes, scale, -32 * scale)


def _q6_k_with_codes(raw: Tensor, codes: Tensor) -> Tensor:
    import torch

    whole = codes.byte().reshape(len(raw), 2, 4, 32)
    low = _pack_nibbles((whole & 15).reshape(len(raw), 2, 2, 64))
    weights = torch.tensor([1, 4, 16, 64], dtype=torch.int32)[:, None]
    high = ((whole >> 4).int() * weights).sum(2).to(torch.uint8)
    return _replaced(_replaced(raw, 0, low), 128, high)


_GRIDS = {
    "Q4_0": _block32(bits=4, has_minimum=False),
    "Q4_1": _block32(bits=4, has_minimum=True),
    "Q5_0": _block32(bits=5, has_minimum=False),
    "Q5_1": _block32(bits=5, has_minimum=True),
    # -128 is never made by ggml itself, and some of its kernels negate codes.
    "Q8_0": Grid(-127, 127, _decode_q8_0, _q8_0_with_codes),
    "Q4_K": _k45(bits=4),
    "Q5_K": _k45(bits=5),
    "Q6_K": Grid(0, 63, _decode_q6_k, _q6_k_with_codes),
}
_FLOATS = ("F32", "F16", "BF16")
#: Types that a LoRA can be merged into.
MERGEABLE = frozenset(_GRIDS) | frozenset(_FLOATS)


def dequantize(raw: Tensor, kind: TensorType) -> Tensor:
    """Values of blocks: uint8 of shape (rows, bytes a row) -> float32 of shape (rows, weights)."""
    import torch

    if kind.name in _FLOATS:
        return raw.contiguous().view(getattr(torch, _TORCH_NAME[kind.name])).float()
    blocks = raw.reshape(-1, kind.n_bytes)
    return grid_of(kind).decode(blocks).values.reshape(len(raw), -1)


def as_float_bytes(values: Tensor, kind: TensorType) -> Tensor:
    """float32 of shape (rows, weights) -> bytes of F32, F16 or BF16, rounded to nearest even."""
    import torch

    return values.to(getattr(torch, _TORCH_NAME[kind.name])).contiguous().view(torch.uint8)


_TORCH_NAME = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
