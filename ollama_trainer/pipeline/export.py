"""Base + adapter -> the finished GGUF and its Modelfile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.file import GgufFile, string_entry
from ollama_trainer.gguf.merge import QUANTIZATIONS, MergeReport, merge
from ollama_trainer.modelfile import Modelfile, modelfile_for, protect_chat_template
from ollama_trainer.prompts import ChatTemplate

_TEMPLATE_KEY = "tokenizer.chat_template"
#: Ollama's own default: more costs memory that nobody asked for.
_NUM_CTX = 4096


def export(
    base: GgufFile,
    adapter: Path,
    out: Path,
    *,
    quantization: str,
    seed: int,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> MergeReport:
    """Merges an adapter directory into `base`, its chat template protected from replacement.

    Raises:
        ExportError: the adapter cannot be merged, or `quantization` is unknown.
    """
    check_quantization(quantization)
    template = protect_chat_template(ChatTemplate(base).source)
    return merge(
        base,
        read_adapter(adapter),
        out,
        quantization=quantization,
        seed=seed,
        metadata={_TEMPLATE_KEY: string_entry(_TEMPLATE_KEY, template)},
        progress=progress,
    )


def check_quantization(name: str) -> None:
    """Asked before training, too, since a name that is wrong should cost none.

    Raises:
        ExportError: it is unknown.
    """
    if name not in QUANTIZATIONS:
        raise ExportError(
            f"The quantization {name!r} is unknown", f"Use one of: {', '.join(QUANTIZATIONS)}."
        )


def modelfile_of(base: GgufFile, stop: str, license_text: str) -> Modelfile:
    """The Modelfile of a tuned model.

    Stop token, context and a cap on the answer are explicit: callers send no options, and an
    answer that misses its stop token would otherwise run for ten contexts.
    """
    num_ctx = min(int(base.hyperparameter("context_length", _NUM_CTX)), _NUM_CTX)
    return modelfile_for(
        stops=(stop,), num_ctx=num_ctx, num_predict=max(1, num_ctx // 2), license_text=license_text
    )
