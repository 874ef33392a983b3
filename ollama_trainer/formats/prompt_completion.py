"""Prompts with their answers, a pair a line.

    {"prompt": "…", "completion": "…", "label": true}

Both may also be lists of messages. `label` may be left out; false or "bad" marks a bad answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ollama_trainer.formats._chat import Unusable, answer_message, prompt_messages, tool_list
from ollama_trainer.records import DatasetOptions, Example

NAME = "prompt_completion"
KEYS = frozenset({"prompt", "completion"})

_LABELS = {True: True, False: False, "good": True, "bad": False, None: True}


def read(row: Mapping[str, Any], line: int, _options: DatasetOptions) -> Iterator[Example | str]:
    """The answer."""
    label = row.get("label")
    if not isinstance(label, bool | str | None) or label not in _LABELS:
        yield "label is neither good nor bad"
        return
    try:
        yield Example(
            context=prompt_messages(row["prompt"]),
            answer=answer_message(row["completion"]),
            tools=tool_list(row.get("tools")),
            good=_LABELS[label],
            line=line,
        )
    except Unusable as error:
        yield str(error)
