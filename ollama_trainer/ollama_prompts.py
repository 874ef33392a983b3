"""Which template makes a base's prompts: the GGUF's own, or Ollama itself.

Where a base in Ollama has a Go template or a renderer, Ollama makes its prompts, and makes those of
the tuned model the same way. So it is asked for the prompts that are trained on, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ollama_trainer.chat_template import ChatTemplate, Template, TemplateRefusal, token_text
from ollama_trainer.errors import BaseModelError, PromptDiffers, PublishError
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.ollama.comparison import compare_prompts
from ollama_trainer.ollama.host import resolve
from ollama_trainer.ollama.rendering import CannotRender, Rendering, is_refusal, open_rendering
from ollama_trainer.ollama.stand_in import Marks
from ollama_trainer.prompts import PromptFormat, open_prompt_format, open_tokenizer
from ollama_trainer.records import ExpectedPrompt, Message, OllamaModel

_NOTHING_TRAINED = (
    "Nothing was trained. Use the version of Ollama that the base is from, publish into a folder"
    " (publisher = folder), or report this with the base's name."
)
#: Files that Ollama takes for such that BOS is added to, whatever they say themselves.
_ALWAYS_BOS = ("lfm2", "gemma4")


class OllamaTemplate:
    """A base's Go template or renderer, as an Ollama renders it.

    Args:
        gguf: the base's file.
        model: what the base has in Ollama.
        rendering: an open stand-in for it.
    """

    #: Go templates often leave the last answer open, and some write nothing after any.
    by_ollama = True

    def __init__(self, gguf: GgufFile, model: OllamaModel, rendering: Rendering) -> None:
        self._model, self._rendering = model, rendering
        self._adds_bos = (
            gguf.get("tokenizer.ggml.add_bos_token") is True
            or gguf.get("tokenizer.ggml.pre") in _ALWAYS_BOS
            or gguf.get("tokenizer.ggml.model") in _ALWAYS_BOS
        )
        capabilities = model.capabilities or ()
        self.thinks = "thinking" in capabilities
        self.knows_tools = "tools" in capabilities
        self.notes: tuple[str, ...] = ()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,  # noqa: ARG002 - Ollama decides
        tools: Sequence[Message] = (),
        think: bool | None = None,
    ) -> str:
        """See `Template.render`.

        Raises:
            TemplateRefusal: the template refuses the conversation.
            OllamaUnreachable: no Ollama answers any more.
            PublishError: it is too busy.
        """
        try:
            return self._rendering.render(messages, tools, think)
        except PublishError as error:
            if is_refusal(error):
                raise TemplateRefusal(
                    "The base's template in Ollama refuses the conversation", error.cause
                ) from error
            raise

    def loses(self, bos: str) -> bool:
        """See `Template.loses`. Source: completionPrompt in Ollama's llm/llama_server.go."""
        return self._adds_bos and (bool(self._model.renderer) or bos == "<bos>")


def is_rendered_by_ollama(model: OllamaModel | None) -> bool:
    """Whether Ollama makes the prompts by its own means, not by the GGUF's Jinja template."""
    return model is not None and bool(model.template or model.renderer or model.parser)


def prompts_digest(model: OllamaModel | None) -> str:
    """Of all that decides a prompt beside the GGUF; empty where nothing does."""
    if model is None:
        return ""
    said = [
        model.template, model.renderer, model.parser, model.system,
        [dict(message) for message in model.messages],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12] if any(said) else ""


@contextmanager
def open_template(
    gguf: GgufFile, model: OllamaModel | None, ollama_host: str
) -> Iterator[Template]:
    """What makes the prompts of a base.

    Args:
        gguf: the base's file.
        model: what it has in Ollama, if it is from there.
        ollama_host: where that is, in any form that OLLAMA_HOST may have.

    Raises:
        BaseModelError: nothing can make them.
        OllamaUnreachable: no Ollama answers.
        PublishError: it refused.
    """
    with ExitStack() as stack:
        if model is not None and is_rendered_by_ollama(model):
            jinja = gguf.get("tokenizer.chat_template")
            jinja = jinja if isinstance(jinja, str) else ""
            try:
                rendering = stack.enter_context(
                    open_rendering(
                        resolve(ollama_host), model, jinja=jinja, family=gguf.architecture
                    )
                )
                rendering.check()
            except CannotRender as error:
                stack.close()
                yield _instead(gguf, model, jinja, error)
                return
            yield OllamaTemplate(gguf, model, rendering)
            return
        yield ChatTemplate(gguf, model)


def _instead(gguf: GgufFile, model: OllamaModel, jinja: str, error: CannotRender) -> Template:
    """The GGUF's own template where Ollama does not render its own.

    Raises:
        BaseModelError: there is none.
    """
    if not jinja.strip():
        raise BaseModelError(
            f"The prompts of {model.model} are made by Ollama, which does not tell them"
            f" ({error.cause}), and its GGUF has no chat template",
            error.remedy,
        ) from error
    template = ChatTemplate(gguf, model)
    template.notes = (
        f"Ollama does not tell what prompts it makes of {model.model} ({error.cause}): the chat"
        " template of its GGUF is used instead, which may differ",
        *template.notes,
    )
    return template


@contextmanager
def open_format(
    gguf: GgufFile, model: OllamaModel | None, ollama_host: str
) -> Iterator[PromptFormat]:
    """Template and tokenizer of a base; see `open_template` for the arguments and errors."""
    with (
        open_template(gguf, model, ollama_host) as template,
        open_prompt_format(gguf, template) as form,
    ):
        yield form


def why_not_compared(
    gguf: GgufFile,
    model: OllamaModel | None,
    ollama_host: str,
    prompts: Sequence[ExpectedPrompt],
) -> str | None:
    """Compares prompts of a Jinja template with what Ollama will make of them, before a training.

    Where Ollama makes the prompts by its own means they are Ollama's own already.

    Args:
        gguf, model, ollama_host: as of `open_template`.
        prompts: what the tuned model must be asked with.

    Returns:
        Why it could not be done now; None if it was, or is not needed.

    Raises:
        PromptDiffers: Ollama makes other ones.
    """
    if is_rendered_by_ollama(model):
        return None
    source = ChatTemplate(gguf, model).source
    bos, eos = (token_text(gguf, name) for name in ("bos", "eos"))
    if ("bos_token" in source and not bos) or ("eos_token" in source and not eos):
        return "the base's chat template writes a token that its vocabulary does not have"
    with open_tokenizer(gguf) as tokenizer:
        marks = Marks(bos=bos or "<s>", eos=eos or "</s>", adds_bos=tokenizer.adds_bos)
    like = model or OllamaModel(model="the base")
    try:
        with open_rendering(
            resolve(ollama_host), like, jinja=source, family=gguf.architecture, marks=marks
        ) as rendering:
            told = compare_prompts(
                prompts, lambda one: _told(rendering, one), lambda *_: None, _NOTHING_TRAINED
            )
    except PromptDiffers:
        raise
    except PublishError as error:
        # Publishing asks again, and may wait for what passes.
        return error.cause
    return None if told else "this Ollama does not tell what prompts it makes"


def _told(rendering: Rendering, asked: ExpectedPrompt) -> str | None:
    try:
        return rendering.render(asked.messages, asked.tools, asked.think)
    except CannotRender:
        return None
