"""A small base, adapters and statistics to merge, and what should come of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from ollama_trainer.gguf.adapter import LoraPair
from ollama_trainer.gguf.file import GgufFile, TensorInfo, read_gguf
from ollama_trainer.gguf.grids import dequantize
from ollama_trainer.gguf.statistics import InputStatistics, write_index, write_moments
from tests.quantised import quantised
from tests.tiny_models import rotary_pairs

HEADS, KV_HEADS, HIDDEN = 4, 2, 256
#: Module -> (tensor, rows).
LAYERS = {
    "model.layers.0.self_attn.q_proj": ("blk.0.attn_q.weight", 256),
    "model.layers.0.self_attn.k_proj": ("blk.0.attn_k.weight", 128),
    "model.layers.0.self_attn.v_proj": ("blk.0.attn_v.weight", 128),
    "model.layers.0.self_attn.o_proj": ("blk.0.attn_output.weight", 256),
    "model.layers.0.mlp.up_proj": ("blk.0.ffn_up.weight", 512),
}
Q_PROJ, K_PROJ, V_PROJ, O_PROJ, UP_PROJ = LAYERS
FEW_CODES = ("Q2_K", "Q3_K")


def write_base(path: Path, kind: str = "Q4_0", width: int = HIDDEN) -> GgufFile:
    """One block of a llama; every linear layer in `kind`, rows of `width` weights.

    Keys and tensors stand in the order in which results are written.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_embedding_length(width)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_array("test.floats", [0.5, 1.5])
    writer.add_quantization_version(2)
    writer.add_file_type(2)
    generator = np.random.default_rng(1)
    # Five weights: what follows is padded.
    writer.add_tensor("output_norm.weight", generator.random(5).astype(np.float32))
    writer.add_tensor("token_embd.weight", generator.random((50, width)).astype(np.float16))
    for name, rows in sorted(LAYERS.values()):
        if kind == "I8":
            writer.add_tensor(name, np.ones((rows, width), np.int8))
            continue
        values = (generator.standard_normal((rows, width)) * 0.05).astype(np.float32)
        raw = quantised(values, kind)
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_gguf(path)


def lora(*modules: str, width: int = HIDDEN, size: float = 0.01) -> dict[str, LoraPair]:
    generator = np.random.default_rng(2)
    return {
        module: LoraPair(
            generator.standard_normal((4, width), np.float32),
            generator.standard_normal((LAYERS[module][1], 4), np.float32) * np.float32(size),
        )
        for module in modules or LAYERS
    }


def raw(file: GgufFile, info: TensorInfo) -> bytes:
    start = file.data_start + info.offset
    return file.path.read_bytes()[start : start + info.n_bytes]


def values(file: GgufFile, name: str) -> NDArray[np.float32]:
    info = file.by_name[name]
    rows = np.frombuffer(raw(file, info), np.uint8)
    return dequantize(rows.reshape(info.n_rows, -1), info.type)


def wanted(base: GgufFile, adapter: dict[str, LoraPair], module: str) -> NDArray[np.float32]:
    """Base and change added up, with the rows put in order by another piece of code."""
    name, rows = LAYERS[module]
    delta: NDArray[np.float32] = adapter[module].up @ adapter[module].down
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(module.rsplit(".", 1)[-1])
    if heads is not None:
        delta = delta[rotary_pairs(rows, heads)]
    return values(base, name) + delta


def inputs(seed: int, width: int = HIDDEN) -> NDArray[np.float32]:
    """Inputs of a layer, (tokens, width): few strong directions, as layers get them."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((width // 8, width), np.float32)
    inputs = generator.standard_normal((1500, width // 8), np.float32) @ mixing
    return inputs + np.float32(0.1) * generator.standard_normal((1500, width), np.float32)


def statistics(directory: Path, *modules: str, width: int = HIDDEN) -> InputStatistics:
    """Moments of `inputs(1)`, shared by all of these modules."""
    directory.mkdir()
    x = inputs(1, width)
    write_moments(directory, 0, {"shared": torch.from_numpy(x.T @ x / len(x))})
    write_index(directory, dict.fromkeys(modules, "shared"), {"rows": len(x)})
    return InputStatistics(directory)


def output_error(
    base: GgufFile, result: GgufFile, adapter: dict[str, LoraPair], module: str
) -> float:
    """Mean square of what a layer computes wrongly on inputs that the statistics never saw."""
    error = values(result, LAYERS[module][0]) - wanted(base, adapter, module)
    return float(((inputs(2, error.shape[1]) @ error.T) ** 2).mean())
