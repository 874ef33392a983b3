"""Adapters: a plain LoRA is read with its scaling, everything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from safetensors.torch import save_file

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.adapter import CONFIG_NAME, WEIGHTS_NAME, read_adapter
from tests.tiny_models import tiny_model

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{Q_PROJ}.lora_A.weight", f"{Q_PROJ}.lora_B.weight"
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
    np.testing.assert_array_equal(change.down, tensors[f"{Q_PROJ}.lora_A.weight"].numpy())
    np.testing.assert_array_equal(change.up, tensors[f"{Q_PROJ}.lora_B.weight"].numpy() * scaling)


class Layers(torch.nn.Module):
    """Linear layers of equal names in two places, as models have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {name: torch.nn.Linear(16, 8, bias=False) for name in ("q_proj", "k_proj")}
            )
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(8)
        for layer in self.layers:
            for part in layer.values():  # type: ignore[operator]
                total = total + part(x)
        return total


PATTERNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 2, "layers.1.k_proj": 6}},
    "alphas": {"alpha_pattern": {"layers.0.q_proj": 3, "k_proj": 20}},
    "the first key counts": {"alpha_pattern": {"0.k_proj": 3, "k_proj": 20, "q_proj": 1}},
    "anchors and classes": {"alpha_pattern": {r"^layers\.\d\.q_proj": 5, "layers.[01].k_proj$": 7}},
    "no such module": {"rank_pattern": {"_proj": 2, "v_proj": 3}, "alpha_pattern": {"q": 1}},
    "both": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}, "use_rslora": True},
}


@pytest.mark.parametrize("case", PATTERNS)
def test_what_peft_saves_is_read_as_peft_merges_it(tmp_path: Path, case: str) -> None:
    """Names, keys, patterns and scaling are PEFT's to choose: only PEFT itself can confirm them."""
    from peft import LoraConfig, get_peft_model

    model: Any = Layers()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj"], **PATTERNS[case])
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path))
    merged = model.merge_and_unload()
    found = read_adapter(tmp_path)
    assert len(found) == len(before) == 4
    for name, weight in merged.named_parameters():
        change = found[name.removesuffix(".weight")]
        wanted = (weight.detach() - before[name]).numpy()
        np.testing.assert_allclose(change.up @ change.down, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_every_precision_becomes_float32(tmp_path: Path, kind: str) -> None:
    """Products of bfloat16 would lose what rounding by chance keeps; torch is not there to help."""
    tensors = {key: value.to(getattr(torch, kind)) for key, value in pair().items()}
    (change,) = read_adapter(adapter(tmp_path, tensors)).values()
    assert {half.dtype.name for half in (change.down, change.up)} == {"float32"}
    np.testing.assert_array_equal(change.down, tensors[A].float().numpy())
    np.testing.assert_array_equal(change.up, tensors[B].float().numpy() * 2)


@pytest.mark.parametrize("kind", ["float64", "int8", "float8_e4m3fn"])
def test_other_types_are_refused(tmp_path: Path, kind: str) -> None:
    """Read as another type, they would be noise."""
    tensors = {key: value.to(getattr(torch, kind)) for key, value in pair().items()}
    with pytest.raises(ExportError, match="of the type"):
        read_adapter(adapter(tmp_path, tensors))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"(a|a)*q_proj": 8}),
        ("rank_pattern", {"[": 8}),
        ("rank_pattern", {"": 8}),
        ("rank_pattern", {"q_proj": None}),
        ("rank_pattern", {"q_proj": "8"}),
        ("alpha_pattern", {"(q|k)_proj": 8}),
        ("alpha_pattern", {"q_proj": float("inf")}),
        ("alpha_pattern", ["q_proj"]),
        ("alpha_pattern", "q_proj"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "OLoRA"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
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
        ({"lora_alpha": float("nan")}, "not describe a LoRA"),
        ({"lora_alpha": 10**400}, "not describe a LoRA"),
    ],
)
def test_a_config_of_something_else_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """Other methods save files of the same names."""
    with pytest.raises(ExportError, match=message):
        read_adapter(adapter(tmp_path, **config))


@pytest.mark.parametrize("rank", [3, 8])
def test_a_rank_other_than_the_configurations_is_refused(tmp_path: Path, rank: int) -> None:
    """Two files of different trainings: the scaling is the one's, the tensors are the other's."""
    with pytest.raises(ExportError, match=f"rank 4, its configuration says {rank}"):
        read_adapter(adapter(tmp_path, r=rank))
    with pytest.raises(ExportError, match="q_proj has rank 4"):
        read_adapter(adapter(tmp_path, rank_pattern={"q_proj": rank}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff", "[" * 100_000])
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


def save(model: Any, directory: Path, **settings: Any) -> Path:
    """What PEFT itself writes for these settings."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **settings}
    get_peft_model(model, LoraConfig(**options)).save_pretrained(str(directory))
    return directory


MORE_THAN_LORA: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": {"embed_tokens": [3, 4]}},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("key", MORE_THAN_LORA)
def test_what_peft_writes_for_more_than_a_plain_lora(tmp_path: Path, key: str) -> None:
    """The names of settings are PEFT's: one that it renamed would pass unseen."""
    with pytest.raises(ExportError, match=key):
        read_adapter(save(tiny_model(), tmp_path, **MORE_THAN_LORA[key]))


def test_what_peft_writes_for_biases_and_turned_layers(tmp_path: Path) -> None:
    """These need layers that the tiny model has not."""
    from transformers.pytorch_utils import Conv1D

    layers = torch.nn.Sequential(torch.nn.Linear(16, 8), Conv1D(4, 8))
    with pytest.raises(ExportError, match="lora_bias"):
        read_adapter(save(layers, tmp_path / "bias", target_modules=["0"], lora_bias=True))
    layers = torch.nn.Sequential(torch.nn.Linear(16, 8), Conv1D(4, 8))
    turned = save(layers, tmp_path / "turned", target_modules=["1"], fan_in_fan_out=True)
    with pytest.raises(ExportError, match="fan_in_fan_out"):
        read_adapter(turned)


@pytest.mark.parametrize(
    ("tensor", "settings"),
    [
        ("lora_magnitude_vector", {"use_dora": True}),
        ("lm_head", {"modules_to_save": ["lm_head"]}),
        ("embed_tokens", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("embed_tokens", {"trainable_token_indices": {"embed_tokens": [3, 4]}}),
    ],
)
def test_tensors_tell_what_a_configuration_conceals(
    tmp_path: Path, tensor: str, settings: dict[str, Any]
) -> None:
    """A configuration that was tidied up must not turn training into silence."""
    save(tiny_model(), tmp_path, **settings)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    config |= {"use_dora": False, "modules_to_save": None, "trainable_token_indices": None}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(ExportError, match=f"{tensor}.*not half of a LoRA pair"):
        read_adapter(tmp_path)


def test_weights_that_are_cut_later(tmp_path: Path) -> None:
    """Pairs are read when they are needed; a file may be gone by then."""
    found = read_adapter(adapter(tmp_path))
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ExportError, match=WEIGHTS_NAME):
        found["model.layers.0.self_attn.q_proj"]
    path.unlink()
    with pytest.raises(ExportError, match=WEIGHTS_NAME):
        found["model.layers.0.self_attn.q_proj"]
