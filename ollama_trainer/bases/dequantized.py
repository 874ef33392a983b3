"""A GGUF as a Hugging Face directory: the weights that Ollama serves, in a form that trains.

transformers can read GGUF files itself, but a model read so keeps marks of a quantiser that refuse
training and saving, and the tokenizer that it builds has other special tokens and other ids than
llama.cpp. So the weights are dequantised here, the configuration alone is transformers' reading,
and the tokenizer is a bare list of the GGUF's tokens that knows the right special ids: text is
never tokenised with it (see prompts.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ollama_trainer.bases import caches
from ollama_trainer.bases.configuration import configuration
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.architectures import architecture_of, known
from ollama_trainer.gguf.file import GgufFile, TensorReader, read_gguf
from ollama_trainer.gguf.grids import dequantize
from ollama_trainer.gguf.tensors import Rows, original_row_order, tensor_names
from ollama_trainer.gguf.vocabulary import token_id, tokens
from ollama_trainer.records import BaseGguf
from ollama_trainer.workspace import atomic_directory

if TYPE_CHECKING:
    from torch import Size, Tensor, dtype

#: Raised when the layout of the directory changes, so that older caches are not used.
_LAYOUT = 2
#: Weights of one file.
_SHARD_BYTES = 2 << 30
_ANOTHER = "Choose another base."
#: Tensors that the configuration holds.
_IN_THE_CONFIGURATION = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)


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
        caches.mark_used(final)
        return final
    gguf = read_gguf(base.gguf)
    architecture_of(gguf)
    with atomic_directory(final) as partial:
        _write_config(gguf, partial, precision)
        _write_tokenizer(gguf, partial)
        _write_weights(gguf, partial, torch_dtype)
    return final


def _write_config(gguf: GgufFile, directory: Path, precision: str) -> None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(**configuration(gguf))
    except (ValueError, TypeError, KeyError) as error:
        raise BaseModelError(
            f"transformers has no configuration like that of {gguf.path.name}: {error}",
            _ANOTHER,
        ) from error
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
    eos = token_id(gguf, "eos")
    named = [token_id(gguf, name) for name in ("padding", "unknown", "bos")]
    pad = next((token for token in named if token is not None and token != eos), None)
    return {
        "bos": token_id(gguf, "bos"),
        "eos": eos,
        "pad": (1 if eos == 0 else 0) if pad is None else pad,
    }


def _write_tokenizer(gguf: GgufFile, directory: Path) -> None:
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens(gguf)):
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
    names = {kind: tensor_names(gguf, kind) for kind in ("weight", "bias")}
    shards = _Shards(directory)
    placed = set(_IN_THE_CONFIGURATION)
    with gguf.open() as reader:
        for key, shape in _parameters(directory):
            parts = _tensors_of(names, key)
            if not parts:
                # transformers would fill it with random numbers.
                raise BaseModelError(f"{gguf.path.name} has no weights for {key}", _ANOTHER)
            read = [_read_tensor(gguf, reader, module, name) for module, name in parts]
            # Of each expert first the rows of its gate.
            weight = _tensor(np.concatenate(read, axis=-2) if len(read) > 1 else read[0])
            if weight.shape != shape:
                raise _no_place(gguf, f"{parts[0][1]} with its shape")
            shards.add(key, weight.to(torch_dtype))
            placed.update(name for _, name in parts)
    left = sorted({tensor.name for tensor in gguf.tensors} - placed)
    if left:
        raise _no_place(gguf, f"{left[0]} and {len(left) - 1} more tensors")
    shards.close()


class _Shards:
    """Weights as safetensors in several files, so that not all of them are in memory at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._waiting: dict[str, Tensor] = {}
        self._file_of: dict[str, str] = {}
        self._n_files = self._n_bytes = self._total = 0

    def add(self, key: str, weight: Tensor) -> None:
        self._waiting[key] = weight
        self._n_bytes += weight.nbytes
        if self._n_bytes >= _SHARD_BYTES:
            self._save()

    def close(self) -> None:
        """Writes what waits; several files need an index, a single one has a name of its own."""
        self._save()
        if self._n_files == 1:
            (only,) = set(self._file_of.values())
            (self._directory / only).rename(self._directory / "model.safetensors")
            return
        index = {"metadata": {"total_size": self._total}, "weight_map": self._file_of}
        path = self._directory / "model.safetensors.index.json"
        path.write_text(json.dumps(index), encoding="utf-8")

    def _save(self) -> None:
        from safetensors.torch import save_file

        self._n_files += 1
        name = f"model-{self._n_files:05}.safetensors"
        save_file(self._waiting, self._directory / name, metadata={"format": "pt"})
        self._file_of |= dict.fromkeys(self._waiting, name)
        self._total += self._n_bytes
        self._waiting, self._n_bytes = {}, 0


def _tensors_of(names: Mapping[str, Mapping[str, str]], parameter: str) -> list[tuple[str, str]]:
    """A parameter's parts, as module in gguf's naming and tensor; empty if one is missing.

    Args:
        names: `tensor_names` for `weight` and for `bias`.
    """
    module, _, kind = parameter.rpartition(".")
    modules = [module]
    if module.endswith(".experts"):
        projections = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        modules, kind = [f"{module}.{projection}" for projection in projections], "weight"
    found = names.get(kind, {})
    parts = [(one, found[one]) for one in modules if one in found]
    return parts if len(parts) == len(modules) else []


def _no_place(gguf: GgufFile, what: str) -> BaseModelError:
    return BaseModelError(f"transformers has no place for {what} of {gguf.path.name}", _ANOTHER)


def _parameters(directory: Path) -> list[tuple[str, Size]]:
    """Names and shapes of the model's parameters, without room for their values."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    return [(name, parameter.shape) for name, parameter in model.named_parameters()]


def _read_tensor(gguf: GgufFile, reader: TensorReader, module: str, name: str) -> Rows:
    info = gguf.by_name[name]
    raw = np.frombuffer(reader.read(info, 0, info.n_bytes), np.uint8)
    rows = dequantize(raw.reshape(info.n_rows if len(info.shape) > 1 else 1, -1), info.type)
    values = original_row_order(gguf, module)(rows.reshape(tuple(reversed(info.shape))))
    if len(info.shape) == 1 and module.endswith("norm"):
        values = values - np.float32(known(gguf).norm_shift)
    return values


def _tensor(values: Rows) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))
