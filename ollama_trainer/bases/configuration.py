"""A GGUF's hyperparameters as transformers' configuration: the model as llama.cpp computes it.

transformers has a reader of its own; it drops what it does not know (a rotary scaling, say) and
knows some of these architectures only. Where llama.cpp computes a model otherwise than its authors
meant (it ignores the sliding window of phi3), this follows llama.cpp: what is trained is what is
served. Source: load_arch_hparams of each architecture in llama.cpp's src/models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.architectures import known
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.grids import dequantize
from ollama_trainer.gguf.tensors import block_count, whole

Values = dict[str, Any]
#: Every n-th layer sees everything, the others a window; where a file does not say it.
_WINDOW_PATTERNS = {"gemma2": 2, "gemma3": 6}
#: The one size of Gemma 2 and 3 whose attention is scaled by hidden size / heads.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}


def configuration(gguf: GgufFile) -> Values:
    """The arguments of `AutoConfig.for_model`, special token ids left out.

    Raises:
        BaseModelError: a hyperparameter is missing, or no configuration says the same.
    """
    values = _common(gguf)
    more = _MORE.get(values["model_type"])
    if more is not None:
        more(gguf, values)
    return values


def _common(gguf: GgufFile) -> Values:
    heads, hidden = whole(gguf, "attention.head_count"), whole(gguf, "embedding_length")
    head = whole(gguf, "attention.key_length", max(1, hidden // heads))
    if whole(gguf, "attention.value_length", head) != head:
        raise _unsupported(gguf, "keys and values of different lengths")
    rotary = whole(gguf, "rope.dimension_count", head)
    embedding = gguf.by_name.get("token_embd.weight")
    if embedding is None:
        raise _unsupported(gguf, "no token_embd.weight")
    values: Values = {
        "model_type": known(gguf).model_type,
        "vocab_size": embedding.n_rows,
        "hidden_size": hidden,
        "intermediate_size": whole(gguf, "feed_forward_length"),
        "num_hidden_layers": block_count(gguf),
        "num_attention_heads": heads,
        "num_key_value_heads": whole(gguf, "attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": whole(gguf, "context_length"),
        "tie_word_embeddings": "output.weight" not in gguf.by_name,
        "rope_parameters": _rope(gguf, rotary),
        "attention_bias": "blk.0.attn_q.bias" in gguf.by_name,
        "mlp_bias": "blk.0.ffn_up.bias" in gguf.by_name,
    }
    if rotary != head:
        values["rope_parameters"]["partial_rotary_factor"] = rotary / head
    if "attention.layer_norm_rms_epsilon" in known(gguf).keys:
        values["rms_norm_eps"] = _number(gguf, "attention.layer_norm_rms_epsilon")
    return values


def _rope(gguf: GgufFile, rotary: int) -> Values:
    theta = {"rope_theta": _number(gguf, "rope.freq_base", 10000.0)}
    if "rope_freqs.weight" in gguf.by_name:
        return theta | _own_factors(gguf, rotary, theta["rope_theta"])
    if "rope_factors_short.weight" in gguf.by_name:
        return theta | {
            "rope_type": "longrope",
            "short_factor": _vector(gguf, "rope_factors_short.weight", rotary // 2),
            "long_factor": _vector(gguf, "rope_factors_long.weight", rotary // 2),
            "attention_factor": _number(gguf, "rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": _original_context(gguf),
        }
    kind = gguf.hyperparameter("rope.scaling.type", "none")
    factor = _number(gguf, "rope.scaling.factor", 1.0)
    if kind == "linear" and factor != 1.0:
        return theta | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return theta | {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": _original_context(gguf),
            "beta_fast": _number(gguf, "rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": _number(gguf, "rope.scaling.yarn_beta_slow", 1.0),
        }
    if kind not in ("none", "linear"):
        raise _unsupported(gguf, f"a rotary scaling of the type {kind!r}")
    return theta | {"rope_type": "default"}


def _own_factors(gguf: GgufFile, rotary: int, theta: float) -> Values:
    """Factors of each frequency: those of Llama 3 by their name, any others as they are."""
    factors = _vector(gguf, "rope_freqs.weight", rotary // 2)
    for original in (8192, whole(gguf, "rope.scaling.original_context_length", 8192)):
        named = {
            "rope_type": "llama3",
            "factor": float(max(factors)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        if np.allclose(factors, _llama3(named, rotary, theta), rtol=1e-5, atol=0):
            return named
    # Not a long text's factors and a short one's, but the same for both.
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": whole(gguf, "context_length"),
    }


def _llama3(rope: Values, rotary: int, theta: float) -> list[float]:
    """What Llama 3 divides each frequency by. Source: Llama 3.1's reference code."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for index in range(0, rotary, 2):
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * theta ** (index / rotary))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors


def _phi3(gguf: GgufFile, values: Values) -> None:
    values["sliding_window"] = None
    values["original_max_position_embeddings"] = _original_context(gguf)
    values["rope_parameters"].setdefault("partial_rotary_factor", 1.0)


def _gemma(gguf: GgufFile, values: Values) -> None:
    layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
    is_27b = layers == _GEMMA_27B[gguf.architecture]
    values["query_pre_attn_scalar"] = (
        values["hidden_size"] // heads if is_27b else values["head_dim"]
    )
    default = 4096 if gguf.architecture == "gemma2" else 0
    window = whole(gguf, "attention.sliding_window", default, least=0)
    pattern = _WINDOW_PATTERNS[gguf.architecture]
    values["layer_types"] = [
        "sliding_attention" if window and (layer + 1) % pattern else "full_attention"
        for layer in range(layers)
    ]
    values["sliding_window"] = window or values["max_position_embeddings"]
    values["hidden_activation"] = "gelu_pytorch_tanh"
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        values[name] = _number(gguf, name, 0.0) or None


def _gemma3(gguf: GgufFile, values: Values) -> None:
    _gemma(gguf, values)
    local = _number(gguf, "rope.freq_base_swa", 10000.0)
    values["rope_parameters"] = {
        "full_attention": values["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _granite(gguf: GgufFile, values: Values) -> None:
    if gguf.hyperparameter("rope.scaling.finetuned") is False:
        raise _unsupported(gguf, "attention without a rotary embedding")
    default = 1 / math.sqrt(values["head_dim"])
    # llama.cpp takes a scale of zero for one that is not there.
    values["attention_multiplier"] = _number(gguf, "attention.scale", 0.0) or default
    values["embedding_multiplier"] = _number(gguf, "embedding_scale", 0.0) or 1.0
    values["residual_multiplier"] = _number(gguf, "residual_scale", 0.0) or 1.0
    values["logits_scaling"] = _number(gguf, "logit_scale")


def _smollm3(_gguf: GgufFile, values: Values) -> None:
    layers = range(values["num_hidden_layers"])
    values["no_rope_layers"] = [int((layer + 1) % 4 != 0) for layer in layers]


def _starcoder2(gguf: GgufFile, values: Values) -> None:
    values["norm_epsilon"] = _number(gguf, "attention.layer_norm_epsilon")
    values["use_bias"] = values.pop("attention_bias")
    values["sliding_window"] = None


def _mixtral(gguf: GgufFile, values: Values) -> None:
    values["num_local_experts"] = whole(gguf, "expert_count")
    values["num_experts_per_tok"] = whole(gguf, "expert_used_count")
    values["sliding_window"] = None


def _qwen3_moe(gguf: GgufFile, values: Values) -> None:
    values["num_experts"] = whole(gguf, "expert_count")
    values["num_experts_per_tok"] = whole(gguf, "expert_used_count")
    values["moe_intermediate_size"] = whole(gguf, "expert_feed_forward_length")
    values["norm_topk_prob"] = True


_MORE: dict[str, Callable[[GgufFile, Values], None]] = {
    "phi3": _phi3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gemma2": _gemma,
    "gemma3_text": _gemma3,
    "granite": _granite,
    "smollm3": _smollm3,
    "starcoder2": _starcoder2,
}


def _original_context(gguf: GgufFile) -> int:
    return whole(gguf, "rope.scaling.original_context_length", whole(gguf, "context_length"))


def _number(gguf: GgufFile, key: str, default: float | None = None) -> float:
    value = gguf.hyperparameter(key, default)
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise _unsupported(gguf, f"{key} = {value!r:.80}")
    return float(value)


def _vector(gguf: GgufFile, name: str, length: int) -> list[float]:
    info = gguf.by_name.get(name)
    if info is None or info.shape != (length,) or info.type.name != "F32":
        raise _unsupported(gguf, f"no {name} of {length} F32 numbers")
    with gguf.open() as tensors:
        raw = np.frombuffer(tensors.read(info, 0, info.n_bytes), np.uint8)
    values: list[float] = dequantize(raw.reshape(1, -1), info.type)[0].tolist()
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise _unsupported(gguf, f"numbers in {name} that are none")
    return values


def _unsupported(gguf: GgufFile, what: str) -> BaseModelError:
    return BaseModelError(
        f"{gguf.path.name} has {what}, which is not supported in a model of the architecture"
        f" {gguf.architecture}",
        "Choose another base.",
    )
