"""from_feedback: what people said of an agent's answers.

    {"input": "\\"hello\\"", "output": "\\"hi\\"", "label": "good", "notes": null, …}

`input` and `output` are JSON inside JSON and are decoded exactly once: a string is the text, any
other value is serialised canonically, what is no JSON is taken as it stands. Values that are given
directly, not as a string, are accepted too. Rows that people called good are answers to learn.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ollama_trainer.errors import DatasetError
from ollama_trainer.records import Dataset, Example


def read(path: Path) -> Dataset:
    """Reads the good rows of a from_feedback file.

    Args:
        path: JSONL in UTF-8, one object a line. Lines end with a line feed and with nothing else.

    Raises:
        DatasetError: the file cannot be read, is empty, has a line that is no feedback row, or no
            row that can be used.
    """
    examples: list[Example] = []
    dropped: defaultdict[str, list[int]] = defaultdict(list)
    rows_read = 0
    for number, row in _rows(path):
        rows_read += 1
        reason = _reason_to_drop(row)
        if reason is not None:
            dropped[reason].append(number)
            continue
        try:
            prompt, completion = decode_once(row["input"]), decode_once(row["output"])
        except (ValueError, RecursionError):
            dropped["input or output is no JSON value"].append(number)
            continue
        if not prompt.strip() or not completion.strip():
            dropped["empty input or output"].append(number)
            continue
        examples.append(Example(prompt=prompt, completion=completion, line=number))
    if not rows_read:
        raise DatasetError("The data set is empty", "Give feedback on some answers first.")
    if not examples:
        reasons = ", ".join(f"{reason}: {len(lines)}" for reason, lines in dropped.items())
        raise DatasetError(
            f"None of the {rows_read} rows can be used ({reasons})",
            "Mark at least one answer as good.",
        )
    counted = {reason: tuple(lines) for reason, lines in dropped.items()}
    return Dataset(examples=tuple(examples), rows_read=rows_read, dropped=counted)


def decode_once(value: Any) -> str:
    """The text that `input` or `output` stands for.

    A lone surrogate, which JSON can spell and UTF-8 cannot, becomes U+FFFD.

    Raises:
        ValueError, RecursionError: a value that was given directly holds NaN or an infinity, which
            JSON does not have, or is nested too deeply.
    """
    if isinstance(value, str):
        text = value
        with contextlib.suppress(ValueError, RecursionError):
            text = _canonical(json.loads(value))
    else:
        text = _canonical(value)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _canonical(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


def _reason_to_drop(row: dict[str, Any]) -> str | None:
    label = row["label"]
    if label == "bad":
        return "labelled bad"
    if label != "good":
        return "label is neither good nor bad"
    return None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, _row(text, number)
    except OSError as error:
        raise DatasetError(
            f"The data set cannot be read: {error.strerror}", "Check that the file exists."
        ) from error


def _row(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"Line {number} of the data set is not JSON: {error}",
            "Each line must hold one JSON object.",
        ) from error
    if not isinstance(row, dict) or not {"input", "output", "label"} <= row.keys():
        raise DatasetError(
            f"Line {number} of the data set is not a row of feedback",
            "Each line needs input, output and label.",
        )
    return row
