"""Conversations of the chat API, a conversation a line.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}],
     "tools": [{"type": "function", "function": {"name": …}}]}

Each message of the assistant is an answer to learn, after the messages before it; one whose
`weight` is 0 is there to be read only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ollama_trainer.formats._chat import (
    MOST_ANSWERS,
    NO_QUESTION,
    TOO_MANY,
    Unusable,
    conversation,
    tool_list,
)
from ollama_trainer.records import DatasetOptions, Example

NAME = "messages"
KEYS = frozenset({"messages"})


def read(row: Mapping[str, Any], line: int, _options: DatasetOptions) -> Iterator[Example | str]:
    """An example for each answer of the conversation."""
    try:
        messages, tools = conversation(row["messages"]), tool_list(row.get("tools"))
    except Unusable as error:
        yield str(error)
        return
    answers = [
        place
        for place, (given, message) in enumerate(zip(row["messages"], messages, strict=True))
        if message["role"] == "assistant" and given.get("weight", 1) != 0
    ]
    if not answers:
        yield "no message of the assistant is to be learned"
    if len(answers) > MOST_ANSWERS:
        yield TOO_MANY
    asked = next((at for at, said in enumerate(messages) if said["role"] in ("user", "tool")), None)
    for place in answers[:MOST_ANSWERS]:
        if asked is not None and asked < place:
            yield Example(context=messages[:place], answer=messages[place], tools=tools, line=line)
        else:
            yield NO_QUESTION
