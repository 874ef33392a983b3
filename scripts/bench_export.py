"""The export beside the usual way and beside a copy of the base, for models made on the spot.

A random Llama in Q4_K_M with an adapter of rank 16 on all linear layers. The usual way: PEFT merges
into bfloat16, llama.cpp's converter makes a GGUF in float16 of it, llama.cpp's quantiser one in
Q4_K_M. Every step runs in a process of its own, whose memory and writing are looked at from
outside.

Run as a script, it is one of those processes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_processes as processes
from rich.console import Console

from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.gguf.merge import merge
from ollama_trainer.gguf.statistics import InputStatistics, write_index, write_moments

Figures = dict[str, Any]
WORK = Path(__file__).resolve().parents[1] / ".bench"
_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Modules that share an input -> the one whose name it has.
_INPUTS = {
    "q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj", "o_proj": "o_proj",
    "gate_proj": "gate_proj", "up_proj": "gate_proj", "down_proj": "down_proj",
}  # fmt: skip
_VOCABULARY = 32_000


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama; rows are multiples of 256, as K-quants need them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int


#: The same layers, more and more of them, and then layers as wide as those of Llama 3.2 1B.
SIZES = {
    "100M": Size(1024, 2816, 6, 16, 4),
    "300M": Size(1024, 2816, 24, 16, 4),
    "1B": Size(1024, 2816, 86, 16, 4),
    "1B, wide": Size(2048, 8192, 16, 32, 8),
}
#: The one that is compared with the usual way.
COMPARED = "300M"
#: Between these, time is to grow as the parameters do.
_FROM, _TO = "300M", "1B"
#: Ways of rounding -> runs of each.
ROUNDINGS = {"stochastic": 5, "compensated": 2}
_TIMES = ("seconds", "with_start_s")


def bench_export(console: Console, only: Sequence[str] = ()) -> Figures:
    """Every size: the export, stochastic and compensated; one of them beside the usual way."""
    shutil.rmtree(WORK, ignore_errors=True)
    figures: Figures = {"benchmark": "export", "cores": os.cpu_count(), "sizes": {}, "usual": {}}
    for name in only or SIZES:
        model = WORK / name
        processes.measured(processes.this_script(__file__, "make", name, model))
        figures["sizes"][name] = _measure(model)
        console.print(name, figures["sizes"][name])
        if name == COMPARED:
            figures["usual"][name] = _usual(model)
            console.print("the usual way", figures["usual"])
        shutil.rmtree(model)
    few, many = (figures["sizes"].get(name) for name in (_FROM, _TO))
    figures["growth"] = {
        rounding: many[rounding]["ns_a_parameter"] / few[rounding]["ns_a_parameter"]
        for rounding in (ROUNDINGS if few and many else ())
    }
    return figures


def _measure(model: Path) -> Figures:
    """The quickest of some runs, since others may want the machine; copies take turns with them."""
    base, n_parameters = model / "base.gguf", int((model / "parameters").read_text())
    copies = []
    figures: Figures = {
        "parameters": n_parameters,
        "base_megabytes": base.stat().st_size / 1e6,
    }
    for rounding, repeats in ROUNDINGS.items():
        runs = []
        for _ in range(repeats):
            copies.append(processes.copy_seconds(base, model / "copy.gguf"))
            runs.append(_export(model, rounding))
        figures[rounding] = {
            key: (min if key in _TIMES else max)(run[key] for run in runs) for key in runs[0]
        }
        figures[rounding]["ns_a_parameter"] = 1e9 * figures[rounding]["seconds"] / n_parameters
    return {**figures, "copy_s": min(copies)}


def _export(model: Path, rounding: str) -> Figures:
    out = model / "out.gguf"
    taken = processes.measured(processes.this_script(__file__, "export", model, out, rounding))
    size = out.stat().st_size
    out.unlink()
    return {
        "seconds": json.loads(taken.said)["seconds"],
        "with_start_s": taken.seconds,
        "peak_megabytes": taken.peak_bytes / 1e6,
        "written_over_output": taken.written_bytes / size,
    }


def _usual(model: Path) -> Figures:
    """Merge, convert, quantise: seconds of each, and what they take together."""
    from ollama_trainer.bases.converter import converter

    convert = [
        sys.executable, str(converter()), str(model / "merged"), "--outtype", "f16",
        "--outfile", str(model / "merged.gguf"),
    ]  # fmt: skip
    steps = {
        "merge": processes.measured(processes.this_script(__file__, "merge", model)),
        "convert": processes.measured(convert, {"HF_HUB_OFFLINE": "1"}),
        "quantise": processes.measured(processes.this_script(__file__, "quantise", model)),
    }
    return {
        **{f"{step}_s": taken.seconds for step, taken in steps.items()},
        "seconds": sum(taken.seconds for taken in steps.values()),
        "peak_megabytes": max(taken.peak_bytes for taken in steps.values()) / 1e6,
        "written_megabytes": sum(taken.written_bytes for taken in steps.values()) / 1e6,
    }


def make(name: str, directory: Path) -> None:
    """Writes the model as a Hugging Face directory and as a GGUF, its adapter and statistics."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from ollama_trainer.bases.converter import convert

    size = SIZES[name]
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory / "hf")
    _write_tokenizer(directory / "hf")
    (directory / "parameters").write_text(str(sum(p.numel() for p in model.parameters())))
    tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=list(_MODULES)))
    for key, weight in tuned.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.002)
    tuned.save_pretrained(directory / "adapter")
    _write_statistics(size, directory / "statistics")
    convert(directory / "hf", directory / "f16.gguf", "f16")
    _quantise(directory / "f16.gguf", directory / "base.gguf")
    (directory / "f16.gguf").unlink()


def _write_tokenizer(directory: Path) -> None:
    """A small one; the converter fills the vocabulary up."""
    import sentencepiece

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The kiln is fired on Tuesdays and cools until Thursday."] * 20),
        model_writer=trained, vocab_size=290, byte_fallback=True, model_type="bpe", minloglevel=2,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(trained.getvalue())
    content = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(content))


def _write_statistics(size: Size, directory: Path) -> None:
    """Inputs of few strong directions; the same in every layer, but each with a matrix of its own.

    The matrices of a width are alike, since making them up takes longer than all that is measured.
    """
    import torch

    directory.mkdir()
    moments = {}
    for width in {size.hidden, size.intermediate}:
        x = torch.randn(1024, width) * torch.logspace(0, -2, width)[torch.randperm(width)]
        x += torch.randn(1024, 16) @ torch.randn(16, width) * 0.3
        moments[width] = x.T @ x / len(x)
    inputs: dict[str, str] = {}
    for layer in range(size.layers):
        name_of = {
            name: f"model.layers.{layer}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}"
            for name in _MODULES
        }
        inputs |= {name_of[module]: name_of[shared] for module, shared in _INPUTS.items()}
        of_layer = {
            name_of[name]: moments[size.intermediate if name == "down_proj" else size.hidden]
            for name in set(_INPUTS.values())
        }
        write_moments(directory, layer, of_layer)
    write_index(directory, inputs, {"rows": 1024})


def export(model: Path, out: Path, rounding: str) -> None:
    """The program's own way; prints how long it took without the start of Python."""
    import gguf  # noqa: F401 - a part of the start, as all imports are

    started = time.monotonic()
    known = InputStatistics(model / "statistics") if rounding == "compensated" else None
    merge(read_gguf(model / "base.gguf"), read_adapter(model / "adapter"), out, statistics=known)
    print(json.dumps({"seconds": time.monotonic() - started}))


def merge_usual(model: Path) -> None:
    """PEFT's own merge, into bfloat16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model / "hf", dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(base, model / "adapter").merge_and_unload()
    merged.save_pretrained(model / "merged")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(model / "hf" / name, model / "merged")


def _quantise(source: Path, target: Path) -> None:
    from ollama_trainer.llama import quantize_file

    quantize_file(source, target, "MOSTLY_Q4_K_M")


#: What this file does as a process of its own.
_STEPS: dict[str, Callable[..., None]] = {
    "make": lambda name, directory: make(name, Path(directory)),
    "export": lambda model, out, rounding: export(Path(model), Path(out), rounding),
    "merge": lambda model: merge_usual(Path(model)),
    "quantise": lambda model: _quantise(Path(model, "merged.gguf"), Path(model, "usual.gguf")),
}

if __name__ == "__main__":
    _STEPS[sys.argv[1]](*sys.argv[2:])
