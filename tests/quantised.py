"""Rows in ggml's tensor types, made by ggml's own code and not by `ollama_trainer.gguf`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.bases import resolve_base
from ollama_trainer.gguf.file import TYPE_BY_NAME, TensorType, read_gguf

GRIDS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS",
)  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
#: Bytes at which a block's float16 scales stand.
SCALES_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def normal_rows(n_rows: int, row_length: int, seed: int = 1) -> NDArray[np.float32]:
    """Weights as a model has them: normal, a few hundredths wide."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((n_rows, row_length)) * 0.05).astype(np.float32)


def quantised(values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
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
    return np.frombuffer(bytearray(raw), np.uint8).reshape(len(values), -1)


def random_blocks(kind: str, n_blocks: int, seed: int = 1) -> NDArray[np.uint8]:
    """Arbitrary bytes with float16 scales that are numbers: some zero, half of them negative."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (n_blocks, TYPE_BY_NAME[kind].n_bytes), dtype=np.uint8)
    for start in SCALES_AT[kind]:
        scales = (generator.standard_normal(n_blocks) * 0.01).astype(np.float16)
        scales[generator.random(n_blocks) < 0.1] = 0
        raw[:, start : start + 2] = scales.view(np.uint8).reshape(n_blocks, 2)
    return raw


def served_values(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """What ggml's C code, which serves the file, reads from these bytes."""
    import libgguf
    from gguf import GGMLQuantizationType

    form = TYPE_BY_NAME[kind]
    row_length = raw.shape[1] // form.n_bytes * form.block
    values: NDArray[np.float32] = libgguf.dequantize_rows(
        raw, GGMLQuantizationType[kind], row_length
    )
    return values.reshape(len(raw), row_length)


def smollm2_rows(tensor: str, n_rows: int) -> tuple[NDArray[np.uint8], TensorType]:
    """The first rows of a tensor of the built-in base, as they stand in its file, and their type.

    The file comes from another quantiser than the one in these tests.
    """
    base = read_gguf(resolve_base("smollm2").gguf)
    info = base.by_name[tensor]
    with base.path.open("rb") as handle:
        handle.seek(base.data_start + info.offset)
        data = handle.read(n_rows * info.row_bytes)
    return np.frombuffer(data, np.uint8).reshape(n_rows, info.row_bytes), info.type


def reference_values(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """What gguf, the package that llama.cpp's converter uses, reads from these bytes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values: NDArray[np.float32] = dequantize(raw, GGMLQuantizationType[kind])
    return values
