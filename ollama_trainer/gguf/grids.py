"""The grid of each tensor type: which values its codes stand for, and where the codes lie.

A quantised block holds scales and codes; weight = scale * level of the code + offset. Everything
here keeps the scales: `decode` takes a block's bytes apart, `with_codes` puts other codes into the
same block. No function here searches for new scales; `quantize` makes blocks with scales of their
own.

Layouts: ggml-common.h (structs) and ggml-quants.c (dequantize_row_*). Throughout, `raw` is a
uint8 array of shape (blocks, bytes a block); codes have shape (blocks, groups, weights a group),
where a group shares one scale. A scale that is not a number, as a broken file may hold, gives
values that are none.

A whole model passes through here, so codes stay single bytes and the steps few: numpy spends as
long on starting a row as on working through a hundred bytes of it. One thread is fastest on chunks
of some 250,000 weights, which stay in the processor's cache; several threads on chunks of a
million, since below that they mostly wait for Python's lock between two steps. Nothing here needs
torch, which alone takes seconds to load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.file import TensorType

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Codes with the line that they lie on."""

    #: (blocks, groups, weights): indices of levels, from 0.
    codes: _Bytes
    #: (blocks, groups, 1): the distance of two levels that differ by 1; may be negative or zero.
    scale: _Floats
    #: (blocks, groups, 1): the value of level 0.
    offset: _Floats
    #: The level of each code, ascending; None where the level of code c is c itself.
    levels: _Floats | None

    @property
    def values(self) -> _Floats:
        """float32 of the shape of the codes."""
        values = self._levels_of_codes()
        with np.errstate(invalid="ignore"):
            values *= self.scale
            values += self.offset
        return values

    def _levels_of_codes(self) -> _Floats:
        if self.levels is None:
            return self.codes.astype(np.float32)
        return self.levels.take(self.codes)


@dataclass(frozen=True, slots=True)
class Grid:
    """How one quantised type is read and rewritten."""

    #: Smallest and largest code that may be written.
    low: int
    high: int
    #: As in `Decoded`.
    levels: _Floats | None
    decode: Callable[[_Bytes], Decoded]
    #: (raw, codes) -> raw with these codes, which lie within low and high.
    with_codes: Callable[[_Bytes, _Bytes], _Bytes]


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


@dataclass(frozen=True, slots=True)
class _Plane:
    """Some bits of each code of a block, as ggml packs them.

    The bytes from `start` on are `parts` times `size` bytes. Within a part, the lowest `bits` bits
    of its bytes belong to the first `size` codes, the next `bits` bits to the following ones.
    """

    start: int
    size: int
    parts: int
    bits: int
    #: The lowest of these bits in a code.
    above: int = 0

    def read(self, raw: _Bytes) -> _Bytes:
        """(blocks, codes of a block): these bits of each code, where they stand in the code."""
        packed = _taken(raw, self.start, self.size * self.parts)
        packed = packed.reshape(len(raw), self.parts, self.size)
        codes = np.empty((len(raw), self.parts, 8 // self.bits, self.size), np.uint8)
        places = self._units(codes)
        mask = np.uint8(((1 << self.bits) - 1) << self.above)
        for index in range(codes.shape[2]):
            field = _shifted(packed, self.above - index * self.bits)
            places[:, :, index] = self._units(field & mask)
        return codes.reshape(len(raw), -1)

    def write(self, raw: _Bytes, codes: _Bytes) -> None:
        """Puts these bits of contiguous codes into `raw`, of which nothing else changes."""
        shape = (len(raw), self.parts, 8 // self.bits, self.size)
        places = self._units(codes.view(np.uint8).reshape(shape))
        packed = np.zeros((len(raw), self.size * self.parts), np.uint8)
        mask = np.uint8(((1 << self.bits) - 1) << self.above)
        for index in range(shape[2]):
            field = places[:, :, index].copy().view(np.uint8).reshape(packed.shape)
            field &= mask
            packed |= _shifted(field, index * self.bits - self.above)
        _put(raw, self.start, packed)

    def _units(self, codes: _Bytes) -> NDArray[np.void]:
        """Rows of `size` bytes as one item each: numpy copies those several times as fast."""
        return codes.view(np.dtype((np.void, self.size)))[..., 0]


def _shifted(values: _Bytes, bits: int) -> _Bytes:
    """To the left, or to the right where `bits` is negative; no copy where it is 0."""
    if bits == 0:
        return values
    # numpy multiplies many bytes at once, but shifts them to the left one by one.
    return values >> np.uint8(-bits) if bits < 0 else values * np.uint8(1 << bits)


def _taken(raw: _Bytes, start: int, n_bytes: int) -> _Bytes:
    """Bytes from `start` on of each block, copied: shape (blocks, n_bytes)."""
    units = raw[:, start : start + n_bytes].view(np.dtype((np.void, n_bytes)))
    return units.copy().view(np.uint8).reshape(len(raw), n_bytes)


def _put(raw: _Bytes, start: int, packed: _Bytes) -> None:
    """The inverse of `_taken`: writes (blocks, n_bytes) into the blocks."""
    unit = np.dtype((np.void, packed.shape[1]))
    raw[:, start : start + packed.shape[1]].view(unit)[...] = packed.view(unit)


def _half(raw: _Bytes, start: int) -> _Floats:
    """The float16 at byte `start` of each block, as float32 of shape (blocks, 1)."""
    return raw[:, start : start + 2].view(np.float16).astype(np.float32)


def _decoded(
    codes: _Bytes, scale: _Floats, offset: _Floats, levels: _Floats | None = None
) -> Decoded:
    """From flat codes (blocks, weights) and (blocks, groups) of the others."""
    shape = (*scale.shape, codes.shape[1] // scale.shape[1])
    return Decoded(codes.reshape(shape), scale[..., None], offset[..., None], levels)


def _times(scale: _Floats, groups: _Floats | np.float32) -> _Floats:
    """(blocks, 1) times (blocks, groups), without complaint where a scale is not a number."""
    with np.errstate(invalid="ignore"):
        return scale * groups


def _with_planes(*planes: _Plane) -> Callable[[_Bytes, _Bytes], _Bytes]:
    """`Grid.with_codes` of a type whose codes lie in these planes."""

    def with_codes(raw: _Bytes, codes: _Bytes) -> _Bytes:
        result = raw.copy()
        contiguous = np.ascontiguousarray(codes)
        for plane in planes:
            plane.write(result, contiguous)
        return result

    return with_codes


def _block32(*, bits: int, has_minimum: bool) -> Grid:
    """Q4_0, Q4_1, Q5_0 and Q5_1: a scale, perhaps a minimum, perhaps fifth bits, 16 bytes."""
    high_at = 4 if has_minimum else 2
    plane = _Plane(high_at + (4 if bits == 5 else 0), 16, 1, 4)
    write_low = _with_planes(plane)
    centre = np.float32(0 if has_minimum else 1 << (bits - 1))

    def decode(raw: _Bytes) -> Decoded:
        codes = plane.read(raw)
        if bits == 5:
            high = np.unpackbits(_taken(raw, high_at, 4).reshape(-1), bitorder="little")
            codes |= _shifted(high, 4).reshape(codes.shape)
        scale = _half(raw, 0)
        return _decoded(codes, scale, _half(raw, 2) if has_minimum else _times(scale, -centre))

    def with_codes(raw: _Bytes, codes: _Bytes) -> _Bytes:
        result = write_low(raw, codes)
        if bits == 5:
            high = np.packbits(codes.reshape(-1) & np.uint8(16), bitorder="little")
            _put(result, high_at, high.reshape(len(raw), 4))
        return result

    return Grid(0, (1 << bits) - 1, None, decode, with_codes)


def _decode_q8_0(raw: _Bytes) -> Decoded:
    scale = _half(raw, 0)
    # A signed byte plus 128 is the same byte with its first bit turned over.
    return _decoded(_taken(raw, 2, 32) ^ np.uint8(128), scale, _times(scale, np.float32(-128)))


def _q8_0_with_codes(raw: _Bytes, codes: _Bytes) -> _Bytes:
    result = raw.copy()
    _put(result, 2, codes.reshape(len(raw), 32) ^ np.uint8(128))
    return result


def _scales_and_minima(raw: _Bytes) -> tuple[_Floats, _Floats]:
    """The eight 6-bit scales and minima that Q4_K and Q5_K pack into bytes 4 to 15."""
    # Four bytes at once; no shift here carries a bit that is kept from one byte into another.
    first, second, both = _taken(raw, 4, 12).view(np.uint32).T
    six, four, two = np.uint32(0x3F3F3F3F), np.uint32(0x0F0F0F0F), np.uint32(0x30303030)
    groups = np.empty((2, len(raw), 2), np.uint32)
    groups[0, :, 0] = first & six
    groups[0, :, 1] = (both & four) | ((first >> 2) & two)
    groups[1, :, 0] = second & six
    groups[1, :, 1] = ((both >> 4) & four) | ((second >> 2) & two)
    scales, minima = groups.view(np.uint8).astype(np.float32)
    return scales, minima


def _k45(*, bits: int) -> Grid:
    """Q4_K and Q5_K: eight groups of 32 with a scale and a minimum each."""
    low = _Plane(48 if bits == 5 else 16, 32, 4, 4)
    high = _Plane(16, 32, 1, 1, above=4)

    def decode(raw: _Bytes) -> Decoded:
        codes = low.read(raw)
        if bits == 5:
            codes |= high.read(raw)
        scales, minima = _scales_and_minima(raw)
        return _decoded(codes, _times(_half(raw, 0), scales), _times(-_half(raw, 2), minima))

    planes = (low, high) if bits == 5 else (low,)
    return Grid(0, (1 << bits) - 1, None, decode, _with_planes(*planes))


_Q6_K_LOW = _Plane(0, 64, 2, 4)
_Q6_K_HIGH = _Plane(128, 32, 2, 2, above=4)


def _decode_q6_k(raw: _Bytes) -> Decoded:
    codes = _Q6_K_LOW.read(raw)
    codes |= _Q6_K_HIGH.read(raw)
    groups = _taken(raw, 192, 16).view(np.int8).astype(np.float32)
    scale = _times(_half(raw, 208), groups)
    return _decoded(codes, scale, _times(scale, np.float32(-32)))


_Q3_K_LOW = _Plane(32, 32, 2, 2)
_Q3_K_HIGH = _Plane(0, 32, 1, 1, above=2)
_Q3_K_SCALES = (_Plane(96, 8, 1, 4), _Plane(104, 4, 1, 2, above=4))


def _decode_q3_k(raw: _Bytes) -> Decoded:
    codes = _Q3_K_LOW.read(raw)
    codes |= _Q3_K_HIGH.read(raw)
    scale = _times(_half(raw, 108), _centred_scales(raw, _Q3_K_SCALES))
    return _decoded(codes, scale, _times(scale, np.float32(-4)))


def _centred_scales(raw: _Bytes, planes: tuple[_Plane, _Plane]) -> _Floats:
    """(blocks, groups): scales of six bits in two planes, where 32 stands for zero."""
    groups = (planes[0].read(raw) | planes[1].read(raw)).astype(np.float32)
    groups -= 32
    return groups


_Q2_K_CODES = _Plane(16, 32, 2, 2)
_Q2_K_SCALES = _Plane(0, 16, 1, 4)


def _decode_q2_k(raw: _Bytes) -> Decoded:
    groups = _Q2_K_SCALES.read(raw).reshape(len(raw), 2, 16).astype(np.float32)
    scale, minimum = _half(raw, 80), _half(raw, 82)
    return _decoded(
        _Q2_K_CODES.read(raw), _times(scale, groups[:, 0]), _times(-minimum, groups[:, 1])
    )


#: Source: kvalues_iq4nl in ggml-common.h.
_IQ4_LEVELS = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.float32
)
_IQ4_LEVELS.flags.writeable = False
_IQ4_NL_CODES = _Plane(2, 16, 1, 4)
_IQ4_XS_CODES = _Plane(8, 16, 8, 4)
_IQ4_XS_SCALES = (_Plane(4, 1, 4, 4), _Plane(2, 1, 2, 2, above=4))


def _decode_iq4_nl(raw: _Bytes) -> Decoded:
    scale = _half(raw, 0)
    return _decoded(_IQ4_NL_CODES.read(raw), scale, np.zeros_like(scale), _IQ4_LEVELS)


def _decode_iq4_xs(raw: _Bytes) -> Decoded:
    scale = _times(_half(raw, 0), _centred_scales(raw, _IQ4_XS_SCALES))
    return _decoded(_IQ4_XS_CODES.read(raw), scale, np.zeros_like(scale), _IQ4_LEVELS)


_GRIDS = {
    "Q4_0": _block32(bits=4, has_minimum=False),
    "Q4_1": _block32(bits=4, has_minimum=True),
    "Q5_0": _block32(bits=5, has_minimum=False),
    "Q5_1": _block32(bits=5, has_minimum=True),
    # Code 0 would be -128, which ggml itself never makes, and some of its kernels negate it.
    "Q8_0": Grid(1, 255, None, _decode_q8_0, _q8_0_with_codes),
    "Q4_K": _k45(bits=4),
    "Q5_K": _k45(bits=5),
    "Q6_K": Grid(0, 63, None, _decode_q6_k, _with_planes(_Q6_K_LOW, _Q6_K_HIGH)),
    "Q3_K": Grid(0, 7, None, _decode_q3_k, _with_planes(_Q3_K_LOW, _Q3_K_HIGH)),
    "Q2_K": Grid(0, 3, None, _decode_q2_k, _with_planes(_Q2_K_CODES)),
    "IQ4_NL": Grid(0, 15, _IQ4_LEVELS, _decode_iq4_nl, _with_planes(_IQ4_NL_CODES)),
    "IQ4_XS": Grid(0, 15, _IQ4_LEVELS, _decode_iq4_xs, _with_planes(_IQ4_XS_CODES)),
}
_FLOATS = ("F32", "F16", "BF16")
#: Types that a LoRA can be merged into.
MERGEABLE = frozenset(_GRIDS) | frozenset(_FLOATS)


def dequantize(raw: _Bytes, kind: TensorType) -> _Floats:
    """Values of rows: uint8 of shape (rows, bytes a row) -> float32 of shape (rows, weights).

    Raises:
        ExportError: the type has no grid here.
    """
    if kind.name in _FLOATS:
        return _float_values(np.ascontiguousarray(raw), kind)
    blocks = raw.reshape(-1, kind.n_bytes)
    return grid_of(kind).decode(blocks).values.reshape(len(raw), -1)


def _float_values(raw: _Bytes, kind: TensorType) -> _Floats:
    if kind.name == "BF16":
        # A bfloat16 is the upper half of a float32.
        bits = raw.view(np.uint16).astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return raw.view(np.float16 if kind.name == "F16" else np.float32).astype(np.float32)


def as_float_bytes(values: _Floats, kind: TensorType) -> _Bytes:
    """float32 of shape (rows, weights) -> bytes of F32, F16 or BF16, rounded to nearest even.

    What is too large for the type becomes infinite, and what is not a number stays none.
    """
    values = np.ascontiguousarray(values, np.float32)
    if kind.name == "BF16":
        return _bfloat16_bytes(values)
    with np.errstate(over="ignore"):
        return values.astype(np.float16 if kind.name == "F16" else np.float32).view(np.uint8)


def _bfloat16_bytes(values: _Floats) -> _Bytes:
    bits = values.view(np.uint32)
    rounded = bits >> 16
    # Just below half of the last bit that is kept, or half of it where that bit is set.
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    halves = rounded.astype(np.uint16)
    # Rounding up may carry the bits of what is not a number into those of an infinity or of zero.
    halves[np.isnan(values)] = 0x7FC0
    return halves.view(np.uint8)
