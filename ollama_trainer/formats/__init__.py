"""One file for each shape of data set: a row in, examples out.

feedback.py           {input, output, label, …}: what people said of an agent's answers
runs.py               {runId, trail, output, …}: what the agents of a run did
messages.py           {messages, tools?}: conversations of the chat API
preferences.py        {prompt, chosen, rejected}
prompt_completion.py  {prompt, completion, label?}

A row is an object as JSON has it. `read` gives an example for each answer in it, and a sentence
for each thing in it that cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ollama_trainer.formats import feedback, messages, preferences, prompt_completion, runs
from ollama_trainer.records import DatasetOptions, Example

Row = Mapping[str, Any]


class Format(Protocol):
    """A module of this package."""

    #: What the report calls it.
    NAME: str
    #: Keys that every row of it has.
    KEYS: frozenset[str]

    def read(self, row: Row, line: int, options: DatasetOptions) -> Iterator[Example | str]: ...


#: The more telling ones first: what a row has the keys of is what it is.
FORMATS: tuple[Format, ...] = (runs, feedback, messages, preferences, prompt_completion)


def format_of(row: Row) -> Format | None:
    """The shape of a row; None when it is of none."""
    keys = row.keys()
    for each in FORMATS:
        if keys >= each.KEYS:
            return each
    return None
