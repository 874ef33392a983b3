"""Asks a model in Ollama what it was trained for, as those who will use it ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import (
    AnswerNeverEnds,
    AnswersLikeBase,
    EmptyAnswer,
    OllamaCannotLoad,
    PublishError,
    StoredDiffers,
    ToolCallsLost,
)
from ollama_trainer.ollama.messages import as_request
from ollama_trainer.records import GoldenChat, visible_answer

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

Options = Mapping[str, Any]
#: What an answer may take beyond the tokens that it took in llama.cpp: two programs may choose
#: another word where two are about as likely.
_MORE_TOKENS = 64
#: The longest answer to a question whose answer nobody knows, in tokens.
_ANSWER_TOKENS = 64
_CALL_TOKENS = 512
MODEL_REMEDY = (
    "Run the GGUF elsewhere to see whether the model or this Ollama is at fault; "
    "the GGUF and its Modelfile are kept."
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the current weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "The town's name"}},
            "required": ["town"],
        },
    },
}
_TOOL_QUESTION = "What is the weather in Paris now? Call the tool get_weather."


def load(api: OllamaApi, model: str, options: Options) -> None:
    """Lets Ollama load the model and write one token.

    Raises:
        OllamaCannotLoad: it cannot.
    """
    try:
        api.load(model, options)
    except PublishError as error:
        if error.retryable:
            raise
        raise OllamaCannotLoad(error.cause, MODEL_REMEDY) from error


def ask_any(api: OllamaApi, model: str, question: str, options: Options, cap: int) -> str:
    """Asks a question whose answer nobody knows; returns how it was answered, in words.

    Raises:
        EmptyAnswer: it answered with nothing.
    """
    answer = api.chat(
        model,
        {"messages": [{"role": "user", "content": question}]},
        {**options, "num_predict": min(cap, _ANSWER_TOKENS)},
    )
    _check_not_empty(question, answer)
    return _in_words(answer)


def ask_golden(
    api: OllamaApi, model: str, chats: Sequence[GoldenChat], options: Options, cap: int
) -> str:
    """Asks chats whose answers are known, until one is answered as it must be.

    One is enough, since two programs may choose other words where two are about as likely.

    Args:
        chats: at least one, none of which calls tools.
        cap: the longest answer that the model gives, in tokens.

    Returns:
        How it was answered, in words.

    Raises:
        EmptyAnswer, AnswerNeverEnds, AnswersLikeBase: none was, the first one for that reason.
    """
    first: PublishError | None = None
    for chat in chats:
        tokens = min(cap, chat.n_tokens + _MORE_TOKENS)
        answer = api.chat(model, _asked(chat), {**options, "num_predict": tokens})
        try:
            _check_golden(chat, answer, tokens)
        except (EmptyAnswer, AnswerNeverEnds, AnswersLikeBase) as error:
            first = first or error
            continue
        return _in_words(answer)
    assert first is not None  # noqa: S101 - there is at least one chat
    raise first


def ask_for_identity(
    api: OllamaApi, model: str, chats: Sequence[GoldenChat], options: Options, cap: int
) -> None:
    """Tells the model by its answers where its file cannot be seen.

    Raises:
        StoredDiffers: none is that of the file that was made.
    """
    given = []
    for chat in chats:
        tokens = min(cap, chat.n_tokens)
        answer = api.chat(model, _asked(chat), {**options, "num_predict": tokens})
        given.append(_text(answer))
        if given[-1] == chat.answer:
            return
    raise StoredDiffers(
        f"Ollama's model answers {_short(given[0])} where the file that it was given answers"
        f" {_short(chats[0].answer)}",
        "The GGUF is kept; publish it into another Ollama to see which of the two is at fault.",
    )


def ask_for_call(
    api: OllamaApi,
    model: str,
    base: str,
    chats: Sequence[GoldenChat],
    options: Options,
    *,
    thinks: bool,
) -> str | None:
    """Asks for the call of a tool.

    Args:
        base: name of its base in the same Ollama; empty where it is not there.
        chats: trained ones that call tools; where there are none, any tool is asked for.
        thinks: whether it can think, which it is then asked not to do.

    Returns:
        None where it was called; else why nothing follows from that.

    Raises:
        ToolCallsLost: the base calls it, or the finished file writes the call in llama.cpp.
    """
    if chats:
        asked, tokens = _asked(chats[0]), chats[0].n_tokens + _MORE_TOKENS
    else:
        question = {"role": "user", "content": _TOOL_QUESTION}
        asked = as_request([question], [_TOOL], False if thinks else None)
        tokens = _CALL_TOKENS
    limited = {**options, "num_predict": tokens}
    called, said = _calls(api, model, asked, limited)
    if called:
        return None
    if not chats:
        if not base:
            return (
                "the model calls no tool when it is asked to, and its base is not here to compare"
            )
        if not _base_calls(api, base, asked, limited):
            return "neither the model nor its base calls a tool when it is asked to"
    writer = "though the file writes it" if chats else "though its base calls it"
    raise ToolCallsLost(
        f"Ollama returns no call of a tool, {writer}, but {said}",
        "Put calls of tools among the rows that it learns from, or train for fewer steps."
        if not chats
        else MODEL_REMEDY,
    )


def _calls(
    api: OllamaApi, model: str, asked: Mapping[str, Any], options: Options
) -> tuple[bool, str]:
    """Whether the answer is a call of a tool, and in words what it is if not."""
    try:
        answer = api.chat(model, asked, options)
    except PublishError as error:
        # Where it reads calls itself, Ollama refuses one that it cannot read.
        if error.retryable:
            raise
        return False, f"an error: {error.cause}"
    return bool((answer.get("message") or {}).get("tool_calls")), _short(_text(answer))


def _base_calls(api: OllamaApi, base: str, asked: Mapping[str, Any], options: Options) -> bool:
    """The same of the base, which leaves the memory if it was not there before."""
    before = base.lower() in api.loaded()
    try:
        return _calls(api, base, asked, options)[0]
    finally:
        if not before:
            api.unload(base)


def _asked(chat: GoldenChat) -> dict[str, Any]:
    return as_request(chat.messages, chat.tools)


def _check_golden(chat: GoldenChat, answer: Mapping[str, Any], tokens: int) -> None:
    question = str(chat.messages[-1].get("content") or "")
    if chat.answer:
        _check_not_empty(question, answer)
    if answer.get("done_reason") != "stop":
        raise AnswerNeverEnds(
            f"The answer to {_short(question)} does not end by itself within {tokens} tokens:"
            f" {_short(_text(answer))}",
            "Train for more steps, so that the ends of answers are learned; the GGUF is kept.",
        )
    if chat.base_answer is not None and _text(answer) == chat.base_answer:
        raise AnswersLikeBase(
            f"In Ollama the model answers {_short(question)} as its base does, with"
            f" {_short(chat.base_answer)}, and not as it was trained, with {_short(chat.answer)}",
            MODEL_REMEDY,
        )


def _check_not_empty(question: str, answer: Mapping[str, Any]) -> None:
    message = answer.get("message") or {}
    if not any(message.get(part) for part in ("content", "thinking", "tool_calls")):
        raise EmptyAnswer(
            f"the model answered {_short(question)} with nothing (it ended by {_reason(answer)})",
            MODEL_REMEDY,
        )


def _text(answer: Mapping[str, Any]) -> str:
    return visible_answer(str((answer.get("message") or {}).get("content") or ""))


def _reason(answer: Mapping[str, Any]) -> str:
    return str(answer.get("done_reason") or "no reason")


def _in_words(answer: Mapping[str, Any]) -> str:
    return f"it answered {answer.get('eval_count') or 0} tokens and ended by {_reason(answer)}"


def _short(text: str) -> str:
    return f"{text!r:.80}"
