"""Snapshot of the data set -> tokenised examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ollama_trainer.errors import DatasetError
from ollama_trainer.formats import read_dataset
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.prompts import open_prompt_format
from ollama_trainer.records import TokenizedExample


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """What is trained on."""

    examples: tuple[TokenizedExample, ...]
    #: A question of the data set, for trying out the finished model.
    question: str
    #: Text of the token that ends an answer.
    stop: str
    rows_read: int
    #: Reason -> line numbers.
    dropped: dict[str, tuple[int, ...]]


def prepare(path: Path, base: GgufFile, max_length: int) -> PreparedData:
    """Reads and tokenises a data set.

    Args:
        path: the snapshot.
        base: whose template and tokenizer are used.
        max_length: examples of more tokens are dropped, never cut.

    Raises:
        DatasetError: nothing in it can be used.
        BaseModelError: the base has no usable chat template.
    """
    dataset = read_dataset(path)
    with open_prompt_format(base) as form:
        tokenized = [(example, form.tokenize(example)) for example in dataset.examples]
        stop = form.tokenizer.text([form.end_of_turn])
    short = [(example, ids) for example, ids in tokenized if len(ids.ids) <= max_length]
    dropped = dict(dataset.dropped)
    if len(short) < len(tokenized):
        reason = f"longer than {max_length} tokens"
        dropped[reason] = tuple(e.line for e, ids in tokenized if len(ids.ids) > max_length)
    if not short:
        raise DatasetError(
            f"Every example is longer than {max_length} tokens", "Set a larger max_length."
        )
    return PreparedData(
        examples=tuple(ids for _, ids in short),
        question=short[0][0].prompt,
        stop=stop,
        rows_read=dataset.rows_read,
        dropped=dropped,
    )
