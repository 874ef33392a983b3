"""from_feedback: what people said of an agent's answers.

    {"input": "\\"hello\\"", "output": "\\"hi\\"", "label": "good", "notes": null, …}

`input` and `output` are JSON inside JSON and are decoded exactly once: a string is the text, any
other value is serialised canonically, what is no JSON is taken as it stands. Values that are given
directly, not as a string, are accepted too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ollama_trainer.formats._text import decode_once, encodable
from ollama_trainer.records import DatasetOptions, Example

NAME = "from_feedback"
KEYS = frozenset({"input", "output", "label"})

_CORRECTION = re.compile(
    r"\s*(?:correction|correct answer|correct|expected|should (?:be|have been|say)|better)\s*:\s*"
    r"(?P<answer>\S.*)",
    re.IGNORECASE | re.DOTALL,
)


def read(row: Mapping[str, Any], line: int, options: DatasetOptions) -> Iterator[Example | str]:
    """The answer, good or bad; with the option also the one that a note gives instead."""
    label = row["label"]
    if label not in ("good", "bad"):
        yield "label is neither good nor bad"
        return
    try:
        prompt, completion = decode_once(row["input"]), decode_once(row["output"])
    except (ValueError, RecursionError):
        yield "input or output is no JSON value"
        return
    yield Example.of(prompt, completion, line, good=label == "good")
    if options.corrections and label == "bad" and (right := correction(row.get("notes"))):
        yield Example.of(prompt, right, line)


def correction(notes: Any) -> str | None:
    """The right answer that a note gives, if it says that it does."""
    found = _CORRECTION.fullmatch(notes) if isinstance(notes, str) else None
    return encodable(found["answer"].rstrip()) if found else None
