"""What is known of each architecture: the differences between transformers' layout and a GGUF's.

Every entry is proven by a parity test: transformers and PEFT against llama.cpp, on a file that
llama.cpp's own converter wrote and on one that a LoRA was merged into. An architecture, a tensor or
a hyperparameter that is not listed is refused by name before any training, since a model that is
almost right would silently be ruined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What is known of one architecture."""

    #: `model_type` of the configuration in transformers.
    model_type: str
    #: Linear layers that a LoRA is put on, by the last part of the module's name. Experts are none
    #: of them: each sees few of the tokens of a small data set.
    target_modules: tuple[str, ...]
    #: Every tensor that a file of it may hold: the name without block number and suffix.
    tensors: frozenset[str]
    #: Those of them that may have a bias beside the weight.
    biases: frozenset[str] = frozenset()
    #: Hyperparameters, `<architecture>.` left off, that configurations are made from or that say
    #: nothing more; beside the common ones.
    keys: frozenset[str] = frozenset()
    #: Modules whose rows llama.cpp reorders for its rotary embedding -> key with their head count.
    rotary_rows: dict[str, str] = field(default_factory=dict)
    #: What llama.cpp's weights of norms are more than those of transformers.
    norm_shift: float = 0.0


_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_EMBEDDINGS = frozenset({"token_embd", "output", "output_norm"})
_ATTENTION = _QKV | {"attn_output"}
_GATED = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_DENSE = _EMBEDDINGS | _ATTENTION | _GATED
_PRE_NORMS = frozenset({"attn_norm", "ffn_norm"})
_QK_NORMS = frozenset({"attn_q_norm", "attn_k_norm"})
_POST_NORMS = frozenset({"post_attention_norm", "post_ffw_norm"})
_ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
_ATTENTION_AND_MLP = (*_ATTENTION_MODULES, "gate_proj", "up_proj", "down_proj")
_PAIRS = {"q_proj": "attention.head_count", "k_proj": "attention.head_count_kv"}
#: Keys that files of any architecture may have.
_COMMON_KEYS = frozenset(
    {
        "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
        "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.value_length", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
        "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
        "tensor_data_layout",
    }
)  # fmt: skip
_EXPERTS = frozenset({"ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"})
_EXPERT_KEYS = frozenset({"expert_count", "expert_used_count", "expert_feed_forward_length"})
_RMS = frozenset({"attention.layer_norm_rms_epsilon"})
_WINDOW = frozenset({"attention.sliding_window"})
_YARN = frozenset({"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"})

ARCHITECTURES = {
    "llama": Architecture(
        model_type="llama",
        target_modules=_ATTENTION_AND_MLP,
        tensors=_DENSE | _PRE_NORMS | {"rope_freqs"},
        biases=_ATTENTION | _GATED,
        keys=_RMS | _YARN,
        rotary_rows=_PAIRS,
    ),
    "qwen2": Architecture(
        model_type="qwen2",
        target_modules=_ATTENTION_AND_MLP,
        tensors=_DENSE | _PRE_NORMS,
        biases=_QKV,
        keys=_RMS | _YARN,
    ),
    "qwen3": Architecture(
        model_type="qwen3",
        target_modules=_ATTENTION_AND_MLP,
        tensors=_DENSE | _PRE_NORMS | _QK_NORMS,
        keys=_RMS | _YARN,
    ),
    "qwen3moe": Architecture(
        model_type="qwen3_moe",
        target_modules=_ATTENTION_MODULES,
        tensors=_EMBEDDINGS | _ATTENTION | _PRE_NORMS | _QK_NORMS | _EXPERTS,
        keys=_RMS | _YARN | _EXPERT_KEYS,
    ),
    "phi3": Architecture(
        model_type="phi3",
        target_modules=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        tensors=_EMBEDDINGS
        | _PRE_NORMS
        | {"attn_qkv", "attn_output", "ffn_up", "ffn_down"}
        | {"rope_factors_long", "rope_factors_short"},
        keys=_RMS | _WINDOW | {"rope.scaling.attn_factor"},
    ),
    "gemma2": Architecture(
        model_type="gemma2",
        target_modules=_ATTENTION_AND_MLP,
        tensors=_DENSE | _PRE_NORMS | _POST_NORMS,
        keys=_RMS | _WINDOW | {"attn_logit_softcapping", "final_logit_softcapping"},
        norm_shift=1.0,
    ),
    "gemma3": Architecture(
        model_type="gemma3_text",
        target_modules=_ATTENTION_AND_MLP,
        tensors=_DENSE | _PRE_NORMS | _POST_NORMS | _QK_NORMS,
        keys=_RMS | _WINDOW | {"final_logit_softcapping", "rope.freq_base_swa"},
        norm_shift=1.0,
    ),
    "granite": Architecture(
        model_type="granite",
        target_modules=_ATTENTION_AND_MLP,
        tensors=_DENSE | _PRE_NORMS,
        biases=_ATTENTION | _GATED,
        keys=_RMS | {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"},
        rotary_rows=_PAIRS,
    ),
    "smollm3": Architecture(
        model_type="smollm3",
        target_modules=_ATTENTION_AND_MLP,
        tensors=_DENSE | _PRE_NORMS,
        keys=_RMS | _YARN,
        rotary_rows=_PAIRS,
    ),
    "olmo2": Architecture(
        model_type="olmo2",
        target_modules=_ATTENTION_AND_MLP,
        tensors=_DENSE | _POST_NORMS | _QK_NORMS,
        keys=_RMS,
    ),
    "starcoder2": Architecture(
        model_type="starcoder2",
        target_modules=(*_ATTENTION_MODULES, "c_fc", "c_proj"),
        tensors=_EMBEDDINGS | _PRE_NORMS | _ATTENTION | {"ffn_up", "ffn_down"},
        biases=_PRE_NORMS | _ATTENTION | {"output_norm", "ffn_up", "ffn_down"},
        keys=frozenset({"attention.layer_norm_epsilon"}),
    ),
}
#: A llama with experts is another model; its files bear the same name.
_MIXTRAL = Architecture(
    model_type="mixtral",
    target_modules=_ATTENTION_MODULES,
    tensors=_EMBEDDINGS | _ATTENTION | _PRE_NORMS | _EXPERTS,
    keys=_RMS | _EXPERT_KEYS,
    rotary_rows=_PAIRS,
)


def architecture_of(gguf: GgufFile) -> Architecture:
    """What is known of the file's architecture.

    Raises:
        BaseModelError: nothing is, or the file holds more than what is known.
    """
    if gguf.get("general.type", "model") != "model":
        raise BaseModelError(
            f"{gguf.path.name} is no model but of the type {gguf.get('general.type')!r:.80}",
            "Choose another base.",
        )
    architecture = known(gguf)
    _check_keys(gguf, architecture)
    for tensor in gguf.tensors:
        stem = re.fullmatch(r"(?:blk\.\d+\.)?(\w+)\.(weight|bias)", tensor.name)
        allowed = architecture.biases if stem and stem[2] == "bias" else architecture.tensors
        if stem is None or stem[1] not in allowed:
            raise BaseModelError(
                f"{gguf.path.name} holds the tensor {tensor.name}, which is not supported in a"
                f" model of the architecture {gguf.architecture}",
                "Choose another base.",
            )
    return architecture


def known(gguf: GgufFile) -> Architecture:
    """What is known of the file's architecture, whatever else the file holds.

    Raises:
        BaseModelError: nothing is.
    """
    architecture = ARCHITECTURES.get(gguf.architecture)
    if gguf.architecture == "llama" and gguf.hyperparameter("expert_count"):
        return _MIXTRAL
    if architecture is None:
        raise BaseModelError(
            f"The architecture {gguf.architecture or '(none)'} ({gguf.path.name}) is not supported",
            f"Choose a base of the architecture {', '.join(sorted(ARCHITECTURES))}.",
        )
    return architecture


def _check_keys(gguf: GgufFile, architecture: Architecture) -> None:
    prefix = f"{gguf.architecture}."
    allowed = _COMMON_KEYS | architecture.keys
    for key in gguf.metadata:
        name = key.removeprefix(prefix)
        # A key of zero (experts that there are none of) says what is taken for granted here.
        if name != key and name not in allowed and gguf.get(key):
            raise BaseModelError(
                f"{gguf.path.name} sets {key}, which is not supported in a model of the"
                f" architecture {gguf.architecture}",
                "Choose another base.",
            )
