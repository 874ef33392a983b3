"""Messages of the chat API, checked and brought into the one form that chat templates take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ollama_trainer.formats._text import encodable, parse
from ollama_trainer.records import Message

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
#: Answers of one line that are learned, the first ones: each has all before it for its context, so
#: time and memory would grow with the square of their number.
MOST_ANSWERS = 100
NO_QUESTION = "an answer has no question before it"
TOO_MANY = f"a line has more than {MOST_ANSWERS} answers"
#: Levels of lists and objects in tools and arguments: templates and JSON writers go through them
#: by recursion.
_DEEPEST = 64


class Unusable(ValueError):
    """Why a row cannot be used, as a phrase of the report."""


def conversation(value: Any) -> tuple[Message, ...]:
    """Raises:
    Unusable: it is no list of messages, or holds what is no text.
    """
    if not isinstance(value, list) or not value:
        raise Unusable("messages is no list of messages")
    return tuple(message(each) for each in value)


def message(value: Any) -> Message:
    """Raises:
    Unusable: it is no message, or holds what is no text.
    """
    role = _ROLES.get(str(value.get("role"))) if isinstance(value, Mapping) else None
    if role is None:
        raise Unusable("a message has no role that is known")
    made: dict[str, Any] = {"role": role, "content": _content(value.get("content"))}
    if calls := value.get("tool_calls"):
        if role != "assistant" or not isinstance(calls, list):
            raise Unusable("tool_calls is no list, or not the assistant's")
        made["tool_calls"] = [_tool_call(call) for call in calls]
    for name in ("name", "tool_call_id"):
        if isinstance(value.get(name), str):
            made[name] = encodable(value[name])
    if made["content"] is None:
        if not calls:
            raise Unusable("a message has no content")
        # Not every template knows that there may be none.
        made["content"] = ""
    return made


def prompt_messages(value: Any) -> tuple[Message, ...]:
    """What a prompt stands for that may be a text or a conversation.

    Raises:
        Unusable: it is neither.
    """
    if isinstance(value, str):
        return ({"role": "user", "content": encodable(value)},)
    messages = conversation(value)
    if not any(said["role"] in ("user", "tool") for said in messages):
        raise Unusable(NO_QUESTION)
    if messages[-1]["role"] == "assistant":
        raise Unusable("a prompt ends with an answer")
    return messages


def answer_message(value: Any) -> Message:
    """What an answer stands for that may be a text or a list of one message.

    Raises:
        Unusable: it is neither.
    """
    if isinstance(value, str):
        return {"role": "assistant", "content": encodable(value)}
    messages = conversation(value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Unusable("an answer is not one message of the assistant")
    return messages[0]


def tool_list(value: Any) -> tuple[Message, ...]:
    """Raises:
    Unusable: it is no list of functions.
    """
    if value is None:
        return ()
    if isinstance(value, list) and all(map(_is_function, value)):
        try:
            return tuple(_cleaned(value))
        except ValueError:
            pass
    raise Unusable("tools is no list of functions")


def _is_function(value: Any) -> bool:
    function = value.get("function") if isinstance(value, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _cleaned(value: Any, depth: int = 0) -> Any:
    """The same value without lone surrogates.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON does not have, or is nested too deeply.
    """
    if isinstance(value, str):
        return encodable(value)
    if depth > _DEEPEST or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("no JSON value that is of use")
    if isinstance(value, Mapping):
        return {encodable(key): _cleaned(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list):
        return [_cleaned(part, depth + 1) for part in value]
    return value


def _content(value: Any) -> str | None:
    if isinstance(value, str):
        return encodable(value)
    if value is None:
        return None
    if isinstance(value, list) and all(_is_text(part) for part in value):
        return encodable("".join(part["text"] for part in value))
    raise Unusable("a message holds something other than text")


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type", "text") in ("text", "input_text", "output_text")
        and isinstance(part.get("text"), str)
    )


def _tool_call(call: Any) -> Message:
    """A call with its arguments as an object: the API sends them as JSON inside JSON."""
    if not _is_function(call):
        raise Unusable("a tool call names no function")
    # For a function without parameters some write nothing.
    arguments = call["function"].get("arguments") or {}
    try:
        arguments = parse(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise Unusable("a tool call has arguments that are no JSON") from error
    made: dict[str, Any] = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    made["type"] = "function"
    made["function"] = {"name": call["function"]["name"], "arguments": arguments}
    if isinstance(arguments, Mapping):
        try:
            return {key: _cleaned(part) for key, part in made.items()}
        except ValueError:
            pass
    raise Unusable("a tool call has arguments that are no object")
