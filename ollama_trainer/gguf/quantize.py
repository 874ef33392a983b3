"""Blocks made anew: scales that fit the values, unlike `grids`, which keeps those that are there.

The search for scales is ggml's own, in the library that llama-cpp-python brings along, so that
blocks are the very ones that llama.cpp would have made. The library is opened by itself: the
package around it takes longer to import than most tensors to quantise.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError, NotANumber
from ollama_trainer.gguf.file import TensorType

#: Types that blocks can be made of.
QUANTIZABLE = frozenset(
    {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    | {"IQ4_NL", "IQ4_XS"}
)
#: The largest float16. Some types hold a block's smallest value as one; ggml checks nothing, and
#: a scale that overflows makes its whole block infinite.
_LARGEST = 65504.0
#: What the library is called on Linux, macOS and Windows.
_FILE_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")


def quantize(values: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
    """Rounds rows to a quantised type, with scales of their own and no importance matrix.

    May be called from several threads at once; other threads go on while it works.

    Args:
        values: float32 of shape (rows, weights), a chunk of a tensor; rows do not depend on those
            beside them.
        kind: one of QUANTIZABLE.

    Returns:
        uint8 of shape (rows, bytes a row).

    Raises:
        NotANumber: a value is not a finite number.
        ExportError: a value is larger than any float16, the rows are no whole blocks, blocks of
            the type cannot be made, or ggml is missing.
    """
    values = np.ascontiguousarray(values, np.float32)
    _check(values, kind)
    n_rows, row_length = values.shape
    raw = np.empty((n_rows, row_length // kind.block * kind.n_bytes), np.uint8)
    written = _quantizer()(
        kind.id, values.ctypes.data, raw.ctypes.data, 0, n_rows, row_length, None
    )
    if written != raw.nbytes:
        raise ExportError(
            f"ggml wrote {written} bytes of {kind.name} where {raw.nbytes} belong",
            "Install the version of llama-cpp-python that this program asks for.",
        )
    return raw


def _check(values: NDArray[np.float32], kind: TensorType) -> None:
    """What ggml would end the process for, or make a broken file of."""
    if kind.name not in QUANTIZABLE:
        raise ExportError(
            f"Blocks of the type {kind.name} cannot be made",
            f"Use {', '.join(sorted(QUANTIZABLE))}.",
        )
    if values.shape[1] % kind.block:
        raise ExportError(
            f"Rows of {values.shape[1]} weights are no whole blocks of {kind.name},"
            f" which have {kind.block}",
            "Use a type with blocks of 32, such as Q8_0.",
        )
    largest = np.abs(values).max(initial=0)
    if not np.isfinite(largest):
        raise NotANumber(
            f"Weights that are to become {kind.name} are not all finite numbers",
            "Training diverged: use a lower learning rate.",
        )
    if largest > _LARGEST:
        raise ExportError(
            f"A weight of {largest:.4g} is too large for the scales of {kind.name}",
            "Training diverged: use a lower learning rate.",
        )


@cache
def _quantizer() -> Any:
    """ggml's function that quantises rows; it locks what it has to prepare, and holds no lock
    of Python's while it works."""
    quantizer = _library().ggml_quantize_chunk
    # Source: ggml.h: type, source, destination, first weight, rows, weights a row, importance.
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    quantizer.argtypes = (ctypes.c_int, pointer, pointer, count, count, count, pointer)
    quantizer.restype = ctypes.c_size_t
    return quantizer


def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    package = spec.submodule_search_locations if spec else None
    # The variable is llama-cpp-python's own, for a llama.cpp that was built elsewhere.
    given = os.environ.get("LLAMA_CPP_LIB_PATH")
    folders = [given] if given else [f"{folder}/lib" for folder in package or ()]
    paths = (Path(folder) / name for folder in folders for name in _FILE_NAMES)
    path = next((path for path in paths if path.is_file()), None)
    remedy = "Install ollama-trainer[train], which brings llama-cpp-python."
    if path is None:
        raise ExportError("ggml's library is not there: libggml-base of llama-cpp-python", remedy)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ExportError(
            f"{path.name} of llama-cpp-python cannot be used: {error}", remedy
        ) from error
