"""From a conversation to the tokens that the served model will see.

The prompt is the GGUF's own chat template, rendered; the ids are llama.cpp's own. A tokenizer that
transformers reads off the same GGUF was measured to differ (digits after line breaks, BOS, merges),
and a model that is trained on other ids than it is served with answers worse or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.vocabulary import token_id, tokens
from ollama_trainer.llama import ends_generation
from ollama_trainer.records import Example, Message, TokenizedExample

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from llama_cpp import Llama

_PROBE = "An answer."


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


class ChatTemplate:
    """A GGUF's own chat template.

    Args:
        gguf: the file that carries it.

    Raises:
        BaseModelError: the file has no template, or one that cannot be compiled.
    """

    def __init__(self, gguf: GgufFile) -> None:
        self.source = gguf.get("tokenizer.chat_template")
        if not isinstance(self.source, str) or not self.source.strip():
            raise BaseModelError(
                f"{gguf.path.name} has no chat template", "Choose a chat or instruct model."
            )
        self._special = {f"{name}_token": _token_text(gguf, name) for name in ("bos", "eos")}
        self._template = _compile(self.source, gguf.path.name)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Message] = (),
    ) -> str:
        """The text that the model sees for `messages`.

        Args:
            messages: a conversation of the chat API.
            add_generation_prompt: whether it ends with the beginning of an answer.
            tools: functions that may be called, as the chat API has them.

        Raises:
            TemplateRefusal: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=list(tools) or None,
                documents=None,
                **self._special,
            )
        except Exception as error:
            # A template is a program of somebody else's: it may raise anything.
            raise TemplateRefusal(
                "The base's chat template refuses the conversation", str(error)
            ) from error


def _token_text(gguf: GgufFile, name: str) -> str:
    index = token_id(gguf, name)
    return "" if index is None else tokens(gguf)[index]


def _compile(source: str, file_name: str) -> Template:
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


class Tokenizer:
    """llama.cpp's tokenizer of one GGUF. Use `open_tokenizer`, which closes it."""

    def __init__(self, gguf: GgufFile, llama: Llama) -> None:
        self._gguf, self._llama = gguf, llama

    @cached_property
    def _removable_bos(self) -> str:
        """The BOS text where llama.cpp adds BOS itself: a template's own one would be a second."""
        adds = self.ids("", special=True)[:1] == [token_id(self._gguf, "bos")]
        return _token_text(self._gguf, "bos") if adds else ""

    def ids(self, text: str, *, special: bool, begin: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            special: whether the texts of special tokens become those tokens.
            begin: whether BOS is added, if this model wants it.
        """
        data = text.encode("utf-8", "replace")
        return list(self._llama.tokenize(data, add_bos=begin, special=special))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt, as llama.cpp's chat path makes them."""
        bos = self._removable_bos
        return self.ids(prompt.removeprefix(bos) if bos else prompt, special=True)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, those of special tokens included."""
        data: bytes = self._llama.detokenize(list(ids), special=True)
        return data.decode("utf-8", "replace")

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp stops at this token."""
        return ends_generation(self._llama, token)


@contextlib.contextmanager
def open_tokenizer(gguf: GgufFile) -> Iterator[Tokenizer]:
    """llama.cpp's tokenizer of a file; loads no weights."""
    from llama_cpp import Llama

    try:
        llama = Llama(str(gguf.path), vocab_only=True, verbose=False)
    except ValueError as error:
        raise BaseModelError(
            f"llama.cpp cannot read the vocabulary of {gguf.path.name}: {error}",
            "Choose another base.",
        ) from error
    # Left to the interpreter's exit, closing raises.
    with contextlib.closing(llama):
        yield Tokenizer(gguf, llama)


class PromptFormat:
    """Template and tokenizer together: examples in, ids and loss mask out."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.end_of_turn = self._find_end_of_turn()

    def _find_end_of_turn(self) -> int:
        """The token after an answer, at which llama.cpp stops."""
        user = {"role": "user", "content": "A question?"}
        answer = {"role": "assistant", "content": _PROBE}
        text = self.template.render([user, answer], add_generation_prompt=False)
        closing = text.rpartition(_PROBE)[2]
        for token in self.tokenizer.ids(closing, special=True, begin=False):
            if self.tokenizer.ends_generation(token):
                return token
        raise BaseModelError(
            "The base's chat template ends an answer with no token that ends generation",
            "Choose another base: a model tuned on this one would never stop.",
        )

    def prompt(self, text: str) -> str:
        """The rendered prompt of a single question."""
        message = {"role": "user", "content": text}
        return self.template.render([message], add_generation_prompt=True)

    def prompt_of(self, example: Example) -> str:
        """The rendered conversation before an answer.

        Raises:
            TemplateRefusal: the template refuses it.
        """
        return self.template.render(
            example.context, add_generation_prompt=True, tools=example.tools
        )

    def tokenize(self, example: Example) -> TokenizedExample:
        """Ids of prompt, answer and end of turn; the mask is 1 from the answer's first token on.

        Raises:
            TemplateRefusal: the template refuses the conversation, or has no words for a call of a
                tool.
        """
        prompt = self.prompt_of(example)
        prompt_ids = self.tokenizer.prompt_ids(prompt)
        if "tool_calls" in example.answer:
            answer_ids = self._call_ids(prompt, example)
        else:
            answer_ids = self._answer_ids(prompt, prompt_ids, example.completion)
        ids = (*prompt_ids, *answer_ids, self.end_of_turn)
        mask = (0,) * len(prompt_ids) + (1,) * (len(answer_ids) + 1)
        return TokenizedExample(ids=ids, mask=mask)

    def _call_ids(self, prompt: str, example: Example) -> list[int]:
        """Ids of an answer that calls tools, as the template writes it, without its end of turn."""
        text = self.template.render(
            (*example.context, example.answer), add_generation_prompt=False, tools=example.tools
        )
        answer = text.removeprefix(prompt)
        ids = self.tokenizer.ids(answer, special=True, begin=False)
        names = [call["function"]["name"] for call in example.answer["tool_calls"]]
        if (
            not text.startswith(prompt)
            or self.end_of_turn not in ids
            or not all(name in answer for name in names)
        ):
            raise TemplateRefusal("The base's chat template has no words for a call of a tool")
        if ids.count(self.end_of_turn) > 1:
            raise TemplateRefusal("A call of a tool spells the token that ends a turn")
        return ids[: ids.index(self.end_of_turn)]

    def _answer_ids(self, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
        """Ids of the answer in its place.

        Some tokenizers put a space before the first word of a text, so the answer is tokenised
        behind its prompt. An answer that spells out special tokens is text nevertheless.
        """
        together = self.tokenizer.prompt_ids(prompt + answer)
        alone = self.tokenizer.ids(answer, special=False, begin=False)
        spells_special = alone != self.tokenizer.ids(answer, special=True, begin=False)
        if spells_special or together[: len(prompt_ids)] != prompt_ids:
            return alone
        return together[len(prompt_ids) :]


@contextlib.contextmanager
def open_prompt_format(gguf: GgufFile) -> Iterator[PromptFormat]:
    """Template and tokenizer of a file."""
    template = ChatTemplate(gguf)
    with open_tokenizer(gguf) as tokenizer:
        yield PromptFormat(template, tokenizer)
