"""A small reader and writer of GGUF files, for the fake Ollama and for tests.

It shares no code with `ollama_trainer.gguf` on purpose: what one gets wrong, the other finds.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
#: Value type -> struct format.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
#: Tensor type -> (name, elements in a block, bytes of a block).
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
}  # fmt: skip
_MAX_STRING_BYTES = 64 << 20
_COPY_BYTES = 1 << 20


class BadGguf(ValueError):
    """The file breaks the format; the message is in Ollama's words where it has some."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's entry."""

    name: str
    #: ggml's type number.
    kind: int
    #: In ggml's order: the fastest-running dimension first.
    shape: tuple[int, ...]
    #: Bytes from the start of the data section.
    offset: int
    n_bytes: int

    @property
    def type_name(self) -> str:
        return _TYPES[self.kind][0]


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What a GGUF file says before its weights."""

    version: int
    values: Mapping[str, Any]
    #: Key -> its entry in the file, byte for byte.
    entries: Mapping[str, bytes]
    tensors: Sequence[TensorInfo]
    #: Bytes from the start of the file to the data section.
    data_start: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def chat_template(self) -> str:
        return str(self.values.get("tokenizer.chat_template", ""))

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def has_magic(path: Path) -> bool:
    """Whether the file begins as a GGUF does."""
    with path.open("rb") as handle:
        return handle.read(4) == MAGIC


def read(path: Path) -> GgufInfo:
    """Reads all but the weights, after checking that those lie inside the file.

    Raises:
        BadGguf: the file breaks the format.
    """
    with path.open("rb") as handle:
        if handle.read(4) != MAGIC:
            raise BadGguf("supplied file was not in GGUF format")
        version = _scalar(handle, "<I")
        if version not in (2, 3):
            raise BadGguf(f"unsupported GGUF version {version}")
        n_tensors, n_keys = _scalar(handle, "<Q"), _scalar(handle, "<Q")
        values: dict[str, Any] = {}
        entries: dict[str, bytes] = {}
        for _ in range(n_keys):
            start = handle.tell()
            key = _text(handle)
            values[key] = _value(handle, _scalar(handle, "<I"))
            end = handle.tell()
            handle.seek(start)
            entries[key] = handle.read(end - start)
        tensors = tuple(_tensor(handle) for _ in range(n_tensors))
        alignment = int(values.get("general.alignment", 32))
        if alignment <= 0:
            raise BadGguf("invalid GGUF alignment: 0")
        data_start = _aligned(handle.tell(), alignment)
        size = handle.seek(0, 2)
    for tensor in tensors:
        end = data_start + tensor.offset + tensor.n_bytes
        if end > size:
            raise BadGguf(f'tensor "{tensor.name}" offset+size ({end}) exceeds file size ({size})')
    return GgufInfo(version, values, entries, tensors, data_start)


def with_value(info: GgufInfo, key: str, value: int | float | str) -> GgufInfo:
    """The same with one key changed, to be written with `rewrite_sorted`."""
    entry = _packed_text(key) + _packed_value(value)
    return replace(info, values={**info.values, key: value}, entries={**info.entries, key: entry})


def rewrite_sorted(source: Path, info: GgufInfo, destination: Path) -> None:
    """The same keys and tensors in sorted order, as a stand-in for a program that rewrites files.

    A file that is in that order already comes out byte for byte as it was.
    """
    alignment = int(info.values.get("general.alignment", 32))
    tensors = sorted(info.tensors, key=lambda tensor: tensor.name)
    offsets: list[int] = []
    position = 0
    for tensor in tensors:
        offsets.append(position)
        position += _aligned(tensor.n_bytes, alignment)
    with destination.open("wb") as out, source.open("rb") as handle:
        out.write(MAGIC + struct.pack("<IQQ", info.version, len(tensors), len(info.entries)))
        for key in sorted(info.entries):
            out.write(info.entries[key])
        for tensor, offset in zip(tensors, offsets, strict=True):
            out.write(_tensor_entry(tensor.name, tensor.shape, tensor.kind, offset))
        _pad(out, alignment)
        for tensor in tensors:
            handle.seek(info.data_start + tensor.offset)
            left = tensor.n_bytes
            while left:
                chunk = handle.read(min(left, _COPY_BYTES))
                out.write(chunk)
                left -= len(chunk)
            _pad(out, alignment)


def write(
    path: Path,
    values: Mapping[str, int | float | str | bool | Sequence[str]],
    tensors: Mapping[str, tuple[int, ...]],
    *,
    alignment: int = 32,
) -> None:
    """Writes a GGUF of F32 tensors full of small numbers.

    Args:
        values: integers become uint32, real numbers float32, sequences arrays of strings.
        tensors: name -> shape, the fastest-running dimension first.
    """
    with path.open("wb") as out:
        out.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(values)))
        for key, value in values.items():
            out.write(_packed_text(key) + _packed_value(value))
        offset = 0
        for name, shape in tensors.items():
            out.write(_tensor_entry(name, shape, 0, offset))
            offset += _aligned(4 * math.prod(shape), alignment)
        _pad(out, alignment)
        for name, shape in tensors.items():
            count = math.prod(shape)
            seed = sum(name.encode())
            out.write(
                struct.pack(f"<{count}f", *(((seed + i) % 17 - 8) / 64 for i in range(count)))
            )
            _pad(out, alignment)


def write_tiny(path: Path, *, chat_template: str = "", **more: int | float | str | bool) -> None:
    """Writes a valid llama-shaped GGUF of a few kilobytes; no program could talk with it.

    Args:
        more: further keys, with `__` for a dot.
    """
    values: dict[str, int | float | str | bool | Sequence[str]] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 0,
        "llama.context_length": 128,
        "llama.embedding_length": 32,
        "llama.block_count": 1,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz"],
    }
    if chat_template:
        values["tokenizer.chat_template"] = chat_template
    values |= {key.replace("__", "."): value for key, value in more.items()}
    tensors = {
        "token_embd.weight": (32, 28),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.ffn_down.weight": (64, 32),
    }
    write(path, values, tensors)


def _scalar(handle: BinaryIO, form: str) -> Any:
    data = handle.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise BadGguf("unexpected EOF")
    return struct.unpack(form, data)[0]


def _text(handle: BinaryIO) -> str:
    length = _scalar(handle, "<Q")
    if length > _MAX_STRING_BYTES:
        raise BadGguf(f"string length {length} is too long")
    data = handle.read(length)
    if len(data) < length:
        raise BadGguf("unexpected EOF")
    return data.decode("utf-8", "replace")


def _value(handle: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(handle)
    if kind == _ARRAY:
        item_kind, count = _scalar(handle, "<I"), _scalar(handle, "<Q")
        return [_value(handle, item_kind) for _ in range(count)]
    if kind not in _SCALARS:
        raise BadGguf(f"invalid type: {kind}")
    return _scalar(handle, _SCALARS[kind])


def _tensor(handle: BinaryIO) -> TensorInfo:
    name = _text(handle)
    n_dims = _scalar(handle, "<I")
    if n_dims > 4:
        raise BadGguf(f'tensor "{name}" dimensions {n_dims} exceeds maximum 4')
    shape = tuple(_scalar(handle, "<Q") for _ in range(n_dims))
    kind, offset = _scalar(handle, "<I"), _scalar(handle, "<Q")
    if kind not in _TYPES:
        raise BadGguf(f'tensor "{name}" has the unknown type {kind}')
    _, per_block, block_bytes = _TYPES[kind]
    return TensorInfo(name, kind, shape, offset, math.prod(shape) // per_block * block_bytes)


def _aligned(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _pad(out: BinaryIO, alignment: int) -> None:
    position = out.tell()
    out.write(b"\0" * (_aligned(position, alignment) - position))


def _packed_text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _packed_value(value: int | float | str | bool | Sequence[str]) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _packed_text(value)
    items = b"".join(_packed_text(item) for item in value)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + items


def _tensor_entry(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _packed_text(name) + dims + struct.pack("<IQ", kind, offset)
