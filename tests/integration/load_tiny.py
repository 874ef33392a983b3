"""load_tiny.py CACHE {"name": "file.gguf"}: what Unsloth makes of models, one line of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ollama_trainer.backends._same_model import divergence_from_served
from ollama_trainer.backends.unsloth import import_unsloth
from ollama_trainer.bases import resolve_base
from ollama_trainer.bases.dequantized import dequantized_directory
from ollama_trainer.gguf.architectures import architecture_of
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.records import TokenizedExample
from tests.integration.test_parity import SEQUENCES, exact_llama_cpp


def look_at(gguf: Path, cache: Path) -> dict[str, Any]:
    import torch
    from unsloth import FastLanguageModel

    base = resolve_base(f"gguf:{gguf}")
    directory = dequantized_directory(base, cache, torch.float32)
    model, _ = FastLanguageModel.from_pretrained(
        str(directory), max_seq_length=64, dtype=torch.float32, load_in_4bit=False,
        attn_implementation="eager", local_files_only=True,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=4, lora_alpha=8, lora_dropout=0, bias="none", use_gradient_checkpointing=False,
        target_modules=list(architecture_of(read_gguf(gguf)).target_modules),
        layers_to_transform=[1, 2, 3],
    )  # fmt: skip
    ids = torch.tensor(SEQUENCES)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    # The other half of each pair is zero at first, and so are the gradients of this one's.
    halves = [weight for key, weight in model.named_parameters() if "lora_B" in key]
    model.eval()
    examples = [TokenizedExample(ids=tuple(one), mask=(1,) * len(one)) for one in SEQUENCES]
    return {
        "divergence": divergence_from_served(model, gguf, examples),
        "n_trained": len(halves),
        "n_without_gradient": sum(half.grad is None or not half.grad.any() for half in halves),
    }


def main() -> None:
    cache, files = Path(sys.argv[1]), json.loads(sys.argv[2])
    import_unsloth(cache)
    with exact_llama_cpp():
        print(json.dumps({name: look_at(Path(path), cache) for name, path in files.items()}))


if __name__ == "__main__":
    main()
