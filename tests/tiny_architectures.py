"""Tiny random models of every supported architecture, as Hugging Face directories and as GGUFs.

The GGUFs are made by llama.cpp's own converter, in a process of its own: what it does to weights
and hyperparameters is what `ollama_trainer` has to know.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ollama_trainer.bases.converter import converter
from tests.tiny_models import _MERGES, CHATML, SPECIAL, TOKENS

#: Tokens that llama.cpp asks for in files of some architectures, behind the others.
VOCABULARY = (*TOKENS, "<unk>", "<s>")
_SIZES = {
    "vocab_size": len(VOCABULARY), "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
_WINDOWED = {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16}
_LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
_FACTORS = {
    "short_factor": [1.0 + i / 40 for i in range(24)],
    "long_factor": [1.0 + i / 4 for i in range(24)],
}
#: Name -> class of the configuration in transformers, and what differs from _SIZES. No name is
#: that of a family: llama.cpp treats some files by their names.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-untied": ("LlamaConfig", {}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-3": (
        "LlamaConfig",
        {
            "rope_parameters": _LLAMA3
            | {"rope_theta": 500000.0, "factor": 32.0, "high_freq_factor": 4.0}
        },
    ),
    "llama-own-factors": (
        "LlamaConfig",
        {
            "rope_parameters": _LLAMA3
            | {"rope_theta": 10000.0, "factor": 4.0, "high_freq_factor": 2.0}
            | {"original_max_position_embeddings": 64}
        },
    ),
    "llama-linear": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": _YARN | {"rope_theta": 10000.0}}),
    "mistral": ("MistralConfig", {"head_dim": 64, "sliding_window": None}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-yarn": ("Qwen2Config", {"rope_parameters": _YARN | {"rope_theta": 1e6}}),
    "qwen3": ("Qwen3Config", {"head_dim": 128}),
    "qwen3moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 64, "moe_intermediate_size": 512, "num_experts": 4,
            "num_experts_per_tok": 2, "norm_topk_prob": True,
        },
    ),
    "fused": ("Phi3Config", {}),
    "fused-long": (
        "Phi3Config",
        {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0}
            | {"partial_rotary_factor": 0.75}
            | _FACTORS,
        },
    ),
    "gemma2": ("Gemma2Config", _WINDOWED),
    "gemma3": ("Gemma3TextConfig", _WINDOWED | {"num_hidden_layers": 7}),
    "gemma3-linear": (
        "Gemma3TextConfig",
        _WINDOWED
        | {"num_hidden_layers": 7}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": _LOCAL,
            }
        },
    ),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 6.0, "logits_scaling": 0.5, "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
        },
    ),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5, "use_sliding_window": False}),
    "olmo2": ("Olmo2Config", {}),
    "starcoder2": ("Starcoder2Config", {}),
}  # fmt: skip


def save_model(name: str, directory: Path) -> Path:
    """Writes the random model `name` as a Hugging Face directory without a tokenizer."""
    import torch
    import transformers

    kind, changes = MODELS[name]
    config = getattr(transformers, kind)(**_SIZES | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    # Gemma's norms are stored less one.
    centre = 0.0 if "gemma" in name else 1.0
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("bias"):
                weight.normal_(0, 0.05, generator=generator)
            elif weight.dim() == 1:
                weight.uniform_(centre - 0.2, centre + 0.2, generator=generator)
            else:
                is_vocabulary = "embed" in key or "lm_head" in key
                weight.normal_(0, 0.12 if is_vocabulary else 0.06, generator=generator)
    model.save_pretrained(directory)
    # The converter counts the vocabulary there, for one architecture.
    stub = {"model": {"vocab": dict.fromkeys(VOCABULARY, 0)}, "added_tokens": []}
    (directory / "tokenizer.json").write_text(json.dumps(stub), "utf-8")
    return directory


def convert(pairs: Mapping[Path, Path], kind: str = "f32") -> None:
    """Converts Hugging Face directories to GGUFs with the tiny vocabulary, all in one process."""
    paths = [str(path) for pair in pairs.items() for path in pair]
    command = [sys.executable, __file__, kind, *paths]
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(done.stderr[-4000:])


def _set_vocabulary(self: Any) -> None:
    writer = self.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(VOCABULARY))
    control, normal = 3, 1
    special = {*SPECIAL, "<unk>", "<s>"}
    writer.add_token_types([control if token in special else normal for token in VOCABULARY])
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def _convert_here(kind: str, paths: Sequence[str]) -> None:
    home = converter().parent
    sys.path[:0] = [str(home), str(home / "gguf-py")]
    import conversion
    import gguf

    types = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        hyperparameters = conversion.ModelBase.load_hparams(Path(source), False)
        name = conversion.get_model_architecture(hyperparameters, conversion.ModelType.TEXT)
        known = conversion.get_model_class(name)
        members = {"set_vocab": _set_vocabulary, "model_arch": known.model_arch}
        model = type(known.__name__, (known,), members)
        model(Path(source), types[kind], Path(target)).write()


if __name__ == "__main__":
    _convert_here(sys.argv[1], sys.argv[2:])
