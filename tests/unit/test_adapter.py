"""Adapters: a plain LoRA is read with its scaling, everything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from safetensors.torch import save_file

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.adapter import CONFIG_NAME, WEIGHTS_NAME, read_adapter

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False,
    "use_rslora": False, "fan_in_fan_out": False, "modules_to_save": None, "rank_pattern": {},
    "alpha_pattern": {}, "target_modules": ["q_proj"],
}  # fmt: skip


def pair(module: str = Q_PROJ, rank: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, 16, generator=generator),
        f"{module}.lora_B.weight": torch.randn(8, rank, generator=generator),
    }


def adapter(directory: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    (directory / CONFIG_NAME).write_text(json.dumps(CONFIG | config))
    save_file(pair() if tensors is None else tensors, directory / WEIGHTS_NAME)
    return directory


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_the_scaling_is_that_of_peft(tmp_path: Path, rslora: bool, scaling: float) -> None:
    """A wrong factor teaches too much or too little, and nothing else would tell."""
    tensors = pair()
    ((module, change),) = read_adapter(adapter(tmp_path, tensors, use_rslora=rslora)).items()
    assert module == "model.layers.0.self_attn.q_proj"
    assert torch.equal(change.down, tensors[f"{Q_PROJ}.lora_A.weight"])
    assert torch.equal(change.up, tensors[f"{Q_PROJ}.lora_B.weight"] * scaling)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_is_read_as_peft_merges_it(tmp_path: Path, rslora: bool) -> None:
    """Names, keys and scaling are PEFT's to choose: only PEFT itself can confirm them."""
    from peft import LoraConfig, get_peft_model

    layer = torch.nn.Linear(16, 8, bias=False)
    before = layer.weight.detach().clone()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], use_rslora=rslora)
    model = get_peft_model(torch.nn.Sequential(layer), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path))
    merged = model.merge_and_unload()[0].weight.detach()
    (change,) = read_adapter(tmp_path).values()
    torch.testing.assert_close(change.up @ change.down, merged - before, rtol=1e-4, atol=1e-4)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    """Products of bfloat16 would lose what rounding by chance keeps."""
    tensors = {key: value.bfloat16() for key, value in pair().items()}
    (change,) = read_adapter(adapter(tmp_path, tensors)).values()
    assert (change.down.dtype, change.up.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("trainable_token_indices", [1, 2]),
    ],
)
def test_more_than_a_plain_lora_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    """Merged as if it were plain, it would give a model that nobody trained."""
    with pytest.raises(ExportError, match=key):
        read_adapter(adapter(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "not describe a LoRA"),
        ({"peft_type": None}, "not describe a LoRA"),
        ({"r": None}, "not describe a LoRA"),
        ({"r": "4"}, "not describe a LoRA"),
        ({"r": 0}, "not describe a LoRA"),
        ({"r": True}, "not describe a LoRA"),
        ({"lora_alpha": None}, "not describe a LoRA"),
        ({"lora_alpha": "8"}, "not describe a LoRA"),
    ],
)
def test_a_config_of_something_else_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """Other methods save files of the same names."""
    with pytest.raises(ExportError, match=message):
        read_adapter(adapter(tmp_path, **config))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff"])
def test_a_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    """A run that was killed while it saved."""
    adapter(tmp_path)
    (tmp_path / CONFIG_NAME).write_text(text, errors="surrogateescape")
    with pytest.raises(ExportError, match=CONFIG_NAME):
        read_adapter(tmp_path)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """The message must say which one."""
    (adapter(tmp_path) / name).unlink()
    with pytest.raises(ExportError, match=name):
        read_adapter(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100])
def test_cut_weights_are_refused(tmp_path: Path, keep: int) -> None:
    """A full disk leaves such a file."""
    path = adapter(tmp_path) / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ExportError, match=WEIGHTS_NAME):
        read_adapter(tmp_path)


A, B = f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_B.weight"
FOREIGN = {
    "a magnitude of DoRA": pair() | {f"{Q_PROJ}.lora_magnitude_vector": torch.ones(8)},
    "a saved module": pair() | {"base_model.model.lm_head.weight": torch.ones(2, 2)},
    "an embedding": pair() | {f"{Q_PROJ}.lora_embedding_A": torch.ones(4, 2)},
    "a bias": pair() | {f"{Q_PROJ}.lora_B.bias": torch.ones(8)},
    "only A": {A: torch.ones(4, 16)},
    "only B": {B: torch.ones(8, 4)},
    "two ranks": {A: torch.ones(4, 16), B: torch.ones(8, 5)},
    "no prefix": {key.removeprefix("base_model.model."): pair()[key] for key in (A, B)},
    "a convolution": {A: torch.ones(4, 16, 1, 1), B: torch.ones(8, 4, 1, 1)},
    "a vector": {A: torch.ones(4), B: torch.ones(8)},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_tensors_that_are_no_pair_are_refused(tmp_path: Path, case: str) -> None:
    """What is left out of the merge is training thrown away in silence."""
    with pytest.raises(ExportError, match="not half of a LoRA pair"):
        read_adapter(adapter(tmp_path, FOREIGN[case]))


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    """The result would be the base under a new name."""
    with pytest.raises(ExportError, match="changes no layer"):
        read_adapter(adapter(tmp_path, {}))
