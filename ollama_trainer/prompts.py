"""From a conversation to the tokens that the served model will see.

The prompt is what Ollama will render: the GGUF's own chat template, rendered here with what Ollama
gives to it, or a text that Ollama itself rendered (see ollama_prompts.py). The ids are llama.cpp's
own. A tokenizer that transformers reads off the same GGUF was measured to differ (digits after line
breaks, BOS, merges), and a model that is trained on other ids than it is served with answers worse
or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ollama_trainer.errors import BaseModelError
from ollama_trainer.families import PLAIN, family_of, template_of
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.vocabulary import token_id, tokens
from ollama_trainer.llama import ends_generation
from ollama_trainer.ollama.messages import as_served, preceded, tools_as_served
from ollama_trainer.records import Example, Message, OllamaModel, TokenizedExample

if TYPE_CHECKING:
    from jinja2 import Template as JinjaTemplate
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from llama_cpp import Llama

_PROBE = "An answer."
_QUESTION = {"role": "user", "content": "A question?"}


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
    #: Whether an answer may end with the vocabulary's end-of-text token alone.
    ends_with_text: bool

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

    ends_with_text = False

    def __init__(self, gguf: GgufFile, model: OllamaModel | None = None) -> None:
        self._model = model
        self.source, self.notes = _source(gguf)
        self._special = {f"{name}_token": _token_text(gguf, name) for name in ("bos", "eos")}
        self._template = _compile(self.source, gguf.path.name)
        # As Ollama guesses (its server/images.go).
        self.thinks = "<think>" in self.source and "</think>" in self.source
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


def _token_text(gguf: GgufFile, name: str) -> str:
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


class Tokenizer:
    """llama.cpp's tokenizer of one GGUF. Use `open_tokenizer`, which closes it."""

    def __init__(self, gguf: GgufFile, llama: Llama) -> None:
        self._gguf, self._llama = gguf, llama

    @cached_property
    def _removable_bos(self) -> str:
        """The BOS text where llama.cpp adds BOS itself: a template's own one would be a second."""
        adds = self.ids("", special=True)[:1] == [token_id(self._gguf, "bos")]
        return _token_text(self._gguf, "bos") if adds else ""

    @property
    def end_of_text(self) -> int | None:
        """The token that ends a text, if the vocabulary has one at which llama.cpp stops."""
        token = token_id(self._gguf, "eos")
        return token if token is not None and self.ends_generation(token) else None

    def ids(self, text: str, *, special: bool, begin: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            special: whether the texts of special tokens become those tokens.
            begin: whether BOS is added, if this model wants it.
        """
        data = text.encode("utf-8", "replace")
        return list(self._llama.tokenize(data, add_bos=begin, special=special))

    def served(self, prompt: str, template: Template) -> str:
        """A rendered prompt without the BOS that would be a second one."""
        bos = self._removable_bos
        return prompt.removeprefix(bos) if bos and template.loses(bos) else prompt

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

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.end_of_turn = self._find_end_of_turn()
        self._head = self._find_head()

    def _find_end_of_turn(self) -> int:
        """The token after an answer, at which llama.cpp stops."""
        answered = [_QUESTION, {"role": "assistant", "content": _PROBE}]
        # Some templates leave the last answer open, to be gone on with.
        for conversation in (answered, [*answered, _QUESTION]):
            text = self.template.render(conversation, add_generation_prompt=False)
            closing = text.rpartition(_PROBE)[2]
            for token in self.tokenizer.ids(closing, special=True, begin=False):
                if self.tokenizer.ends_generation(token):
                    return token
        if self.template.ends_with_text and self.tokenizer.end_of_text is not None:
            return self.tokenizer.end_of_text
        raise BaseModelError(
            "The base's chat template ends an answer with no token that ends generation",
            "Choose another base: a model tuned on this one would never stop.",
        )

    def _find_head(self) -> str:
        """What stands between a prompt and the text of an answer: mostly nothing.

        A template may write a frame around answers, and where thoughts are asked for an answer
        without any has to close them first: both are learned with it.
        """
        prompt = self.template.render([_QUESTION], add_generation_prompt=True)
        answered = [_QUESTION, {"role": "assistant", "content": _PROBE}]
        text = self.template.render(answered, add_generation_prompt=False)
        between, found, _ = text.removeprefix(prompt).partition(_PROBE)
        if text.startswith(prompt) and found and between.strip():
            return between
        if self.template.thinks:
            without = self.template.render([_QUESTION], add_generation_prompt=True, think=False)
            if without.startswith(prompt):
                return without.removeprefix(prompt)
        return "\n</think>\n\n" if prompt.rstrip().endswith("<think>") else ""

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

    def served(self, prompt: str) -> str:
        """A rendered prompt as llama.cpp gets it."""
        return self.tokenizer.served(prompt, self.template)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt, as they are made of it when it is served."""
        return self.tokenizer.ids(self.served(prompt), special=True)

    def tokenize(self, example: Example) -> TokenizedExample:
        """Ids of prompt, answer and end of turn; the mask is 1 from the answer's first token on.

        Raises:
            TemplateRefusal: the template refuses the conversation, or has no words for a call of a
                tool.
        """
        prompt = self.prompt_of(example)
        prompt_ids = self.prompt_ids(prompt)
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
        is_open = self.end_of_turn not in ids and self.template.ends_with_text
        if is_open:
            ids.append(self.end_of_turn)
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
        """Ids of the answer in its place, with what has to stand before it.

        Some tokenizers put a space before the first word of a text, so the answer is tokenised
        behind its prompt. An answer that spells out special tokens is text nevertheless.
        """
        begun = self._continued(prompt, prompt_ids, self._head)
        alone = self.tokenizer.ids(answer, special=False, begin=False)
        if alone != self.tokenizer.ids(answer, special=True, begin=False):
            return begun + alone
        before = prompt + self._head
        return begun + self._continued(before, prompt_ids + begun, answer)

    def _continued(self, text: str, ids: list[int], more: str) -> list[int]:
        """Ids of `more` behind a text and its ids, or by itself where the two run together."""
        together = self.prompt_ids(text + more)
        if not more or together[: len(ids)] != ids:
            return self.tokenizer.ids(more, special=True, begin=False) if more else []
        return together[len(ids) :]


@contextlib.contextmanager
def open_prompt_format(gguf: GgufFile, template: Template | None = None) -> Iterator[PromptFormat]:
    """Template and tokenizer of a file.

    Args:
        gguf: the file.
        template: None: that which the file carries.
    """
    template = template or ChatTemplate(gguf)
    with open_tokenizer(gguf) as tokenizer:
        yield PromptFormat(template, tokenizer)
