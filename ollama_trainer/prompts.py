"""From a conversation to the tokens that the served model will see.

The prompt is what Ollama will render: the GGUF's own chat template, rendered here with what Ollama
gives to it, or a text that Ollama itself rendered (see ollama_prompts.py). The ids are llama.cpp's
own. A tokenizer that transformers reads off the same GGUF was measured to differ (digits after line
breaks, BOS, merges), and a model that is trained on other ids than it is served with answers worse
or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ollama_trainer.chat_template import ChatTemplate, Template, TemplateRefusal, token_text
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.vocabulary import token_id
from ollama_trainer.llama import ends_generation
from ollama_trainer.records import (
    Example,
    ExpectedPrompt,
    TokenizedExample,
)

if TYPE_CHECKING:
    from llama_cpp import Llama

_PROBE = "An answer."
_QUESTION = {"role": "user", "content": "A question?"}
_ANSWER = {"role": "assistant", "content": _PROBE}
#: What prompts are compared on when a model is published, beside tools and thoughts.
_CONVERSATIONS = (
    ExpectedPrompt(messages=(_QUESTION,), text=""),
    ExpectedPrompt(
        messages=(
            {"role": "system", "content": ' Answer in "one" word. '},
            {"role": "user", "content": "Qué?\n\n  {{ 7 }} <b>&amp; 🙂 "},
        ),
        text="",
    ),
    ExpectedPrompt(
        messages=(_QUESTION, _ANSWER, {"role": "user", "content": "And\tthen?"}), text=""
    ),
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Tells the weather: "sunny" or <rain>.',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["place"],
        },
    },
}


class Tokenizer:
    """llama.cpp's tokenizer of one GGUF. Use `open_tokenizer`, which closes it."""

    def __init__(self, gguf: GgufFile, llama: Llama) -> None:
        self._gguf, self._llama = gguf, llama

    @cached_property
    def adds_bos(self) -> bool:
        """Whether llama.cpp begins prompts with BOS."""
        return self.ids("", special=True)[:1] == [token_id(self._gguf, "bos")]

    @cached_property
    def _removable_bos(self) -> str:
        """The BOS text where llama.cpp adds BOS itself: a template's own one would be a second."""
        return token_text(self._gguf, "bos") if self.adds_bos else ""

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
        #: What stands between a prompt and the text of an answer: mostly nothing.
        self.head = self._find_head()

    def _find_end_of_turn(self) -> int:
        """The token after an answer, at which llama.cpp stops."""
        answered = [_QUESTION, _ANSWER]
        # Some templates leave the last answer open, to be gone on with.
        for conversation in (answered, [*answered, _QUESTION]):
            text = self.template.render(conversation, add_generation_prompt=False)
            closing = text.rpartition(_PROBE)[2]
            for token in self.tokenizer.ids(closing, special=True, begin=False):
                if self.tokenizer.ends_generation(token):
                    return token
        if self.template.by_ollama and self.tokenizer.end_of_text is not None:
            return self.tokenizer.end_of_text
        raise BaseModelError(
            "The base's chat template ends an answer with no token that ends generation",
            "Choose another base: a model tuned on this one would never stop.",
        )

    def _find_head(self) -> str:
        """See `head`.

        A template may write a frame around answers, and where thoughts are asked for an answer
        without any has to close them first: both are learned with it.
        """
        prompt = self.template.render([_QUESTION], add_generation_prompt=True)
        text = self.template.render([_QUESTION, _ANSWER], add_generation_prompt=False)
        between, found, _ = text.removeprefix(prompt).partition(_PROBE)
        if text.startswith(prompt) and found and between.strip():
            return between
        if self.template.thinks:
            without = self.template.render([_QUESTION], add_generation_prompt=True, think=False)
            if without.startswith(prompt) and without != prompt:
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

    def expected(self) -> tuple[ExpectedPrompt, ...]:
        """What a tuned model must be asked with: conversations of every kind, with their prompts.

        Those that the template refuses are left out.
        """
        asked = list(_CONVERSATIONS)
        if self.template.knows_tools:
            asked.append(ExpectedPrompt(messages=(_QUESTION,), tools=(_TOOL,), text=""))
        if self.template.thinks:
            asked += [asked[0].model_copy(update={"think": think}) for think in (True, False)]
        found = []
        for one in asked:
            with contextlib.suppress(TemplateRefusal):
                prompt = self.template.render(
                    one.messages, add_generation_prompt=True, tools=one.tools, think=one.think
                )
                # Ollama tells its own prompts before it takes BOS off, and llama.cpp's after.
                text = prompt if self.template.by_ollama else self.served(prompt)
                found.append(one.model_copy(update={"text": text}))
        return tuple(found)

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
        is_open = self.end_of_turn not in ids and self.template.by_ollama
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
        begun = self._continued(prompt, prompt_ids, self.head)
        alone = self.tokenizer.ids(answer, special=False, begin=False)
        if alone != self.tokenizer.ids(answer, special=True, begin=False):
            return begun + alone
        before = prompt + self.head
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
