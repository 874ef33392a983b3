"""GGUF files: the header, read with the byte range of every entry, and written back.

Source: the GGUF specification, version 3 (ggml/docs/gguf.md). Every count, length and offset is
checked against the size of the file before it is used, since GGUF files come from anywhere.

The ranges are the point: metadata that nobody means to change is copied as the bytes that it is.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from ollama_trainer.errors import GgufError

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
#: No model comes near; a hostile header may.
_MAX_ENTRIES = 1 << 20
_MAX_NAME_BYTES = 1 << 16
_MAX_DIMENSIONS = 4
_MAX_ARRAY_DEPTH = 4

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorType:
    """A ggml tensor type: `block` weights lie in `n_bytes` bytes."""

    id: int
    name: str
    block: int
    n_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / self.block


#: Source: ggml.h (enum ggml_type) and the block structs of ggml-common.h.
TENSOR_TYPES = {
    kind.id: kind
    for kind in (
        TensorType(0, "F32", 1, 4),
        TensorType(1, "F16", 1, 2),
        TensorType(2, "Q4_0", 32, 18),
        TensorType(3, "Q4_1", 32, 20),
        TensorType(6, "Q5_0", 32, 22),
        TensorType(7, "Q5_1", 32, 24),
        TensorType(8, "Q8_0", 32, 34),
        TensorType(10, "Q2_K", 256, 84),
        TensorType(11, "Q3_K", 256, 110),
        TensorType(12, "Q4_K", 256, 144),
        TensorType(13, "Q5_K", 256, 176),
        TensorType(14, "Q6_K", 256, 210),
        TensorType(20, "IQ4_NL", 32, 18),
        TensorType(23, "IQ4_XS", 256, 136),
        TensorType(24, "I8", 1, 1),
        TensorType(25, "I16", 1, 2),
        TensorType(26, "I32", 1, 4),
        TensorType(30, "BF16", 1, 2),
    )
}
TYPE_BY_NAME = {kind.name: kind for kind in TENSOR_TYPES.values()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's entry in the header.

    `shape` is in GGUF's order: the first number counts the weights of one row (the input
    features of a linear layer), the second the rows. `offset` counts from the data section.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def row_length(self) -> int:
        return self.shape[0]

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        return self.row_length // self.type.block * self.type.n_bytes

    @property
    def n_bytes(self) -> int:
        return self.row_bytes * self.n_rows


@dataclass(frozen=True, slots=True)
class Entry:
    """A metadata entry: its value, and the bytes (key, type, value) that it stands in."""

    value: Any
    raw: bytes


@dataclass(frozen=True)
class GgufFile:
    """A GGUF's header. The tensors stay on disk."""

    path: Path
    metadata: Mapping[str, Entry]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    #: Byte at which the data section begins.
    data_start: int

    def get(self, key: str, default: Any = None) -> Any:
        entry = self.metadata.get(key)
        return default if entry is None else entry.value

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture", ""))

    def hyperparameter(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.<key>`."""
        return self.get(f"{self.architecture}.{key}", default)

    @cached_property
    def by_name(self) -> dict[str, TensorInfo]:
        return {tensor.name: tensor for tensor in self.tensors}

    def open(self) -> TensorReader:
        """Reads tensors' bytes, from any thread; a context manager."""
        return TensorReader(self)


class TensorReader:
    """The data of a GGUF's tensors, read piece by piece. Made by `GgufFile.open`."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf
        self._lock = threading.Lock()

    def __enter__(self) -> TensorReader:
        self._handle = self._gguf.path.open("rb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def read(self, tensor: TensorInfo, start: int, n_bytes: int) -> bytes:
        """Some bytes of a tensor.

        Raises:
            GgufError: the file ended, since it was changed after its header was read.
        """
        with self._lock:
            self._handle.seek(self._gguf.data_start + tensor.offset + start)
            data = self._handle.read(n_bytes)
        if len(data) != n_bytes:
            raise GgufError(
                f"{self._gguf.path} ended while it was read",
                "Leave the base alone while a run uses it, and start the run again.",
            )
        return data


class _Reader:
    """Reads little-endian values and refuses to go past the end of the file."""

    def __init__(self, handle: BinaryIO, size: int, path: Path) -> None:
        self._handle, self._size, self._path = handle, size, path
        self.position = 0

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > self._size - self.position:
            raise self.damaged(f"the header asks for {n_bytes} bytes past the end of the file")
        data = self._handle.read(n_bytes)
        self.position += len(data)
        if len(data) != n_bytes:
            raise self.damaged("it ended while it was read")
        return data

    def scalar(self, letter: str) -> Any:
        form = "<" + letter
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self, limit: int | None = None) -> str:
        length = self.scalar("Q")
        if limit is not None and length > limit:
            raise self.damaged(f"a name of {length} bytes")
        return self.take(length).decode("utf-8", "surrogateescape")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY or depth >= _MAX_ARRAY_DEPTH:
            raise self.damaged(f"a metadata value of the unknown type {kind}")
        item, count = self.scalar("I"), self.scalar("Q")
        if item in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[item])
            return list(
                struct.unpack(f"<{count}{_SCALARS[item]}", self.take(self._fit(count, width)))
            )
        self._fit(count, 8)
        return [self.value(item, depth + 1) for _ in range(count)]

    def _fit(self, count: int, width: int) -> int:
        if count * width > self._size - self.position:
            raise self.damaged(f"an array of {count} items does not fit into the file")
        return count * width

    def raw(self, start: int) -> bytes:
        """The bytes from `start` to here."""
        length = self.position - start
        self._handle.seek(start)
        return self._handle.read(length)

    def damaged(self, what: str) -> GgufError:
        return GgufError(
            f"{self._path} is not a whole GGUF file: {what}", "Fetch or make the file again."
        )


def read_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF file.

    Raises:
        GgufError: the file cannot be read, or its header does not fit its size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            return _read(_Reader(handle, size, path), size, path)
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror}") from error


def _read(reader: _Reader, size: int, path: Path) -> GgufFile:
    if size < 24 or reader.take(4) != MAGIC:
        raise reader.damaged("it does not begin with GGUF")
    version = reader.scalar("I")
    if version not in (2, 3):
        raise GgufError(
            f"{path} has GGUF version {version}", "Versions 2 and 3 can be read, little-endian."
        )
    n_tensors, n_entries = reader.scalar("Q"), reader.scalar("Q")
    if n_tensors > _MAX_ENTRIES or n_entries > _MAX_ENTRIES:
        raise reader.damaged(f"{n_tensors} tensors and {n_entries} metadata entries")
    metadata = _read_metadata(reader, n_entries)
    infos = [_read_tensor_info(reader) for _ in range(n_tensors)]
    alignment = metadata["general.alignment"].value if "general.alignment" in metadata else None
    alignment = DEFAULT_ALIGNMENT if alignment is None else alignment
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise reader.damaged(f"an alignment of {alignment}")
    data_start = -(-reader.position // alignment) * alignment
    file = GgufFile(path, metadata, tuple(infos), alignment, data_start)
    _check_ranges(file, size, reader)
    return file


def _read_metadata(reader: _Reader, n_entries: int) -> dict[str, Entry]:
    metadata: dict[str, Entry] = {}
    for _ in range(n_entries):
        start = reader.position
        key = reader.string(_MAX_NAME_BYTES)
        value = reader.value(reader.scalar("I"))
        if key in metadata:
            raise reader.damaged(f"the key {key!r} stands twice")
        metadata[key] = Entry(value, reader.raw(start))
    return metadata


def _read_tensor_info(reader: _Reader) -> TensorInfo:
    name = reader.string(_MAX_NAME_BYTES)
    n_dimensions = reader.scalar("I")
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise reader.damaged(f"the tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(reader.scalar("Q") for _ in range(n_dimensions))
    type_id, offset = reader.scalar("I"), reader.scalar("Q")
    kind = TENSOR_TYPES.get(type_id)
    if kind is None:
        raise GgufError(
            f"The tensor {name!r} is of the ggml type {type_id}, which is not supported",
            f"Use a file whose tensors are of {', '.join(TYPE_BY_NAME)}.",
        )
    if math.prod(shape) > 1 << 48 or shape[0] % kind.block:
        raise reader.damaged(f"the tensor {name!r} has the shape {shape} and the type {kind.name}")
    return TensorInfo(name, shape, kind, offset)


def _check_ranges(file: GgufFile, size: int, reader: _Reader) -> None:
    if len(file.by_name) != len(file.tensors):
        raise reader.damaged("two tensors have one name")
    for tensor in file.tensors:
        end = file.data_start + tensor.offset + tensor.n_bytes
        if tensor.offset % file.alignment:
            raise reader.damaged(
                f"the tensor {tensor.name!r} begins at byte {tensor.offset} of the data, which is"
                f" no multiple of {file.alignment}"
            )
        if end > size:
            raise reader.damaged(
                f"the tensor {tensor.name!r} ends at byte {end}, the file at byte {size}"
            )
    # llama.cpp refuses these too; here a small file could ask for an endless result.
    free = 0
    for tensor in sorted(file.tensors, key=lambda tensor: tensor.offset):
        if tensor.n_bytes and tensor.offset < free:
            raise reader.damaged(f"the tensor {tensor.name!r} overlaps the one before it")
        free = max(free, tensor.offset + tensor.n_bytes)


def string_entry(key: str, value: str) -> Entry:
    """A metadata entry that holds a string."""
    return Entry(value, _string(key) + struct.pack("<I", _STRING) + _string(value))


def uint32_entry(key: str, value: int) -> Entry:
    """A metadata entry that holds an unsigned 32-bit number."""
    return Entry(value, _string(key) + struct.pack("<II", 4, value))


def laid_out(tensors: Iterable[TensorInfo], alignment: int) -> tuple[TensorInfo, ...]:
    """The tensors in their order, with offsets that follow one another, padded to `alignment`."""
    result, position = [], 0
    for tensor in tensors:
        result.append(replace(tensor, offset=position))
        position += -(-tensor.n_bytes // alignment) * alignment
    return tuple(result)


def header_bytes(
    metadata: Mapping[str, Entry], tensors: Iterable[TensorInfo], alignment: int
) -> bytes:
    """A GGUF header (version 3), padded so that the data section may follow at once."""
    infos = list(tensors)
    parts = [MAGIC, struct.pack("<IQQ", 3, len(infos), len(metadata))]
    parts += [entry.raw for entry in metadata.values()]
    for info in infos:
        parts.append(_string(info.name) + struct.pack("<I", len(info.shape)))
        parts.append(struct.pack(f"<{len(info.shape)}QIQ", *info.shape, info.type.id, info.offset))
    header = b"".join(parts)
    return header + b"\0" * (-len(header) % alignment)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data
