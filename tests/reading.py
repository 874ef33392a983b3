"""Data sets that tests write, and what the compiler makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_trainer.compiler import compile_dataset
from ollama_trainer.compiler.lines import MOST_BYTES
from ollama_trainer.records import DatasetOptions, Example


@dataclass(frozen=True)
class Read:
    """What became of a file."""

    format: str
    examples: list[Example]
    rows_read: int
    dropped: dict[str, list[int]]
    secrets: dict[str, int]
    #: Numbers of the groups of near duplicates, example by example.
    groups: list[int]
    pairs: list[tuple[Example, Example]]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Prompts with their answers."""
        return [(example.prompt, example.completion) for example in self.examples]


def read_file(path: Path, most_bytes: int = MOST_BYTES, **options: Any) -> Read:
    """Every example of a file; nothing is said of methods that a backend lacks.

    Raises:
        DatasetError: as of `compile_dataset`.
    """
    with compile_dataset(path, DatasetOptions(**options), most_bytes=most_bytes) as compiled:
        found = compiled.examples(1_000_000, 1)
        return Read(
            format=compiled.format,
            examples=[example for _, _, example in found],
            rows_read=compiled.rows_read,
            dropped={reason: tally.lines for reason, tally in compiled.dropped.items()},
            secrets=dict(compiled.secrets),
            groups=[group for _, group, _ in found],
            pairs=list(compiled.pairs()),
        )


def read_rows(tmp_path: Path, rows: Iterable[Mapping[str, Any] | str], /, **options: Any) -> Read:
    """As `read_file`, of rows that are written first; a text stands for itself."""
    path = tmp_path / "rows.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return read_file(path, **options)
