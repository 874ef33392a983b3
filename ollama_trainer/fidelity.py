"""What a GGUF says, measured in llama.cpp on the very file that will be served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ollama_trainer.errors import NotANumber
from ollama_trainer.llama import Sequences, continue_texts, logits_of, open_sequences
from ollama_trainer.records import Reading, TokenizedExample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Sequences that are read or written together.
_TOGETHER = 16
_CONTEXT = 2048


def read(gguf: Path, examples: Sequence[TokenizedExample]) -> Reading:
    """Reads texts with a model; loss and most likely tokens where their masks are 1.

    Raises:
        Unloadable: llama.cpp cannot load the file.
        NotANumber: it computes something that is no number.
    """
    import numpy as np

    asked = []
    for example in examples:
        # A token is predicted at the position before it.
        positions = [index - 1 for index in range(1, len(example.ids)) if example.mask[index]]
        asked.append((example.ids, positions))
    losses: list[float] = []
    top: list[int] = []
    room = max(_CONTEXT, *(len(example.ids) for example in examples))
    with open_sequences(gguf, n_sequences=_TOGETHER, n_tokens=room) as sequences:
        for (ids, positions), logits in zip(asked, logits_of(sequences, asked), strict=True):
            following = np.asarray(ids)[np.asarray(positions, int) + 1]
            peak = logits.max(axis=1)
            total = np.log(np.exp(logits - peak[:, None]).sum(axis=1, dtype=np.float64)) + peak
            losses += (total - logits[np.arange(len(following)), following]).tolist()
            top += logits.argmax(axis=1).tolist()
    loss = float(np.mean(losses))
    if not np.isfinite(loss):
        raise NotANumber(
            f"{gguf.name} computes values that are no numbers",
            "Training diverged: use a lower learning rate.",
        )
    return Reading(loss=loss, top=tuple(top))


def answer_loss(gguf: Path, examples: Sequence[TokenizedExample]) -> float:
    """Mean loss on the answers' tokens, in nats a token; errors as of `read`."""
    return read(gguf, examples).loss


def learning_kept(base: float, exact: float, served: float) -> float:
    """The share of the learning that the served file has.

    Args:
        base: loss of the base.
        exact: loss with the adapter, nothing of it rounded away.
        served: loss of the finished file.
    """
    gain = base - exact
    return (base - served) / gain if gain > 0 else 0.0


class Written(NamedTuple):
    """A greedy answer."""

    #: Token ids, without the one that ended it.
    ids: list[int]
    #: Whether it ended by itself.
    ended: bool


def answers(gguf: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """The token ids of `written`."""
    return [answer.ids for answer in written(gguf, prompts, max_tokens)]


def written(gguf: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Written]:
    """Greedy answers to prompts of token ids, each of at most `max_tokens`.

    Raises:
        Unloadable: llama.cpp cannot load the file.
    """
    longest = max(len(prompt) for prompt in prompts) + max_tokens
    with open_sequences(gguf, n_sequences=_TOGETHER, n_tokens=_TOGETHER * longest) as sequences:
        return [
            answer
            for start in range(0, len(prompts), _TOGETHER)
            for answer in _greedy(sequences, prompts[start : start + _TOGETHER], max_tokens)
        ]


def _greedy(
    sequences: Sequences, prompts: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[Written]:
    def likeliest(_number: int, logits: NDArray[np.float32]) -> int:
        return int(logits.argmax())

    for ids in continue_texts(sequences, prompts, max_tokens, likeliest):
        ended = bool(ids) and sequences.ends_generation(ids[-1])
        yield Written(ids[:-1] if ended else ids, ended)
