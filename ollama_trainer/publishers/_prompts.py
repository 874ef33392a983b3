"""Whether an Ollama asks a model in the words that it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import PromptDiffers
from ollama_trainer.modelfile import Modelfile
from ollama_trainer.ollama.comparison import compare_prompts
from ollama_trainer.ollama.messages import as_request
from ollama_trainer.records import ExpectedPrompt

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

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

    def render(expected: ExpectedPrompt) -> str | None:
        asked = as_request(expected.messages, expected.tools, expected.think)
        return api.render(model, asked, {**options, "num_predict": 1})

    return compare_prompts(prompts, render, report, _REMEDY)


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
