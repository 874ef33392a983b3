"""GGUF files of a few kilobytes that llama.cpp copies, and llama.cpp's own copy of a file.

They are written by gguf, the package that llama.cpp's converter uses, without any code of
`ollama_trainer.gguf`: what one gets wrong, the other finds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ollama_trainer.gguf.file import Entry, GgufFile, header_bytes, laid_out
from ollama_trainer.gguf.order import ordered_metadata, ordered_tensors

#: What llama.cpp must know of a model before it copies one.
MODEL = {
    "llama.context_length": 64, "llama.embedding_length": 256, "llama.feed_forward_length": 256,
    "llama.attention.head_count": 4, "llama.block_count": 12,
}  # fmt: skip
#: In no order; scanf reads the block's number as C does.
NAMES = [
    "token_embd.weight", "blk.10.attn_q.weight", "blk.2.attn_q.weight", "blk.2.attn_Q.weight",
    "output_norm.weight", "blk.02.b", "blk.-1.a", "blk.-7.a", "blk.+3.a", "blk. 4.a", "blk.x.a",
    "blk.11", "zeta", "Zeta", "été", "~", "𝛿", "ｚ", "blk.3.z",
]  # fmt: skip


def write(
    path: Path,
    kind: str = "F32",
    *,
    file_type: int | None = 0,
    seed: int = 1,
    alignment: int | None = None,
    **split: Any,
) -> Path:
    """A file with every kind of metadata, its keys and tensors in no order.

    Args:
        kind: type of most of its tensors.
        file_type: what it says of itself.
        split: how it is to be split, as of gguf's writer.
    """
    from gguf import GGUFValueType, GGUFWriter

    order = random.Random(seed)
    writer = GGUFWriter(str(path), "llama", **split)
    if alignment:
        writer.add_custom_alignment(alignment)
    numbers = [
        ("u8", 0, 255), ("i8", 1, -1), ("u16", 2, 9), ("i16", 3, -9), ("u32", 4, 7), ("i32", 5, -7),
        ("f32", 6, 0.1), ("bool", 7, True), ("text", 8, "ünï"), ("u64", 10, 2**64 - 1),
        ("i64", 11, -1), ("f64", 12, 0.1),
    ]  # fmt: skip
    for name, form, value in numbers:
        writer.add_key_value(f"test.{name}", value, GGUFValueType(form))
        writer.add_key_value(
            f"test.{name}s", [value, value], GGUFValueType.ARRAY, sub_type=GGUFValueType(form)
        )
    if file_type is not None:
        writer.add_uint32("general.file_type", file_type)
    for key, count in order.sample(list(MODEL.items()), len(MODEL)):
        writer.add_uint32(key, count)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    _add_tensors(writer, kind, order)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(writer: Any, kind: str, order: random.Random) -> None:
    import libgguf
    from gguf import GGMLQuantizationType

    form = GGMLQuantizationType[kind]
    for index, name in enumerate(order.sample(NAMES, len(NAMES))):
        values = np.random.default_rng(index).standard_normal((1 + index % 3, 256), np.float32)
        if index == 2:
            values = values[:, :7]  # whose bytes end between two multiples of 32
        if kind == "F32" or index < 3:
            writer.add_tensor(name, values)
        else:
            raw = libgguf.quantize_rows_raw(form, values, *values.shape)
            rows = np.frombuffer(raw, np.uint8).reshape(len(values), -1)
            writer.add_tensor(name, rows, raw_dtype=form)


def rewritten(
    base: GgufFile,
    out: Path,
    *,
    file_type: int | None = None,
    metadata: Mapping[str, Entry] | None = None,
) -> Path:
    """Writes all of `base`, or other metadata with it, in the order of `gguf/order.py`."""
    tensors = ordered_tensors(base.tensors)
    infos = laid_out(tensors, base.alignment)
    entries = ordered_metadata(metadata or base.metadata, infos, file_type)
    with out.open("wb") as sink, base.open() as source:
        sink.write(header_bytes(entries, infos, base.alignment))
        for tensor in tensors:
            sink.write(source.read(tensor, 0, tensor.n_bytes))
            sink.write(b"\0" * (-sink.tell() % base.alignment))
    return out


def copied(path: Path) -> Path:
    """What `llama-quantize --allow-requantize IN OUT COPY`, as Ollama calls it, makes of it."""
    import llama_cpp

    out = path.with_suffix(".copy")
    params = llama_cpp.llama_model_quantize_default_params()
    params.only_copy = params.allow_requantize = True
    params.ftype = 0  # as the command sets it; a copy has its source's
    assert llama_cpp.llama_model_quantize(bytes(path), bytes(out), params) == 0
    return out


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
