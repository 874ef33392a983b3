"""A GGUF of some kilobytes that stands in for a model where only its template is asked.

Ollama loads a model before it renders a prompt. What it renders follows from the template, the
renderer and the parser that the model was created with, not from the weights: so a model with the
same ones and next to no weights gives the same prompts, in no time and without the memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ollama_trainer.gguf.file import (
    DEFAULT_ALIGNMENT,
    TYPE_BY_NAME,
    Entry,
    TensorInfo,
    header_bytes,
    laid_out,
    string_entry,
    uint32_entry,
)

_WIDTH = 32
#: Its tokens are single bytes, and an Ollama that knows no `truncate` cuts prompts to the context.
CONTEXT = 65536
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_ARRAY, _FLOAT32, _INT32, _BOOL, _STRING = 9, 6, 5, 7, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What of a vocabulary decides how llama.cpp renders a Jinja template."""

    bos: str = "<s>"
    eos: str = "</s>"
    #: Whether BOS is added to prompts, and taken off where a template wrote it; None: not said.
    adds_bos: bool | None = None


USUAL = Marks()


def write_stand_in(path: Path, jinja: str, marks: Marks = USUAL) -> None:
    """Writes a llama of one layer whose weights are all zero.

    Args:
        path: the file.
        jinja: its chat template; empty for none.
        marks: texts of its special tokens, where the template may write them.
    """
    tokens = tuple(dict.fromkeys(("<unk>", marks.bos, marks.eos, *_BYTES)))
    entries = [
        string_entry("general.architecture", "llama"),
        string_entry("general.name", "stand-in"),
        uint32_entry("general.file_type", 0),
        uint32_entry("llama.context_length", CONTEXT),
        uint32_entry("llama.embedding_length", _WIDTH),
        uint32_entry("llama.block_count", 1),
        uint32_entry("llama.feed_forward_length", _WIDTH),
        uint32_entry("llama.attention.head_count", 1),
        _array("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5), None),
        string_entry("tokenizer.ggml.model", "llama"),
        _array("tokenizer.ggml.tokens", _STRING, b"".join(map(_text, tokens)), len(tokens)),
        _array("tokenizer.ggml.scores", _FLOAT32, bytes(4 * len(tokens)), len(tokens)),
        _array("tokenizer.ggml.token_type", _INT32, _kinds(tokens), len(tokens)),
        uint32_entry("tokenizer.ggml.bos_token_id", tokens.index(marks.bos)),
        uint32_entry("tokenizer.ggml.eos_token_id", tokens.index(marks.eos)),
        uint32_entry("tokenizer.ggml.unknown_token_id", 0),
    ]
    if marks.adds_bos is not None:
        flag = bytes([marks.adds_bos])
        entries.append(_array("tokenizer.ggml.add_bos_token", _BOOL, flag, None))
    if jinja:
        entries.append(string_entry("tokenizer.chat_template", jinja))
    keys = [_key(entry) for entry in entries]
    tensors = laid_out(_tensors(len(tokens)), DEFAULT_ALIGNMENT)
    last = tensors[-1]
    header = header_bytes(dict(zip(keys, entries, strict=True)), tensors, DEFAULT_ALIGNMENT)
    size = last.offset + last.n_bytes
    path.write_bytes(header + bytes(size + -size % DEFAULT_ALIGNMENT))


def _tensors(n_tokens: int) -> list[TensorInfo]:
    vector, square = (_WIDTH,), (_WIDTH, _WIDTH)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (_WIDTH, n_tokens),
        "output_norm": vector,
        "blk.0.attn_norm": vector,
        "blk.0.ffn_norm": vector,
    }
    layers = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{layer}": square for layer in layers}
    kind = TYPE_BY_NAME["F32"]
    return [TensorInfo(f"{name}.weight", shape, kind, 0) for name, shape in shapes.items()]


def _kinds(tokens: Sequence[str]) -> bytes:
    known = {"<unk>": _UNKNOWN} | dict.fromkeys(_BYTES, _BYTE)
    kinds = [known.get(token, _CONTROL) for token in tokens]
    return struct.pack(f"<{len(kinds)}i", *kinds)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _array(key: str, kind: int, data: bytes, count: int | None) -> Entry:
    """An entry that holds an array of a kind, or one value of it where `count` is None."""
    head = struct.pack("<I", kind)
    if count is not None:
        head = struct.pack("<IIQ", _ARRAY, kind, count)
    return Entry(None, _text(key) + head + data)


def _key(entry: Entry) -> str:
    (length,) = struct.unpack("<Q", entry.raw[:8])
    return entry.raw[8 : 8 + length].decode()
