"""What a GGUF has learned, measured in llama.cpp on the very file that will be served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ollama_trainer.errors import ExportError
from ollama_trainer.llama import logits_at, open_llama
from ollama_trainer.records import TokenizedExample


def answer_loss(gguf: Path, examples: Sequence[TokenizedExample]) -> float:
    """Mean loss on the answers' tokens, in nats a token.

    Args:
        gguf: the file to measure.
        examples: ids with the mask of the answers.

    Raises:
        ExportError: llama.cpp cannot load the file, or it computes something that is no number.
    """
    import numpy as np

    longest = max(len(example.ids) for example in examples)
    losses: list[float] = []
    with open_llama(gguf, n_ctx=longest, n_batch=longest) as llama:
        for example in examples:
            answer = np.flatnonzero(example.mask)
            # A token is predicted at the position before it.
            logits = logits_at(llama, example.ids, (answer - 1).tolist()).astype(np.float64)
            peak = logits.max(axis=1)
            total = np.log(np.exp(logits - peak[:, None]).sum(axis=1)) + peak
            chosen = logits[np.arange(len(answer)), np.asarray(example.ids)[answer]]
            losses += (total - chosen).tolist()
    loss = float(np.mean(losses))
    if not np.isfinite(loss):
        raise ExportError(
            f"{gguf.name} computes values that are no numbers",
            "Training diverged: use a lower learning rate.",
        )
    return loss


def learning_kept(base: float, exact: float, served: float) -> float:
    """The share of the learning that the served file has.

    Args:
        base: loss of the base.
        exact: loss with the adapter, nothing of it rounded away.
        served: loss of the finished file.
    """
    gain = base - exact
    return (base - served) / gain if gain > 0 else 0.0


def answers(gguf: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
    """Greedy answers to prompts of token ids, as a served model gives them.

    Raises:
        ExportError: llama.cpp cannot load the file.
    """
    longest = max(len(prompt) for prompt in prompts) + max_tokens
    with open_llama(gguf, n_ctx=longest, n_batch=longest) as llama:
        return [
            llama.create_completion(list(prompt), max_tokens=max_tokens, temperature=0)["choices"][
                0
            ]["text"]
            for prompt in prompts
        ]
