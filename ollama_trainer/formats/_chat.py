"""Messages of the chat API, checked and brought into the one form that chat templates take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ollama_trainer.formats._text import canonical, encodable, parse
from ollama_trainer.records import Message

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


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
    return conversation(value)


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
    if not isinstance(value, list) or not all(map(_is_function, value)) or not _is_json(value):
        raise Unusable("tools is no list of functions")
    return tuple(mapped(value, encodable))


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with every text in it changed, keys of objects left out."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(part, change) for part in value)
    return value


def _is_function(value: Any) -> bool:
    function = value.get("function") if isinstance(value, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _is_json(value: Any) -> bool:
    """Whether there is neither NaN nor too deep a nesting in it."""
    try:
        canonical(value)
    except (ValueError, RecursionError):
        return False
    return True


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
    arguments = call["function"].get("arguments", {})
    try:
        arguments = parse(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise Unusable("a tool call has arguments that are no JSON") from error
    if not isinstance(arguments, Mapping) or not _is_json(arguments):
        raise Unusable("a tool call has arguments that are no object")
    function = {"name": call["function"]["name"], "arguments": mapped(arguments, encodable)}
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**named, "type": "function", "function": function}
