"""Whether an Ollama asks a model in the words that it was trained with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import OllamaUnreachable, PromptDiffers, PublishError
from ollama_trainer.modelfile import Modelfile
from ollama_trainer.ollama.messages import for_api
from ollama_trainer.records import ExpectedPrompt

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

#: Characters of both prompts that are shown from where they begin to differ.
_SHOWN = 60
#: A template may write the day, and the next one may have begun since the training.
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}|\d{1,2} [A-Z][a-z]{2,8},? \d{4}|[A-Z][a-z]{2,8} \d{1,2},? \d{4}"
)
#: What Ollama shows of a model for which it has no template at all.
_NO_TEMPLATE = "{{ .Prompt }}"
_REMEDY = (
    "The GGUF is kept. Publish it into the version of Ollama that the base is from, or report"
    " this with the base's name."
)


def check_prompts(
    api: OllamaApi,
    model: str,
    prompts: Sequence[ExpectedPrompt],
    options: Mapping[str, Any],
    report: Callable[[float, str], None],
) -> bool:
    """Compares what Ollama makes of some conversations with what the model was trained with.

    Args:
        model: the name under which it is loaded.
        options: that it was loaded with.
        report: called with the share that is done.

    Returns:
        False where this Ollama does not tell what prompts it makes.

    Raises:
        PromptDiffers: one is another one.
        OllamaUnreachable: no Ollama answers any more.
        PublishError: it is too busy.
    """
    for number, expected in enumerate(prompts):
        report(number / len(prompts), "comparing the prompt with the trained one")
        asked: dict[str, Any] = {"messages": for_api(expected.messages)}
        if expected.tools:
            asked["tools"] = list(expected.tools)
        if expected.think is not None:
            asked["think"] = expected.think
        text = _rendered(api, model, asked, {**options, "num_predict": 1})
        if text is None:
            return False
        if not _is_same(text, expected.text):
            raise PromptDiffers(
                "Ollama asks the model in other words than it was trained with, for"
                f" {_kind(asked)}: {_difference(text, expected.text)}",
                _REMEDY,
            )
    return True


def check_template(modelfile: Modelfile, shown: str | None) -> None:
    """What can be seen of the template where Ollama does not tell its prompts.

    Args:
        shown: the model's template, as Ollama shows it.

    Raises:
        PromptDiffers: Ollama does not use the one of the GGUF.
    """
    own = modelfile.template or modelfile.renderer or modelfile.parser
    if not own and shown == _NO_TEMPLATE:
        raise PromptDiffers(
            "This Ollama does not use the chat template that the GGUF carries", "Update Ollama."
        )


def _rendered(
    api: OllamaApi, model: str, asked: Mapping[str, Any], options: Mapping[str, Any]
) -> str | None:
    try:
        return api.render(model, asked, options)
    except PublishError as error:
        if error.retryable or isinstance(error, OllamaUnreachable):
            raise
        raise PromptDiffers(
            f"Ollama refuses {_kind(asked)}, though the model was trained for it: {error.cause}",
            _REMEDY,
        ) from error


def _is_same(one: str, other: str) -> bool:
    return one == other or _DATE.sub("", one) == _DATE.sub("", other)


def _kind(asked: Mapping[str, Any]) -> str:
    roles = ", ".join(message["role"] for message in asked["messages"])
    tools = " with tools" if "tools" in asked else ""
    think = ""
    if "think" in asked:
        think = ", thinking" if asked["think"] else ", not thinking"
    return f"a conversation of {roles}{tools}{think}"


def _difference(ollama: str, trained: str) -> str:
    pairs = zip(ollama, trained, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ollama), len(trained)))
    return (
        f"from character {at} on it is {ollama[at : at + _SHOWN]!r}, not"
        f" {trained[at : at + _SHOWN]!r}"
    )
