"""Whether Ollama will ask the tuned model in the words that it is trained with, asked beforehand.

What publishing would find after hours, a stand-in of kilobytes tells in a second. Publishing asks
again: the model itself, in the Ollama of that hour.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.ollama_prompts import why_not_compared
from ollama_trainer.pipeline.base import Note
from ollama_trainer.publishers import NOT_CHECKED
from ollama_trainer.records import BaseGguf, ExpectedPrompt, RunSpec


def compare_with_ollama(
    spec: RunSpec,
    base: BaseGguf,
    gguf: GgufFile,
    prompts: Sequence[ExpectedPrompt],
    note: Note,
) -> None:
    """Compares the prompts, if the model goes to Ollama.

    Args:
        gguf: the base's file.
        prompts: what the tuned model must be asked with.
        note: called where that could not be seen, with the reason.

    Raises:
        PromptDiffers: Ollama makes other ones.
    """
    if spec.publisher != "ollama":
        return
    why = why_not_compared(gguf, base.ollama, spec.ollama_host, prompts)
    if why is not None:
        note(f"{NOT_CHECKED}Ollama's prompts are compared when the model is published: {why}", {})
