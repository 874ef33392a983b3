"""A PEFT LoRA adapter on disk, as the changes that it makes to weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.stored import StoredArrays

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
    "layer_replication": None,
    "trainable_token_indices": None,
    # Variants of the forward pass.
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
#: Beginnings of the initialisations that take something off the base's weights: such an adapter
#: belongs to a base that no longer exists. PEFT can convert it when it saves, and then says so.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
#: What a key of a pattern may consist of. PEFT takes any regular expression; one that repeats or
#: chooses could be made to run for years.
_PLAIN_PATTERN = re.compile(r"[\w.^$\\\[\]-]+")
_LARGEST = 1e30
#: Modules whose stacked experts PEFT puts a LoRA on; of two parameters of one module, one is inside
#: the other's wrapper.
EXPERTS = re.compile(r"(.*\.experts)(?:\.base_layer)?")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The change of one linear layer: up @ down, the adapter's scaling already in `up`."""

    #: float32, shape (rank, input features).
    down: NDArray[np.float32]
    #: float32, shape (output features, rank).
    up: NDArray[np.float32]


class Adapter(Mapping[str, LoraPair]):
    """Module name in transformers -> its change, read whenever it is asked for."""

    def __init__(self, path: Path, tensors: StoredArrays, scaling: Mapping[str, float]) -> None:
        self._path, self._tensors, self._scaling = path, tensors, scaling

    def __iter__(self) -> Iterator[str]:
        return iter(self._scaling)

    def __len__(self) -> int:
        return len(self._scaling)

    def __getitem__(self, module: str) -> LoraPair:
        scaling = np.float32(self._scaling[module])
        try:
            down, up = (self._tensors[_key(module, half)].astype(np.float32) for half in "AB")
        except (OSError, ValueError) as error:
            raise ExportError(f"{self._path} cannot be read: {error}") from error
        up *= scaling
        return LoraPair(down, up)


def read_adapter(directory: Path) -> Adapter:
    """Reads an adapter directory.

    Raises:
        ExportError: files are missing or damaged, or the adapter does more than a plain LoRA.
    """
    config = _read_config(directory / CONFIG_NAME)
    path = directory / WEIGHTS_NAME
    try:
        tensors = StoredArrays(path)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    scaling: dict[str, float] = {}
    for key in sorted(tensors):
        module = key.removeprefix(_PREFIX).rpartition(".lora_")[0]
        if key == _key(module, "B") and _key(module, "A") in tensors:
            continue
        rank = _rank(tensors, module) if key == _key(module, "A") else None
        if rank is None:
            raise ExportError(
                f"{path} holds {key!r}, which is not half of a LoRA pair",
                "Only plain LoRA on linear layers can be merged.",
            )
        scaling[module] = _scaling(config, module, rank)
    if not scaling:
        raise ExportError(f"{path} changes no layer")
    return Adapter(path, tensors, scaling)


def _key(module: str, half: str) -> str:
    return f"{_PREFIX}{module}.lora_{half}.weight"


def _rank(tensors: StoredArrays, module: str) -> int | None:
    """The rank of a pair; None where its halves do not fit together."""
    if _key(module, "B") not in tensors:
        return None
    down, up = (tensors.shape(_key(module, half)) for half in "AB")
    return down[0] if len(down) == len(up) == 2 and up[1] == down[0] else None


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's factor of a module's change.

    Raises:
        ExportError: the tensors are of another rank than the configuration says.
    """
    expected = _of_module(config, "rank_pattern", module, config["r"])
    if EXPERTS.fullmatch(module) and rank % expected == 0:
        # Each expert's rank; how many there are the base knows.
        rank = int(expected)
    if rank != expected:
        raise ExportError(
            f"The adapter's {module} has rank {rank}, its configuration says {expected}",
            "Save the adapter again, so that both files belong together.",
        )
    alpha = _of_module(config, "alpha_pattern", module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config: Mapping[str, Any], name: str, module: str, otherwise: float) -> float:
    """A module's own number: of the first key that the end of its name matches, as PEFT does it."""
    for key, value in (config.get(name) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return otherwise


def _is_plain_lora(config: object) -> bool:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        return False
    rank, alpha = config.get("r"), config.get("lora_alpha")
    # Exactly int: True is one too.
    return type(rank) is int and rank > 0 and _is_number(alpha)


def _is_number(value: object) -> bool:
    """Whether it is one that float32 has room for."""
    return type(value) in (int, float) and abs(value) < _LARGEST  # type: ignore[arg-type]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not _is_plain_lora(config):
        raise ExportError(f"{path} does not describe a LoRA", "Only LoRA adapters can be merged.")
    for key, only in _ONLY.items():
        if config.get(key, only) not in (only, None, {}, [], False):
            raise ExportError(
                f"The adapter sets {key} to {config[key]!r}, which cannot be merged",
                f"Train it with {key} = {only!r}.",
            )
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGES_BASE):
        raise ExportError(
            f"The adapter sets init_lora_weights to {config['init_lora_weights']!r}, which changes"
            " the base too",
            "Convert it to a plain LoRA with PEFT: path_initial_model_for_weight_conversion.",
        )
    for name in ("rank_pattern", "alpha_pattern"):
        _check_pattern(name, config.get(name) or {})
    return config


def _check_pattern(name: str, pattern: object) -> None:
    items = pattern.items() if isinstance(pattern, dict) else [(pattern, None)]
    for key, value in items:
        if not _is_plain_pattern(key) or not _is_number(value):
            raise ExportError(
                f"The adapter's {name} says {key!r}: {value!r}, which cannot be followed",
                "Use parts of module names as keys, and numbers as values.",
            )


def _is_plain_pattern(key: object) -> bool:
    if not isinstance(key, str) or not _PLAIN_PATTERN.fullmatch(key):
        return False
    try:
        re.compile(rf"(.*\.)?({key})$")
    except re.error:
        return False
    return True
