"""Snapshot of the data set -> tokenised examples."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ollama_trainer.errors import DatasetError
from ollama_trainer.formats import read_dataset
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.pipeline.held_out import split
from ollama_trainer.prompts import Tokenizer, open_prompt_format
from ollama_trainer.records import TokenizedExample


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """What is trained on."""

    examples: tuple[TokenizedExample, ...]
    #: What the run is judged on: the rows that were kept from training, then rephrased ones.
    held_out: tuple[TokenizedExample, ...]
    n_kept: int
    #: The text that shows whether anything else was spoilt.
    probe: tuple[TokenizedExample, ...]
    #: A question of the data set, for trying out the finished model.
    question: str
    #: Text of the token that ends an answer.
    stop: str
    rows_read: int
    #: Reason -> line numbers.
    dropped: dict[str, tuple[int, ...]]


def prepare(path: Path, base: GgufFile, max_length: int, seed: int = 1) -> PreparedData:
    """Reads and tokenises a data set, and sets apart what the run is judged on.

    Args:
        path: the snapshot.
        base: whose template and tokenizer are used.
        max_length: examples of more tokens are dropped, never cut.
        seed: of the choice of held-out rows.

    Raises:
        DatasetError: nothing in it can be used.
        BaseModelError: the base has no usable chat template.
    """
    dataset = read_dataset(path)
    with open_prompt_format(base) as form:
        ids = {example.line: form.tokenize(example) for example in dataset.examples}
        short = [e for e in dataset.examples if len(ids[e.line].ids) <= max_length]
        if not short:
            raise DatasetError(
                f"Every example is longer than {max_length} tokens", "Set a larger max_length."
            )
        parts = split(short, seed)
        kept = tuple(ids[example.line] for example in parts.kept)
        rephrased = (form.tokenize(example) for example in parts.rephrased)
        held_out = kept + tuple(e for e in rephrased if len(e.ids) <= max_length)
        if not held_out:
            raise DatasetError(
                "No row can be asked in other words within max_length, so nothing could be judged",
                f"Set a max_length above {max_length}.",
            )
        probe = probe_text(form.tokenizer, max_length)
        stop = form.tokenizer.text([form.end_of_turn])
    dropped = dict(dataset.dropped)
    if len(short) < len(ids):
        dropped[f"longer than {max_length} tokens"] = tuple(
            line for line, example in ids.items() if len(example.ids) > max_length
        )
    return PreparedData(
        examples=tuple(ids[example.line] for example in parts.train),
        held_out=held_out,
        n_kept=len(kept),
        probe=probe,
        question=short[0].prompt,
        stop=stop,
        rows_read=dataset.rows_read,
        dropped=dropped,
    )


def probe_text(tokenizer: Tokenizer, max_length: int) -> tuple[TokenizedExample, ...]:
    """The project's own plain English and code, on which no run ever trains, section by section."""
    path = files("ollama_trainer") / "probe.txt"
    sections = path.read_text(encoding="utf-8").split("\n%%\n")
    texts = (tokenizer.ids(section, special=False)[:max_length] for section in sections)
    return tuple(TokenizedExample(ids=tuple(t), mask=(0,) + (1,) * (len(t) - 1)) for t in texts)
