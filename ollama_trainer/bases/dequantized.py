"""A GGUF as a Hugging Face directory: the weights that Ollama serves, in a form that trains.

transformers can read GGUF files itself, but a model read so keeps marks of a quantiser that refuse
training and saving, and the tokenizer that it builds has other special tokens and other ids than
llama.cpp. So the weights are dequantised here, the configuration alone is transformers' reading,
and the tokenizer is a bare list of the GGUF's tokens that knows the right special ids: text is
never tokenised with it (see prompts.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.grids import dequantize
from ollama_trainer.gguf.tensors import architecture_of, original_row_order, tensor_names
from ollama_trainer.records import BaseGguf
from ollama_trainer.workspace import atomic_directory

if TYPE_CHECKING:
    from torch import Tensor, dtype

#: Raised when the layout of the directory changes, so that older caches are not used.
_LAYOUT = 1


def dequantized_directory(base: BaseGguf, cache: Path, torch_dtype: dtype) -> Path:
    """The directory for `base`, made at the first call and kept by digest.

    Args:
        base: the GGUF to read.
        cache: the directory that holds all such directories.
        torch_dtype: of the weights written.

    Raises:
        BaseModelError: transformers does not know this kind of model.
    """
    precision = str(torch_dtype).removeprefix("torch.")
    final = cache / f"dequantized-{_LAYOUT}-{base.digest[:32]}-{precision}"
    if final.is_dir():
        return final
    gguf = read_gguf(base.gguf)
    with atomic_directory(final) as partial:
        _write_config(gguf, partial, precision)
        _write_tokenizer(gguf, partial)
        _write_weights(gguf, partial, torch_dtype)
    return final


def _write_config(gguf: GgufFile, directory: Path, precision: str) -> None:
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        values: dict[str, Any] = load_gguf_checkpoint(str(gguf.path), return_tensors=False)[
            "config"
        ]
        config = AutoConfig.for_model(**values)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise BaseModelError(
            f"transformers cannot read the configuration of {gguf.path.name}: {error}",
            "Choose another base.",
        ) from error
    config.tie_word_embeddings = "output.weight" not in gguf.by_name
    config.dtype = precision
    config.architectures = _class_names(config)
    special = special_token_ids(gguf)
    config.bos_token_id, config.eos_token_id = special["bos"], special["eos"]
    config.pad_token_id = special["pad"]
    config.save_pretrained(directory)


def _class_names(config: Any) -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]


def special_token_ids(gguf: GgufFile) -> dict[str, int | None]:
    """Ids of bos, eos and pad, from the GGUF's own keys.

    Padding is never the end-of-sequence token: a model that sees it masked never learns to stop.
    """
    prefix = "tokenizer.ggml."
    eos = gguf.get(f"{prefix}eos_token_id")
    named = [gguf.get(f"{prefix}{name}_token_id") for name in ("padding", "unknown", "bos")]
    pad = next((token for token in named if token is not None and token != eos), None)
    return {
        "bos": gguf.get(f"{prefix}bos_token_id"),
        "eos": eos,
        "pad": (1 if eos == 0 else 0) if pad is None else pad,
    }


def _write_tokenizer(gguf: GgufFile, directory: Path) -> None:
    tokens: list[str] = gguf.get("tokenizer.ggml.tokens", [])
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        name = token if token not in vocabulary else f"{token}<{index}>"
        vocabulary[name.encode("utf-8", "replace").decode()] = index
    special = special_token_ids(gguf)
    by_id = {index: token for token, index in vocabulary.items()}
    names = {f"{key}_token": by_id[index] for key, index in special.items() if index in by_id}
    added = [
        {
            "id": index, "content": by_id[index], "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
        for index in sorted({index for index in special.values() if index in by_id})
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {
            "type": "WordLevel", "vocab": vocabulary, "unk_token": names.get("pad_token", ""),
        },
    }  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def _write_weights(gguf: GgufFile, directory: Path, torch_dtype: dtype) -> None:
    from safetensors.torch import save_file

    architecture_of(gguf)
    names = tensor_names(gguf)
    weights: dict[str, Tensor] = {}
    for key in _parameter_names(directory):
        module = key.removesuffix(".weight")
        if module in names:
            weights[key] = _read_tensor(gguf, module, names[module]).to(torch_dtype)
    placed = {names[key.removesuffix(".weight")] for key in weights}
    left = {tensor.name for tensor in gguf.tensors} - placed
    if left:
        raise BaseModelError(
            f"transformers has no place for {sorted(left)[0]} of {gguf.path.name}"
            f" and {len(left) - 1} more tensors",
            "Choose another base.",
        )
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _parameter_names(directory: Path) -> list[str]:
    """The names of the model's parameters, without room for their values."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    return [name for name, _ in model.named_parameters()]


def _read_tensor(gguf: GgufFile, module: str, name: str) -> Tensor:
    import torch

    info = gguf.by_name[name]
    with gguf.path.open("rb") as handle:
        handle.seek(gguf.data_start + info.offset)
        raw = torch.frombuffer(bytearray(handle.read(info.n_bytes)), dtype=torch.uint8)
    rows = dequantize(raw.reshape(info.n_rows, -1), info.type)
    return original_row_order(gguf, module)(rows).reshape(tuple(reversed(info.shape))).contiguous()
