"""llama.cpp against transformers and PEFT: the file that is served is the model that was trained.

Logits of whole sequences are compared, so that a wrong order of rows, a wrong scale or a forgotten
tensor cannot hide. llama.cpp keeps its cache in F32 here; what is left is the order of its sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ollama_trainer.bases import resolve_base
from ollama_trainer.bases.dequantized import dequantized_directory
from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.architectures import ARCHITECTURES
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.gguf.merge import merge
from ollama_trainer.llama import logits_at, open_sequences
from ollama_trainer.prompts import open_tokenizer
from ollama_trainer.records import BaseGguf
from tests.tiny_models import KINDS, TOKENS, tiny_model, write_gguf

Logits = NDArray[np.float64]
QUANTISED = [kind for kind in KINDS if kind not in ("F32", "F16")]
#: Bounds of the largest difference between two logits; the logits themselves reach 10.
#: Seen: 1.4e-5, and 0.013 where llama.cpp rounds activations to F16.
ALMOST_NONE = {"F32": 2e-4, "F16": 0.05}
#: Four random sequences of 48 tokens.
SEQUENCES = np.random.default_rng(7).integers(3, len(TOKENS), (4, 48)).tolist()
SENTENCES = [
    "The capital of France is Paris, and its river is the Seine.",
    "Water boils at 100 degrees Celsius at sea level.",
    "def add(a, b):\n    return a + b\n",
    "Once upon a time there was a small kiln in a yard behind the bakery.",
    "Die Werkstatt öffnet um 9 Uhr und schließt um 18 Uhr.",
]


class Parts:
    """The files of this module's tests, each made once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @cache  # noqa: B019
    def base(self, kind: str, tied: bool) -> BaseGguf:
        path = self._directory / f"{kind}-{tied}.gguf"
        return resolve_base(f"gguf:{write_gguf(tiny_model(tied=tied), path, kind)}")

    def torch_model(self, base: BaseGguf) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        directory = dequantized_directory(base, self._directory, torch.float32)
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    @cache  # noqa: B019
    def adapter(self, tied: bool) -> Path:
        """An adapter on all seven modules that has begun to learn SEQUENCES, saved by peft.

        A random one would not do: what is learnt lies along the inputs, and that is why it
        outlives the rounding of single weights.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(5)
        modules = list(ARCHITECTURES["llama"].target_modules)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=modules, lora_dropout=0.0)
        model = get_peft_model(self.torch_model(self.base("F32", tied)), config)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=1e-3)
        ids = torch.tensor(SEQUENCES)
        for _ in range(15):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(weight.abs().max() > 0 for weight in trained)
        path = self._directory / f"{tied}-adapter"
        model.save_pretrained(path)
        return path

    def tuned(self, kind: str, tied: bool) -> Any:
        """The dequantised base with the adapter, as PEFT computes it."""
        from peft import PeftModel

        model = self.torch_model(self.base(kind, tied))
        return PeftModel.from_pretrained(model, self.adapter(tied)).eval()

    @cache  # noqa: B019
    def merged(self, kind: str, tied: bool, quantization: str) -> Path:
        out = self._directory / f"{kind}-{tied}-{quantization}-merged.gguf"
        base = read_gguf(self.base(kind, tied).gguf)
        merge(base, read_adapter(self.adapter(tied)), out, quantization=quantization)
        return out


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with exact_llama_cpp():
        yield Parts(tmp_path_factory.mktemp("parity"))
    torch.set_num_threads(threads)


@contextlib.contextmanager
def exact_llama_cpp() -> Iterator[None]:
    """A cache in F32, plain attention; one thread, since two mostly wait for each other here."""
    import llama_cpp

    defaults = llama_cpp.llama_context_default_params

    def with_float_cache() -> Any:
        parameters = defaults()
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return parameters

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp, "llama_context_default_params", with_float_cache)
        patch.setattr("os.cpu_count", lambda: 1)
        yield


def served(gguf: Path, sequences: Sequence[Sequence[int]] = SEQUENCES) -> Logits:
    """llama.cpp's logits at every position, one after the other."""
    longest = max(len(ids) for ids in sequences)
    with open_sequences(gguf, n_sequences=1, n_tokens=longest) as opened:
        rows = [logits_at(opened, ids, range(len(ids))) for ids in sequences]
    return np.concatenate(rows).astype(np.float64)


def computed(model: Any, sequences: Sequence[Sequence[int]] = SEQUENCES) -> Logits:
    """transformers' logits at the same positions."""
    import torch

    with torch.no_grad():
        rows = [model(torch.tensor([ids])).logits[0].double().numpy() for ids in sequences]
    return np.concatenate(rows)


def log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max(1, keepdims=True)
    result: Logits = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def divergence(exact: Logits, other: Logits) -> float:
    """Mean KL(exact || other), in nats a token."""
    p, q = log_softmax(exact), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def greedy(gguf: Path, prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    with open_sequences(gguf, n_sequences=1, n_tokens=len(prompt) + count) as opened:
        for _ in range(count):
            ids.append(int(logits_at(opened, ids, [len(ids) - 1])[0].argmax()))
    return ids[len(prompt) :]


def greedy_torch(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(computed(model, [ids])[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_the_dequantised_model_computes_what_llama_cpp_computes(
    parts: Parts, kind: str, tied: bool
) -> None:
    """What is trained on must be the very model that is served: names, rows, configuration."""
    base = parts.base(kind, tied)
    difference = np.abs(computed(parts.torch_model(base)) - served(base.gguf)).max()
    assert difference < ALMOST_NONE[kind]


@pytest.mark.parametrize(
    ("kind", "quantization", "tied"),
    [
        ("F32", "same", True),
        ("F32", "same", False),
        ("F16", "same", True),
        *((kind, "f16", True) for kind in QUANTISED),
    ],
)
def test_a_merged_adapter_computes_what_peft_computes(
    parts: Parts, kind: str, quantization: str, tied: bool
) -> None:
    """The merge must hit the right rows of the right tensors, scaled as PEFT scales them."""
    model = parts.tuned(kind, tied)
    merged = parts.merged(kind, tied, quantization)
    exact = computed(model)
    difference = np.abs(exact - served(merged)).max()
    assert difference < ALMOST_NONE["F16" if quantization == "f16" else kind]
    start = SEQUENCES[0][:16]
    assert greedy(merged, start, 24) == greedy_torch(model, start, 24)


@pytest.mark.parametrize(
    ("kind", "share"),
    # Seen: 0.002, 0.011, and 0.13 to 0.15 for the 4-bit types, where rounding to nearest gives
    # 0.74 to 0.79.
    [("Q8_0", 0.02), ("Q6_K", 0.05), ("Q4_0", 0.3), ("Q4_1", 0.3), ("Q4_K", 0.3)],
)
def test_a_merge_on_the_bases_own_grid_keeps_what_was_learnt(
    parts: Parts, kind: str, share: float
) -> None:
    """Rounding to nearest on a 4-bit grid would give back nearly the base."""
    exact = computed(parts.tuned(kind, True))
    lost = divergence(exact, served(parts.merged(kind, True, "same")))
    learnt = divergence(exact, served(parts.base(kind, True).gguf))
    assert learnt > 1  # seen: 1.3 to 1.5
    assert lost < share * learnt


def test_smollm2_is_trained_as_llama_cpp_serves_it(tmp_path: Path) -> None:
    """The real base, in its real quantisation, with llama.cpp's rounding of activations."""
    import torch
    from transformers import AutoModelForCausalLM

    base = resolve_base("smollm2")
    directory = dequantized_directory(base, tmp_path, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with open_tokenizer(read_gguf(base.gguf)) as tokenizer:
        sequences = [tokenizer.ids(text, special=False) for text in SENTENCES]
    with exact_llama_cpp():
        kl = divergence(computed(model, sequences), served(base.gguf, sequences))
    assert kl < 0.02  # seen: 0.0052
