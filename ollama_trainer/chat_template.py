"""What makes a prompt of a conversation: a GGUF's own Jinja template, or that of its family."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ollama_trainer.errors import BaseModelError
from ollama_trainer.families import PLAIN, family_of, template_of
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.vocabulary import token_id, tokens
from ollama_trainer.ollama.messages import as_served, preceded, tools_as_served
from ollama_trainer.records import Message, OllamaModel

if TYPE_CHECKING:
    from jinja2 import Template as JinjaTemplate
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser


class TemplateRefusal(BaseModelError):
    """The base's chat template cannot say a conversation, though it can say others.

    Args:
        reason: what is wrong, without a word of the conversation.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(
            f"{reason}: {detail}" if detail else reason,
            "Choose another base, or leave out what it refuses.",
        )
        self.reason = reason


class Template(Protocol):
    """What makes a prompt of a conversation."""

    #: What a person should know of it.
    notes: tuple[str, ...]
    #: Whether it can ask for thoughts before an answer; Ollama then does unless it is told not to.
    thinks: bool
    #: Whether it has words for tools, as Ollama guesses.
    knows_tools: bool
    #: Whether Ollama itself makes the prompts. Its templates may write no end of an answer, which
    #: is then the vocabulary's end of text.
    by_ollama: bool

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Message] = (),
        think: bool | None = None,
    ) -> str:
        """The text that the model sees for `messages`.

        Args:
            messages: a conversation of the chat API.
            add_generation_prompt: whether it ends with the beginning of an answer, where the
                template leaves that open.
            tools: functions that may be called, as the chat API has them.
            think: whether thoughts are asked for; None: as Ollama does by itself.

        Raises:
            TemplateRefusal: the template refuses the conversation.
        """

    def loses(self, bos: str) -> bool:
        """Whether Ollama takes this text off the head of a prompt, since BOS is added anyway."""


class ChatTemplate:
    """A GGUF's own Jinja template, or that of its family where it has none.

    Args:
        gguf: the file.
        model: what the base has in Ollama, if it is from there.

    Raises:
        BaseModelError: there is no template for it, or one that cannot be compiled.
    """

    by_ollama = False

    def __init__(self, gguf: GgufFile, model: OllamaModel | None = None) -> None:
        self._model = model
        self.source, self.notes = _source(gguf)
        self._special = {f"{name}_token": token_text(gguf, name) for name in ("bos", "eos")}
        self._template = _compile(self.source, gguf.path.name)
        # As Ollama guesses (its server/images.go).
        self.thinks = _thinks(self.source)
        self.knows_tools = "tools" in self.source or "tool_call" in self.source

    @cached_property
    def _knows_system(self) -> bool:
        """Whether it shows the model a system message; llama.cpp asks it the same."""
        needle = "<system needle>"
        asked = [{"role": "system", "content": needle}, {"role": "user", "content": "Hi"}]
        try:
            return needle in self._rendered(asked, True, (), None)
        except TemplateRefusal:
            return False

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Message] = (),
        think: bool | None = None,
    ) -> str:
        """See `Template.render`. All is given to the template as llama.cpp gives it in Ollama."""
        served = as_served(preceded(self._model, messages))
        if served and served[0]["role"] == "system" and not self._knows_system:
            system = served.pop(0)
            if served:
                joined = f"{system['content']}\n{served[0]['content']}"
                served[0] = served[0] | {"content": joined}
        return self._rendered(served, add_generation_prompt, tools, think)

    def _rendered(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[Message],
        think: bool | None,
    ) -> str:
        now = datetime.now()
        given = {"tools": tools_as_served(tools)} if tools else {}
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=self.thinks and think is not False,
                date_string=now.strftime("%d %b %Y"),
                datetime=now.strftime("%b %d %Y"),
                **self._special,
                **given,
            )
        except Exception as error:
            # A template is a program of somebody else's: it may raise anything.
            raise TemplateRefusal(
                "The base's chat template refuses the conversation", str(error)
            ) from error

    def loses(self, bos: str) -> bool:  # noqa: ARG002
        """See `Template.loses`. llama.cpp's chat path does so with any."""
        return True


def _thinks(source: str) -> bool:
    if "<think>" in source and "</think>" in source:
        return True
    # Templates that only cut thoughts off.
    cuts = any(f"content.split({quote}</think>{quote})" in source for quote in ("'", '"'))
    return cuts and "reasoning_content" not in source and "<SPECIAL_12>" not in source


def _source(gguf: GgufFile) -> tuple[str, tuple[str, ...]]:
    """The Jinja template, and what should be known of it."""
    own = gguf.get("tokenizer.chat_template")
    if isinstance(own, str) and own.strip():
        return own, ()
    family = family_of(gguf)
    said = f"the base brings no chat template: it gets modelfiles/{family.name}.jinja"
    if family is PLAIN:
        said += ", the last resort, since no family's tokens are in its vocabulary"
    return template_of(family), (said,)


def token_text(gguf: GgufFile, name: str) -> str:
    """The text of a special token; empty where there is none."""
    index = token_id(gguf, name)
    return "" if index is None else tokens(gguf)[index]


def _compile(source: str, file_name: str) -> JinjaTemplate:
    """Compiles a template with the settings and helpers of transformers' `apply_chat_template`.

    Templates come with files from anywhere, so they run in Jinja's sandbox.
    """
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tags(), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise BaseModelError(
            f"The chat template of {file_name} cannot be compiled: {error}", "Choose another base."
        ) from error


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes characters of HTML; this is transformers'."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _generation_tags() -> type[Extension]:
    """`{% generation %}` … `{% endgeneration %}`, which mark answers and change no text."""
    from jinja2.ext import Extension

    class GenerationTags(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            parser.stream.skip(1)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationTags
