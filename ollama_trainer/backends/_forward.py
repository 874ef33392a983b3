"""A trained model reads texts, in torch: what the parts of a backend share."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ollama_trainer.records import Reading, TokenizedExample

if TYPE_CHECKING:
    import torch

#: Tokens that are read at once.
_BATCH_TOKENS = 1024

T = TypeVar("T")


def padded(texts: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and which places hold tokens: both of shape (texts, longest)."""
    import torch

    ids = torch.zeros((len(texts), max(map(len, texts))), dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = True
    return ids.to(device), mask.to(device)


def logits_at(
    model: Any, texts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
) -> torch.Tensor:
    """The logits that predict some tokens.

    Args:
        model: a causal language model of transformers, in any mode.
        texts: token ids of each text.
        positions: indices of the predicted tokens in each text, all from 1 on.

    Returns:
        float32 of shape (positions of all texts, vocabulary).
    """
    import torch

    ids, mask = padded(texts, model.device)
    # A token is predicted at the position before it.
    first = min(min(places) for places in positions) - 1
    with _logits_asked_for():
        logits = model(
            input_ids=ids, attention_mask=mask.long(), logits_to_keep=ids.shape[1] - first
        ).logits
    # Not every forward pass of Unsloth heeds the number.
    left_out = ids.shape[1] - logits.shape[1]
    rows = [
        logits[row, [place - 1 - left_out for place in places]]
        for row, places in enumerate(positions)
    ]
    return torch.cat(rows).float()


def read_model(model: Any, examples: Sequence[TokenizedExample]) -> Reading:
    """What a model says at the masked tokens of some texts; the model keeps its mode.

    Returns:
        As fidelity.read does for a GGUF; the loss may be no number.
    """
    import torch

    was_training = model.training
    model.eval()
    losses: list[float] = []
    top: dict[int, list[int]] = {}
    with torch.no_grad():
        for batch in batches(list(enumerate(examples)), lambda item: len(item[1].ids)):
            texts = [example.ids for _, example in batch]
            places = [[i for i, bit in enumerate(e.mask) if bit and i] for _, e in batch]
            logits = logits_at(model, texts, places)
            said = torch.cat(
                [torch.tensor(text)[where] for text, where in zip(texts, places, strict=True)]
            ).to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits, said, reduction="none")
            losses += loss.tolist()
            most = iter(logits.argmax(1).tolist())
            for (number, _), where in zip(batch, places, strict=True):
                top[number] = list(itertools.islice(most, len(where)))
    model.train(was_training)
    ordered = tuple(token for number in sorted(top) for token in top[number])
    return Reading(loss=sum(losses) / len(losses), top=ordered)


def batches(
    items: Sequence[T], length: Callable[[T], int], n_tokens: int = _BATCH_TOKENS
) -> Iterator[list[T]]:
    """Items of about one length, with a bounded number of tokens together."""
    batch: list[T] = []
    for item in sorted(items, key=length):
        if batch and (len(batch) + 1) * length(item) > n_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


@contextlib.contextmanager
def _logits_asked_for() -> Iterator[None]:
    """Unsloth's forward passes give logits only when a variable asks for them."""
    name = "UNSLOTH_RETURN_LOGITS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
