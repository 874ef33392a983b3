"""Rows in ggml's tensor types, made by ggml's own code and not by `ollama_trainer.gguf`."""

from __future__ import annotations

import numpy as np
import torch  # noqa: TID253
from numpy.typing import NDArray

from ollama_trainer.gguf.file import TYPE_BY_NAME

GRIDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
FLOATS = ("F32", "F16", "BF16")
#: Bytes at which a block's float16 scales stand.
SCALES_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def normal_rows(n_rows: int, row_length: int, seed: int = 1) -> NDArray[np.float32]:
    """Weights as a model has them: normal, a few hundredths wide."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((n_rows, row_length)) * 0.05).astype(np.float32)


def quantised(values: NDArray[np.float32], kind: str) -> torch.Tensor:
    """uint8 of shape (rows, bytes a row)."""
    import libgguf
    from gguf import GGMLQuantizationType

    if kind == "F32":
        raw = values.tobytes()
    elif kind == "F16":
        raw = values.astype(np.float16).tobytes()
    elif kind == "BF16":
        # To nearest even; exact for what is a bfloat16 already.
        bits = values.view(np.uint32)
        raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    else:
        raw = libgguf.quantize_rows_raw(GGMLQuantizationType[kind], values, *values.shape)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(len(values), -1)


def random_blocks(kind: str, n_blocks: int, seed: int = 1) -> torch.Tensor:
    """Arbitrary bytes with float16 scales that are numbers: some zero, half of them negative."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (n_blocks, TYPE_BY_NAME[kind].n_bytes), dtype=np.uint8)
    for start in SCALES_AT[kind]:
        scales = (generator.standard_normal(n_blocks) * 0.01).astype(np.float16)
        scales[generator.random(n_blocks) < 0.1] = 0
        raw[:, start : start + 2] = scales.view(np.uint8).reshape(n_blocks, 2)
    return torch.from_numpy(raw)


def reference_values(raw: torch.Tensor, kind: str) -> NDArray[np.float32]:
    """What gguf, the package that llama.cpp's converter uses, reads from these bytes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values: NDArray[np.float32] = dequantize(raw.numpy(), GGMLQuantizationType[kind])
    return values
