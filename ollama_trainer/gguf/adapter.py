"""A PEFT LoRA adapter on disk, as the changes that it makes to weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
#: Settings that change what an adapter means, with the only value that is understood here.
_ONLY = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The change of one linear layer: up @ down, the adapter's scaling already in `up`."""

    #: float32, shape (rank, input features).
    down: Tensor
    #: float32, shape (output features, rank).
    up: Tensor


def read_adapter(directory: Path) -> dict[str, LoraPair]:
    """Reads an adapter directory: module name in transformers -> its change.

    Raises:
        ExportError: files are missing or damaged, or the adapter does more than a plain LoRA.
    """
    config = _read_config(directory / CONFIG_NAME)
    tensors = _read_weights(directory / WEIGHTS_NAME)
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    pairs: dict[str, LoraPair] = {}
    for key in sorted(tensors):
        module, _, kind = key.removeprefix(_PREFIX).rpartition(".lora_")
        if kind == "B.weight" and f"{_PREFIX}{module}.lora_A.weight" in tensors:
            continue
        up = tensors.get(f"{_PREFIX}{module}.lora_B.weight")
        if kind != "A.weight" or up is None or not _fit_together(tensors[key], up):
            raise ExportError(
                f"{directory / WEIGHTS_NAME} holds {key!r}, which is not half of a LoRA pair",
                "Only plain LoRA on linear layers can be merged.",
            )
        pairs[module] = LoraPair(tensors[key].float(), up.float() * scaling)
    if not pairs:
        raise ExportError(f"{directory / WEIGHTS_NAME} changes no layer")
    return pairs


def _fit_together(down: Tensor, up: Tensor) -> bool:
    return down.ndim == up.ndim == 2 and up.shape[1] == down.shape[0]


def _is_plain_lora(config: object) -> bool:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        return False
    rank, alpha = config.get("r"), config.get("lora_alpha")
    # Exactly int: True is one too.
    return type(rank) is int and rank > 0 and type(alpha) in (int, float)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not _is_plain_lora(config):
        raise ExportError(f"{path} does not describe a LoRA", "Only LoRA adapters can be merged.")
    for key, only in _ONLY.items():
        if config.get(key, only) not in (only, None, {}, [], False):
            raise ExportError(
                f"The adapter sets {key} to {config[key]!r}, which cannot be merged",
                f"Train it with {key} = {only!r}.",
            )
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    return tensors
