"""Arrays of a safetensors file, read as they are asked for.

safetensors' own reader needs torch where a file holds bfloat16, and reads whole arrays. Layout (the
safetensors README): eight bytes with the header's length, little-endian; a header in JSON, name ->
type, shape and range of bytes; the bytes. Ranges are checked against the file before they are used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: safetensors' own bound.
_MAX_HEADER_BYTES = 100_000_000
#: Types that are read here; bfloat16 is the upper half of a float32.
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4"}


@dataclass(frozen=True, slots=True)
class _Place:
    kind: str
    shape: tuple[int, ...]
    #: Byte of the file at which the array begins.
    start: int


class StoredArrays(Mapping[str, NDArray[Any]]):
    """Name -> array: float32 for BF16, else the type that it is stored in.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or is not whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as handle:
            size = path.stat().st_size
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError("it does not begin with a header")
            try:
                header = json.loads(handle.read(length))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"its header is no JSON: {error}") from error
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        header.pop("__metadata__", None)
        self._places = {
            name: _place(name, entry, 8 + length, size) for name, entry in header.items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        return self.part(name, 0, math.prod(place.shape)).reshape(place.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, which is not read for it."""
        return self._places[name].shape

    def part(self, name: str, start: int, count: int) -> NDArray[Any]:
        """`count` numbers of an array from number `start` on, in one dimension."""
        place = self._places[name]
        if start + count > math.prod(place.shape):
            raise ValueError(f"{name} ends before number {start + count}")
        kind = np.dtype(_TYPES[place.kind])
        offset = place.start + start * kind.itemsize
        values = np.fromfile(self._path, kind, count, offset=offset)
        if len(values) != count:
            raise ValueError(f"it ended before the end of {name}")
        return _widened(values) if place.kind == "BF16" else values


def _widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _place(name: str, entry: Any, data_start: int, size: int) -> _Place:
    """The checked entry of a header."""
    try:
        kind, shape = str(entry["dtype"]), tuple(entry["shape"])
        start, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the entry of {name!r} cannot be read") from error
    if kind not in _TYPES:
        raise ValueError(f"{name!r} is of the type {kind}; {', '.join(_TYPES)} can be read")
    # Exactly int: True is one too.
    if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
        raise ValueError(f"the entry of {name!r} holds what is no count")
    if math.prod(shape) * np.dtype(_TYPES[kind]).itemsize != end - start:
        raise ValueError(f"{name!r} has {end - start} bytes for the shape {shape}")
    if data_start + end > size:
        raise ValueError(f"{name!r} ends past the end of the file")
    return _Place(kind, shape, data_start + start)
