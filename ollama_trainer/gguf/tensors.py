"""Which module of a Hugging Face model is which tensor of a GGUF, and in which order of rows.

The names come from gguf's own map, the one that llama.cpp's converter uses. What the converter does
to the weights besides renaming is listed per architecture in architectures.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.architectures import architecture_of, known
from ollama_trainer.gguf.file import GgufFile, TensorInfo

Rows = NDArray[np.float32]
#: Output rows in the order of transformers -> the same rows in the order of the GGUF.
RowOrder = Callable[[Rows], Rows]
#: No model comes near; a hostile header may, and names are made for each.
_MAX_BLOCKS = 1024
_LARGEST = (1 << 31) - 1


def tensor_names(gguf: GgufFile, suffix: str = "weight") -> dict[str, str]:
    """Module in transformers (`model.layers.0.self_attn.q_proj`) -> tensor in this GGUF.

    Args:
        suffix: `weight` or `bias`.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    known(gguf)
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == gguf.architecture)
    names = get_tensor_name_map(arch, block_count(gguf)).mapping
    tensors = ((module, f"{name}.{suffix}") for module, (_, name) in names.items())
    return {module: name for module, name in tensors if name in gguf.by_name}


def trained_tensors(gguf: GgufFile, layers: Collection[int] | None = None) -> list[TensorInfo]:
    """The tensors of the modules that a LoRA is put on, each once.

    Args:
        layers: indices of those that are trained; None: all.

    Raises:
        BaseModelError: the architecture is not supported, or the file holds more than is known.
    """
    modules = architecture_of(gguf).target_modules
    prefixes = ("",) if layers is None else tuple(f"blk.{layer}." for layer in layers)
    # One tensor has the names of several kinds of models.
    names = dict.fromkeys(
        name
        for module, name in tensor_names(gguf).items()
        if module.rsplit(".", 1)[-1] in modules and name.startswith(prefixes)
    )
    return [gguf.by_name[name] for name in names]


def block_count(gguf: GgufFile) -> int:
    """How many layers the model has.

    Raises:
        BaseModelError: the file does not say, or says nonsense.
    """
    return whole(gguf, "block_count", most=_MAX_BLOCKS)


def whole(
    gguf: GgufFile, key: str, default: int | None = None, *, least: int = 1, most: int = _LARGEST
) -> int:
    """The whole number `<architecture>.<key>`.

    Args:
        default: of a file that does not say it; None refuses the file.

    Raises:
        BaseModelError: it is missing, of another type, or out of bounds.
    """
    value = gguf.hyperparameter(key, default)
    if type(value) is not int or not least <= value <= most:
        raise BaseModelError(
            f"{gguf.path.name} has a {gguf.architecture}.{key} of {value!r:.80}",
            "Choose another base, or fetch this one again.",
        )
    return value


def row_order(gguf: GgufFile, module: str) -> RowOrder:
    """Puts output rows of `module` from the order of transformers into that of its tensor."""
    heads = _rotary_heads(gguf, module)
    return (lambda rows: rows) if heads is None else (lambda rows: _swap(rows, heads, 2, -1))


def original_row_order(gguf: GgufFile, module: str) -> RowOrder:
    """The inverse of `row_order`."""
    heads = _rotary_heads(gguf, module)
    return (lambda rows: rows) if heads is None else (lambda rows: _swap(rows, heads, -1, 2))


def _rotary_heads(gguf: GgufFile, module: str) -> int | None:
    key = known(gguf).rotary_rows.get(module.rsplit(".", 1)[-1])
    if key is None:
        return None
    return whole(gguf, key, whole(gguf, "attention.head_count"))


def _swap(rows: Rows, heads: int, outer: int, inner: int) -> Rows:
    """Within each head: two halves one after the other <-> pairs (x_i, x_{i + d/2})."""
    shape = rows.shape
    half = shape[0] // heads // 2
    if half * heads * 2 != shape[0]:
        raise BaseModelError(
            f"{shape[0]} rows cannot be those of {heads} heads", "Choose another base."
        )
    sizes = [half if size < 0 else size for size in (outer, inner)]
    return rows.reshape(heads, *sizes, *shape[1:]).swapaxes(1, 2).reshape(shape)
