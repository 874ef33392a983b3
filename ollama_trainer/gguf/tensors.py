"""Which module of a Hugging Face model is which tensor of a GGUF, and in which order of rows.

The names come from gguf's own map, the one that llama.cpp's converter uses. What the converter does
to the weights besides renaming is listed here per architecture; an architecture that is not listed
is refused by name, since a merge into rows of another order would silently ruin the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile

if TYPE_CHECKING:
    from torch import Tensor

#: Output rows in the order of transformers -> the same rows in the order of the GGUF.
RowOrder = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known of one architecture."""

    #: Linear layers that a LoRA is put on, by the last part of the module's name.
    target_modules: tuple[str, ...]
    #: Every tensor that a file of it may hold: the name without block number and suffix.
    tensors: frozenset[str]
    #: Modules whose rows llama.cpp reorders for its rotary embedding -> key with their head count.
    rotary_rows: dict[str, str]


_ATTENTION_AND_MLP = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
#: Each is proven by a parity test: transformers + PEFT against llama.cpp on the merged file.
ARCHITECTURES = {
    "llama": Architecture(
        target_modules=_ATTENTION_AND_MLP,
        tensors=frozenset(
            {"token_embd", "output", "output_norm", "attn_norm", "ffn_norm"}
            | {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
        ),
        rotary_rows={
            "q_proj": "attention.head_count",
            "k_proj": "attention.head_count_kv",
        },
    ),
}


def architecture_of(gguf: GgufFile) -> Architecture:
    """What is known of the file's architecture.

    Raises:
        BaseModelError: nothing is, or the file holds more than what is known.
    """
    architecture = _known(gguf)
    for tensor in gguf.tensors:
        stem = re.fullmatch(r"(?:blk\.\d+\.)?(\w+)\.weight", tensor.name)
        if stem is None or stem[1] not in architecture.tensors:
            raise BaseModelError(
                f"{gguf.path.name} holds the tensor {tensor.name}, which is not supported in a"
                f" model of the architecture {gguf.architecture}",
                "Choose another base.",
            )
    return architecture


def _known(gguf: GgufFile) -> Architecture:
    architecture = ARCHITECTURES.get(gguf.architecture)
    if architecture is None:
        raise BaseModelError(
            f"The architecture {gguf.architecture or '(none)'} ({gguf.path.name}) is not supported",
            f"Choose a base of the architecture {', '.join(sorted(ARCHITECTURES))}.",
        )
    return architecture


def tensor_names(gguf: GgufFile) -> dict[str, str]:
    """Module in transformers (`model.layers.0.self_attn.q_proj`) -> tensor in this GGUF."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == gguf.architecture)
    blocks = int(gguf.hyperparameter("block_count", 0))
    names = get_tensor_name_map(arch, blocks).mapping
    weights = ((module, f"{name}.weight") for module, (_, name) in names.items())
    return {module: name for module, name in weights if name in gguf.by_name}


def row_order(gguf: GgufFile, module: str) -> RowOrder:
    """Puts output rows of `module` from the order of transformers into that of its tensor."""
    heads = _rotary_heads(gguf, module)
    return (lambda rows: rows) if heads is None else (lambda rows: _swap(rows, heads, 2, -1))


def original_row_order(gguf: GgufFile, module: str) -> RowOrder:
    """The inverse of `row_order`."""
    heads = _rotary_heads(gguf, module)
    return (lambda rows: rows) if heads is None else (lambda rows: _swap(rows, heads, -1, 2))


def _rotary_heads(gguf: GgufFile, module: str) -> int | None:
    key = _known(gguf).rotary_rows.get(module.rsplit(".", 1)[-1])
    if key is None:
        return None
    heads = gguf.hyperparameter(key) or gguf.hyperparameter("attention.head_count")
    if not isinstance(heads, int) or heads < 1:
        raise BaseModelError(f"{gguf.path.name} names no usable {key}", "Choose another base.")
    return heads


def _swap(rows: Tensor, heads: int, outer: int, inner: int) -> Tensor:
    """Within each head: two halves one after the other <-> pairs (x_i, x_{i + d/2})."""
    shape = rows.shape
    half = shape[0] // heads // 2
    sizes = [half if size < 0 else size for size in (outer, inner)]
    return rows.reshape(heads, *sizes, *shape[1:]).swapaxes(1, 2).reshape(shape)
