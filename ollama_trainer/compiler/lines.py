"""A JSONL file as it is: line by line, with bounded memory, and rows by their place in it."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ollama_trainer.errors import DatasetError

#: Lines longer than this are passed over without being held in memory.
MOST_BYTES = 1 << 26
_CHUNK_BYTES = 1 << 20


class Line(NamedTuple):
    """One line that is not blank."""

    #: 1-based.
    number: int
    #: Where it begins in the file, in bytes, and how long it is.
    offset: int
    n_bytes: int
    #: Without what is no part of it; None: it was too long to be held.
    data: bytes | None


def open_dataset(path: Path) -> BinaryIO:
    """Raises:
    DatasetError: the file cannot be read.
    """
    try:
        return path.open("rb", buffering=_CHUNK_BYTES)
    except OSError as error:
        raise _unreadable(error) from error


def lines(file: BinaryIO, most_bytes: int = MOST_BYTES) -> Iterator[Line]:
    """The lines of a file that hold anything. A line feed ends a line, and nothing else does.

    Raises:
        DatasetError: the file cannot be read.
    """
    number = offset = 0
    try:
        while data := file.readline(most_bytes + 1):
            number += 1
            n_bytes = len(data)
            if n_bytes > most_bytes:
                n_bytes += _pass_over(file, data)
                yield Line(number, offset, n_bytes, None)
            else:
                text = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
                if text and not text.isspace():
                    yield Line(number, offset, n_bytes, text)
            offset += n_bytes
    except OSError as error:
        raise _unreadable(error) from error


def line_at(file: BinaryIO, offset: int, n_bytes: int) -> bytes:
    """A line that was seen before.

    Raises:
        DatasetError: the file cannot be read, or has become shorter.
    """
    try:
        file.seek(offset)
        data = file.read(n_bytes)
    except OSError as error:
        raise _unreadable(error) from error
    if len(data) < n_bytes:
        raise DatasetError("The data set changed while it was read", "Try again.")
    return data if offset else data.removeprefix(codecs.BOM_UTF8)


def _pass_over(file: BinaryIO, data: bytes) -> int:
    """Bytes from here to the end of a line."""
    n_bytes = 0
    while data and not data.endswith(b"\n"):
        data = file.readline(_CHUNK_BYTES)
        n_bytes += len(data)
    return n_bytes


def _unreadable(error: OSError) -> DatasetError:
    return DatasetError(
        f"The data set cannot be read: {error.strerror or error}", "Check that the file exists."
    )
