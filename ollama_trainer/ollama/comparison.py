"""Whether an Ollama makes the prompts that a model is, or was, trained with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ollama_trainer.errors import PromptDiffers, PublishError
from ollama_trainer.records import ExpectedPrompt

#: Characters of both prompts that are shown from where they begin to differ.
_SHOWN = 60
#: A template may write the day, and the next one may have begun since the training.
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}|\d{1,2} [A-Z][a-z]{2,8},? \d{4}|[A-Z][a-z]{2,8} \d{1,2},? \d{4}"
)


def compare_prompts(
    prompts: Sequence[ExpectedPrompt],
    render: Callable[[ExpectedPrompt], str | None],
    report: Callable[[float, str], None],
    remedy: str,
) -> bool:
    """Compares what an Ollama makes of some conversations with what was made of them here.

    Args:
        render: asks Ollama for the prompt of a conversation; None where it does not tell.
        report: called with the share that is done.
        remedy: of the error.

    Returns:
        False where this Ollama does not tell what prompts it makes.

    Raises:
        PromptDiffers: one is another one.
        OllamaUnreachable: no Ollama answers any more.
        PublishError: it is too busy.
    """
    for number, expected in enumerate(prompts):
        report(number / len(prompts), "comparing the prompt with the trained one")
        try:
            text = render(expected)
        except PublishError as error:
            if error.retryable:
                raise
            raise PromptDiffers(
                f"Ollama refuses {_kind(expected)}, though the model is trained for it:"
                f" {error.cause}",
                remedy,
            ) from error
        if text is None:
            return False
        if not _is_same(text, expected.text):
            raise PromptDiffers(
                "Ollama asks the model in other words than it is trained with, for"
                f" {_kind(expected)}: {_difference(text, expected.text)}",
                remedy,
            )
    return True


def _is_same(one: str, other: str) -> bool:
    return one == other or _DATE.sub("", one) == _DATE.sub("", other)


def _kind(asked: ExpectedPrompt) -> str:
    roles = ", ".join(message["role"] for message in asked.messages)
    tools = " with tools" if asked.tools else ""
    think = ""
    if asked.think is not None:
        think = ", thinking" if asked.think else ", not thinking"
    return f"a conversation of {roles}{tools}{think}"


def _difference(ollama: str, trained: str) -> str:
    pairs = zip(ollama, trained, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ollama), len(trained)))
    return (
        f"from character {at} on it is {ollama[at : at + _SHOWN]!r}, not"
        f" {trained[at : at + _SHOWN]!r}"
    )
