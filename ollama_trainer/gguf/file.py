"""GGUF files: the header, read with the byte range of every entry, and written back.

Source: the GGUF specification, version 3 (ggml/docs/gguf.md). Every count, length and offset is
checked against the size of the file before it is used, since GGUF files come from anywhere.

The ranges are the point: metadata that nobody means to change is copied as the bytes that it is.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

from ollama_trainer.errors import GgufError
from ollama_trainer.gguf.splits import is_part, joined
from ollama_trainer.gguf.values import (
    STRING,
    UINT32,
    HeaderReader,
    decoded,
    kind_of,
    packed_text,
    shown,
)

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
_ALIGNMENT = "general.alignment"
#: No model comes near; a hostile header may. The padding alone would cost memory.
_MAX_ENTRIES = 1 << 16
_MAX_ALIGNMENT = 1 << 16
_MAX_WEIGHTS = 1 << 48
_MAX_DIMENSIONS = 4
#: By the specification; llama.cpp's limit, which is one less than the specification's.
_MAX_KEY_BYTES = (1 << 16) - 1
_MAX_TENSOR_NAME_BYTES = 63
#: Bytes of the shortest entries: a name of one letter, one dimension, a value of one byte.
_SMALLEST_TENSOR = 33
_SMALLEST_ENTRY = 14


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
    #: Which of the model's files it lies in, from 0.
    part: int = 0

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


class Entry:
    """A metadata entry: its value, and the bytes (key, type, value) that it stands in."""

    __slots__ = ("_value", "raw")

    def __init__(self, value: Any, raw: bytes) -> None:
        self._value, self.raw = value, raw

    @classmethod
    def of(cls, raw: bytes) -> Entry:
        """An entry whose value is decoded when it is first asked for."""
        return cls(_UNREAD, raw)

    @property
    def value(self) -> Any:
        if self._value is _UNREAD:
            self._value = decoded(self.raw)
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Entry({self.raw[:64]!r})"


_UNREAD = object()


@dataclass(frozen=True, slots=True)
class Part:
    """One of the files that a model lies in."""

    path: Path
    #: Byte at which the data section begins.
    data_start: int


@dataclass(frozen=True)
class GgufFile:
    """A GGUF's header, or that of a model in several files. The tensors stay on disk."""

    #: The file, or the first of them.
    path: Path
    metadata: Mapping[str, Entry]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    #: Byte at which the data section begins; in the first file, where there are several.
    data_start: int
    more_parts: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The files that it lies in: `TensorInfo.part` counts these."""
        return (Part(self.path, self.data_start), *self.more_parts)

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
        self._parts = gguf.parts
        self._lock = threading.Lock()
        self._handles: list[FileIO] = []

    def __enter__(self) -> TensorReader:
        with ExitStack() as opened:
            for part in self._parts:
                with _told(part.path):
                    self._handles.append(opened.enter_context(FileIO(part.path)))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, tensor: TensorInfo, start: int, n_bytes: int) -> bytes:
        """Some bytes of a tensor.

        Raises:
            GgufError: the file cannot be read, or ended, since it was changed after its header was
                read.
        """
        part, handle = self._parts[tensor.part], self._handles[tensor.part]
        position = part.data_start + tensor.offset + start
        pieces: list[bytes] = []
        with _told(part.path):
            # The system may give less than it is asked for, and never more than 2 GB.
            while n_bytes and (piece := self._piece(handle, position, n_bytes)):
                pieces.append(piece)
                position += len(piece)
                n_bytes -= len(piece)
        if n_bytes:
            raise GgufError(
                f"{part.path} ended while it was read",
                "Leave the base alone while a run uses it, and start the run again.",
            )
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, handle: FileIO, position: int, n_bytes: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(handle.fileno(), n_bytes, position)
        with self._lock:
            handle.seek(position)
            return handle.read(n_bytes)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Says which file it is that the system cannot read."""
    try:
        yield
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror}") from error


def read_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF file; of a model in several files, whichever of them is named.

    Raises:
        GgufError: a file cannot be read, its header does not fit its size, or the files are not
            those of one model.
    """
    file = _read_one(path)
    return joined(file, _read_one) if is_part(file) else file


def _read_one(path: Path) -> GgufFile:
    with _told(path):
        # A pipe would be waited for at once, and has no size.
        if not stat.S_ISREG((status := path.stat()).st_mode):
            raise GgufError(f"{path} cannot be read: it is no plain file")
        with path.open("rb") as handle:
            return _read(HeaderReader(handle, status.st_size, path), status.st_size, path)


def _read(reader: HeaderReader, size: int, path: Path) -> GgufFile:
    n_tensors, n_entries = _read_counts(reader, size, path)
    metadata = _read_metadata(reader, n_entries)
    alignment = _alignment(metadata, reader)
    _check_architecture(metadata, reader)
    infos = tuple(_read_tensor_info(reader) for _ in range(n_tensors))
    data_start = -(-reader.position // alignment) * alignment
    file = GgufFile(path, metadata, infos, alignment, data_start)
    _check_ranges(file, size, reader)
    return file


def _read_counts(reader: HeaderReader, size: int, path: Path) -> tuple[int, int]:
    """How many tensors and metadata entries there are; checks what comes before these numbers."""
    if size < 24 or reader.take(4) != MAGIC:
        raise reader.damaged("it does not begin with GGUF")
    version = reader.uint32()
    if version and not version & 0xFFFF:
        raise GgufError(
            f"{path} is big-endian, made for another kind of machine",
            "Fetch the file for little-endian machines, or turn it with gguf_convert_endian.py.",
        )
    if version not in (2, 3):
        raise GgufError(
            f"{path} has GGUF version {version}; versions 2 and 3 can be read",
            "Fetch or make the file again, with a llama.cpp of today.",
        )
    n_tensors, n_entries = reader.uint64(), reader.uint64()
    smallest = n_tensors * _SMALLEST_TENSOR + n_entries * _SMALLEST_ENTRY
    if max(n_tensors, n_entries) > _MAX_ENTRIES or smallest > reader.n_left:
        raise reader.damaged(f"{n_tensors} tensors and {n_entries} metadata entries")
    return n_tensors, n_entries


def _read_metadata(reader: HeaderReader, n_entries: int) -> dict[str, Entry]:
    metadata: dict[str, Entry] = {}
    for _ in range(n_entries):
        start = reader.position
        key = reader.name(_MAX_KEY_BYTES)
        reader.pass_value(reader.uint32())
        if key in metadata:
            raise reader.damaged(f"the key {key!r} stands twice")
        metadata[key] = Entry.of(reader.since(start))
    return metadata


def _alignment(metadata: Mapping[str, Entry], reader: HeaderReader) -> int:
    entry = metadata.get(_ALIGNMENT)
    if entry is None:
        return DEFAULT_ALIGNMENT
    alignment = entry.value
    if (
        kind_of(entry.raw) != UINT32
        or not 1 <= alignment <= _MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise reader.damaged(f"an alignment of {shown(alignment)}")
    return int(alignment)


def _check_architecture(metadata: Mapping[str, Entry], reader: HeaderReader) -> None:
    """The architecture is told to people, and part of many keys: it must be a plain word."""
    name = metadata["general.architecture"].value if "general.architecture" in metadata else "none"
    if not isinstance(name, str) or not re.fullmatch(r"[a-zA-Z0-9_.+-]{1,64}", name):
        raise reader.damaged(f"an architecture of {shown(name)}")


def _read_tensor_info(reader: HeaderReader) -> TensorInfo:
    name = reader.name(_MAX_TENSOR_NAME_BYTES)
    n_dimensions = reader.uint32()
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise reader.damaged(f"the tensor {name!r} has {n_dimensions} dimensions")
    shape = tuple(reader.uint64() for _ in range(n_dimensions))
    type_id, offset = reader.uint32(), reader.uint64()
    kind = TENSOR_TYPES.get(type_id)
    if kind is None:
        raise GgufError(
            f"The tensor {name!r} is of the ggml type {type_id}, which is not supported",
            f"Use a file whose tensors are of {', '.join(TYPE_BY_NAME)}.",
        )
    if 0 in shape or math.prod(shape) > _MAX_WEIGHTS or shape[0] % kind.block:
        raise reader.damaged(f"the tensor {name!r} has the shape {shape} and the type {kind.name}")
    return TensorInfo(name, shape, kind, offset)


def _check_ranges(file: GgufFile, size: int, reader: HeaderReader) -> None:
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
        if tensor.offset < free:
            raise reader.damaged(f"the tensor {tensor.name!r} overlaps the one before it")
        free = max(free, tensor.offset + tensor.n_bytes)


def string_entry(key: str, value: str) -> Entry:
    """A metadata entry that holds a string."""
    return Entry(value, packed_text(key) + struct.pack("<I", STRING) + packed_text(value))


def uint32_entry(key: str, value: int) -> Entry:
    """A metadata entry that holds an unsigned 32-bit number."""
    return Entry(value, packed_text(key) + struct.pack("<II", UINT32, value))


def laid_out(tensors: Iterable[TensorInfo], alignment: int) -> tuple[TensorInfo, ...]:
    """The tensors in their order, with offsets that follow one another, padded to `alignment`."""
    result, position = [], 0
    for tensor in tensors:
        result.append(replace(tensor, offset=position, part=0))
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
        parts.append(packed_text(info.name) + struct.pack("<I", len(info.shape)))
        parts.append(struct.pack(f"<{len(info.shape)}QIQ", *info.shape, info.type.id, info.offset))
    header = b"".join(parts)
    return header + b"\0" * (-len(header) % alignment)
