"""Every supported architecture: the file that is served is the model that was trained.

For each tiny model, made by transformers and converted by llama.cpp's own converter: torch computes
with the dequantised weights what llama.cpp computes with the file, so does Unsloth, and an adapter
that is merged gives the file that the converter makes of PEFT's merge.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_trainer.bases import resolve_base
from ollama_trainer.bases.dequantized import dequantized_directory
from ollama_trainer.errors import BaseModelError, ExportError
from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.architectures import ARCHITECTURES, architecture_of
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.merge import merge
from tests.integration.test_parity import (
    SEQUENCES,
    computed,
    exact_llama_cpp,
    greedy,
    greedy_torch,
    served,
)
from tests.tiny_architectures import MODELS, convert, save_model

#: Largest difference of two logits, which reach 19. Seen: 2e-5; 0.003 where llama.cpp looks GELU up
#: in a table of half precision.
_BOUND = 2e-4
_GELU = 0.03
#: Experts are no linear layers of their own in transformers: PEFT has another way for them.
_WITH_EXPERTS = ("mixtral", "qwen3moe")


class Zoo:
    """All models, their files and adapters."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.models = {name: save_model(name, directory / name) for name in MODELS}
        convert({path: self.gguf(name) for name, path in self.models.items()})

    def gguf(self, name: str) -> Path:
        return self.directory / f"{name}.gguf"

    def file(self, name: str) -> GgufFile:
        return read_gguf(self.gguf(name))

    def torch_model(self, name: str) -> Any:
        """The model with the weights and the configuration that are read from the GGUF."""
        import torch
        from transformers import AutoModelForCausalLM

        base = resolve_base(f"gguf:{self.gguf(name)}")
        path = dequantized_directory(base, self.directory, torch.float32)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        return model.eval()

    @cache  # noqa: B019
    def adapted(self, name: str, experts: bool = False) -> Path:
        """A random adapter on every module that is trained; with `experts`, on those, too."""
        import torch
        from peft import LoraConfig, get_peft_model

        parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if experts else None
        config = LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, init_lora_weights=False,
            target_modules=list(architecture_of(self.file(name)).target_modules),
            target_parameters=parameters,
        )  # fmt: skip
        torch.manual_seed(3)
        model = get_peft_model(self.torch_model(name), config)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_B" in key:
                    weight.mul_(0.3)
        path = self.directory / f"{name}-{experts}-adapter"
        model.save_pretrained(path)
        return path

    def tuned(self, name: str, experts: bool = False) -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(self.torch_model(name), self.adapted(name, experts)).eval()

    @cache  # noqa: B019
    def merged(self, name: str, experts: bool = False) -> Path:
        out = self.directory / f"{name}-{experts}-merged.gguf"
        merge(self.file(name), read_adapter(self.adapted(name, experts)), out)
        return out

    @cache  # noqa: B019
    def merged_by_peft(self) -> dict[str, Path]:
        """Name -> the GGUF that llama.cpp's converter makes of PEFT's merged model.

        PEFT merges into the model that transformers made, not into what was read off the GGUF.
        """
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        pairs = {}
        for name in MODELS:
            path = self.directory / f"{name}-merged-by-peft"
            model = AutoModelForCausalLM.from_pretrained(self.models[name], dtype=torch.float32)
            tuned = PeftModel.from_pretrained(model, self.adapted(name))
            tuned.merge_and_unload().save_pretrained(path)
            (path / "tokenizer.json").write_bytes(
                (self.models[name] / "tokenizer.json").read_bytes()
            )
            pairs[path] = self.directory / f"{name}-by-converter.gguf"
        convert(pairs)
        return dict(zip(MODELS, pairs.values(), strict=True))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with exact_llama_cpp():
        yield Zoo(tmp_path_factory.mktemp("architectures"))
    torch.set_num_threads(threads)


def bound(name: str) -> float:
    return _GELU if name.startswith(("gemma", "starcoder")) else _BOUND


def test_every_architecture_has_a_model_here() -> None:
    """What is not proven here must not be in the list."""
    kinds = {"fused": "phi3", "mistral": "llama", "mixtral": "llama"}
    names = {name.partition("-")[0] for name in MODELS}
    assert {kinds.get(name, name) for name in names} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", MODELS)
def test_torch_computes_what_llama_cpp_computes(zoo: Zoo, name: str) -> None:
    """Names, rows, norms, and every hyperparameter that the computation depends on."""
    difference = np.abs(computed(zoo.torch_model(name)) - served(zoo.gguf(name))).max()
    assert difference < bound(name)


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_adapter_computes_what_peft_computes(zoo: Zoo, name: str) -> None:
    model, merged = zoo.tuned(name), zoo.merged(name)
    exact = computed(model)
    assert np.abs(exact - served(zoo.gguf(name))).max() > 1  # the adapter changes what is said
    assert np.abs(exact - served(merged)).max() < bound(name)
    start = SEQUENCES[0][:16]
    assert greedy(merged, start, 16) == greedy_torch(model, start, 16)


@pytest.mark.parametrize("name", _WITH_EXPERTS)
def test_an_adapter_on_experts_is_merged_into_each_of_them(zoo: Zoo, name: str) -> None:
    exact = computed(zoo.tuned(name, experts=True))
    assert np.abs(exact - computed(zoo.tuned(name))).max() > 1
    assert np.abs(exact - served(zoo.merged(name, experts=True))).max() < bound(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_merged_file_is_what_the_converter_makes_of_the_merged_model(
    zoo: Zoo, name: str
) -> None:
    """Tensor by tensor, against PEFT's merge and llama.cpp's converter."""
    ours, theirs = read_gguf(zoo.merged(name)), read_gguf(zoo.merged_by_peft()[name])
    assert set(ours.by_name) == set(theirs.by_name)
    with ours.open() as left, theirs.open() as right:
        for key, tensor in ours.by_name.items():
            other = theirs.by_name[key]
            assert tensor.shape == other.shape
            values = np.frombuffer(left.read(tensor, 0, tensor.n_bytes), np.float32)
            expected = np.frombuffer(right.read(other, 0, other.n_bytes), np.float32)
            assert np.abs(values - expected).max() < 1e-6


@pytest.fixture(scope="module")
def loaded(zoo: Zoo) -> dict[str, dict[str, Any]]:
    """What Unsloth does with each model, in a process of its own, since it patches transformers."""
    script = Path(__file__).parent / "load_tiny.py"
    names = json.dumps({name: str(zoo.gguf(name)) for name in MODELS})
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), str(zoo.directory), names],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_unsloth_trains_what_llama_cpp_serves(loaded: dict[str, dict[str, Any]], name: str) -> None:
    """Unsloth puts classes and kernels of its own in the place of transformers'."""
    assert loaded[name]["divergence"] < 1e-4
    assert loaded[name]["n_trained"] > 0
    assert loaded[name]["n_without_gradient"] == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.clamp_kqv", 8.0), ("rope.scaling.yarn_log_multiplier", 0.1)],
)
def test_a_hyperparameter_that_is_not_known_is_refused_by_name(
    zoo: Zoo, tmp_path: Path, key: str, value: float
) -> None:
    """llama.cpp would heed it, and what is trained would be another model."""
    path = with_key(zoo.gguf("llama-tied"), tmp_path / "odd.gguf", f"llama.{key}", value)
    with pytest.raises(BaseModelError, match=key):
        architecture_of(read_gguf(path))


def test_a_key_that_says_none_is_no_obstacle(zoo: Zoo, tmp_path: Path) -> None:
    path = with_key(zoo.gguf("llama-tied"), tmp_path / "zero.gguf", "llama.expert_count", 0)
    assert architecture_of(read_gguf(path)).model_type == "llama"


def test_a_granite_without_rotary_embedding_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    key = "granite.rope.scaling.finetuned"
    path = with_key(zoo.gguf("granite"), tmp_path / "nope.gguf", key, False)
    import torch

    with pytest.raises(BaseModelError, match="rotary"):
        dequantized_directory(resolve_base(f"gguf:{path}"), tmp_path, torch.float32)


def test_a_missing_tensor_is_not_filled_with_random_numbers(zoo: Zoo, tmp_path: Path) -> None:
    import torch

    path = without_tensor(zoo.gguf("qwen2"), tmp_path / "bare.gguf", "blk.1.attn_k.bias")
    with pytest.raises(BaseModelError, match=r"k_proj\.bias"):
        dequantized_directory(resolve_base(f"gguf:{path}"), tmp_path, torch.float32)


def test_an_adapter_for_another_architecture_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    adapter = read_adapter(zoo.adapted("fused"))
    with pytest.raises(ExportError, match=r"qkv_proj|gate_up_proj"):
        merge(zoo.file("llama-tied"), adapter, tmp_path / "out.gguf")


def with_key(source: Path, target: Path, key: str, value: float | bool) -> Path:
    """A copy of a GGUF with one more key, written by gguf's own writer."""
    return _rewritten(source, target, {key: value}, set())


def without_tensor(source: Path, target: Path, name: str) -> Path:
    return _rewritten(source, target, {}, {name})


def _rewritten(source: Path, target: Path, more: dict[str, Any], left_out: set[str]) -> Path:
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(source)
    field = reader.get_field("general.architecture")
    assert field is not None
    writer = GGUFWriter(str(target), field.contents())
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = entry.types[0]
        inner = entry.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, entry.contents(), kind, sub_type=inner)
    for key, value in more.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    for tensor in reader.tensors:
        if tensor.name not in left_out:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
