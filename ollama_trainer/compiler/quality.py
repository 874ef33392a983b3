"""Examples that would teach nothing, or something wrong."""

from __future__ import annotations

import re

from ollama_trainer.formats import Format, feedback, runs
from ollama_trainer.records import Example

#: What the app gives an agent for its first input where there is none.
_PLACEHOLDERS = frozenset(
    {"Execute your task.", "(First turn — start the conversation.)", "undefined", "null"}
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_UUID_LENGTH = 36
#: What JavaScript makes of an object that somebody meant to see.
_OBJECT = "[object Object]"
#: What the app makes of no output at all.
_NOTHING = frozenset({"null", "undefined", "{}", "[]"})
_EMPTY = "empty input or output"
_FROM_APP: tuple[Format, ...] = (feedback, runs)


def problem(example: Example, format_: Format) -> str | None:
    """Why an example is not worth training on; None when nothing is wrong with it."""
    prompt, completion = example.prompt, example.answer["content"]
    asked, answer = prompt.strip(), completion.strip()
    if not (answer or "tool_calls" in example.answer) or (
        # A tool may well have nothing to say.
        not asked and example.context[-1]["role"] == "user"
    ):
        return _EMPTY
    if format_ in _FROM_APP and answer in _NOTHING:
        return _EMPTY
    if asked in _PLACEHOLDERS:
        return "the input is a placeholder"
    if len(asked) == _UUID_LENGTH and _UUID.fullmatch(asked):
        return "the input is a bare UUID"
    if (_OBJECT in prompt or _OBJECT in completion) and (
        # In other files somebody may well ask what it means.
        format_ in _FROM_APP or _OBJECT in (asked, answer)
    ):
        return f"'{_OBJECT}' stands where a text was meant"
    return None
