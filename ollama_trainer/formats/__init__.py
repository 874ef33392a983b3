"""One file for each shape of data set: lines in, examples out."""

from __future__ import annotations

from pathlib import Path

from ollama_trainer.formats import feedback
from ollama_trainer.records import Dataset


def read_dataset(path: Path) -> Dataset:
    """Reads a data set file.

    Raises:
        DatasetError: it is unreadable or holds nothing to train on.
    """
    return feedback.read(path)
