"""Pairs of answers to one prompt, of which the first was preferred.

    {"prompt": "…", "chosen": "…", "rejected": "…"}

Each may also be a list of messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ollama_trainer.formats._chat import Unusable, answer_message, prompt_messages, tool_list
from ollama_trainer.records import DatasetOptions, Example

NAME = "preferences"
KEYS = frozenset({"prompt", "chosen", "rejected"})


def read(row: Mapping[str, Any], line: int, _options: DatasetOptions) -> Iterator[Example | str]:
    """The chosen answer as a good one, the rejected one as a bad one."""
    try:
        context, tools = prompt_messages(row["prompt"]), tool_list(row.get("tools"))
        chosen, rejected = answer_message(row["chosen"]), answer_message(row["rejected"])
    except Unusable as error:
        yield str(error)
        return
    if chosen == rejected:
        yield "chosen and rejected are the same"
        return
    for answer in (chosen, rejected):
        yield Example(context=context, answer=answer, tools=tools, good=answer is chosen, line=line)
