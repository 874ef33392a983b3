"""Prompts: the ids that are trained on are those that the served model sees."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.bases import resolve_base
from ollama_trainer.chat_template import ChatTemplate
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.ollama.shield import protect_chat_template
from ollama_trainer.prompts import PromptFormat, open_prompt_format
from ollama_trainer.records import Example, OllamaModel
from tests.tiny_models import CHATML, TOKENS, tiny_model, write_gguf

QUESTION = Example.of(prompt="Where is the kiln?", completion="In the yard.", line=1)
BOS_TEMPLATE = "{{ bos_token }}" + CHATML
BOUNDARIES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " two\n\nlines "}],
    [
        {"role": "user", "content": "<b>&amp;</b> {{ 7 * 7 }}"},
        {"role": "assistant", "content": "49 – \u2028 no 🙂"},
        {"role": "user", "content": ""},
    ],
    [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}],
]


@pytest.fixture(scope="module")
def smollm2() -> GgufFile:
    return read_gguf(resolve_base("smollm2").gguf)


@pytest.fixture(scope="module")
def form(smollm2: GgufFile) -> Iterator[PromptFormat]:
    with open_prompt_format(smollm2) as opened:
        yield opened


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


class LlamaChat:
    """The ids that llama-cpp-python's `create_chat_completion` makes of a conversation."""

    def __init__(self, path: Path) -> None:
        from llama_cpp import Llama
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self.llama = Llama(str(path), vocab_only=True, verbose=False)
        token_text = self.llama._model.token_get_text
        self._formatter = Jinja2ChatFormatter(
            template=self.llama.metadata["tokenizer.chat_template"],
            eos_token=token_text(self.llama.token_eos()),
            bos_token=token_text(self.llama.token_bos()),
        )

    def ids(self, messages: list[dict[str, Any]]) -> list[int]:
        made = self._formatter(messages=messages)
        prompt = made.prompt.encode("utf-8")
        return list(self.llama.tokenize(prompt, add_bos=not made.added_special, special=True))


@pytest.fixture(scope="module")
def chat(smollm2: GgufFile) -> Iterator[LlamaChat]:
    opened = LlamaChat(smollm2.path)
    yield opened
    opened.llama.close()


def special_texts(gguf: GgufFile) -> list[str]:
    """The text of every token that is not an ordinary one."""
    kinds = gguf.get("tokenizer.ggml.token_type")
    tokens: list[str] = gguf.get("tokenizer.ggml.tokens")
    return [text for text, kind in zip(tokens, kinds, strict=True) if kind != 1]


def mixed_texts(gguf: GgufFile, count: int) -> list[str]:
    """Seeded texts of what tokenizers stumble over; every special token is in some of them."""
    special = special_texts(gguf)
    pieces = [
        "the", " kiln", "Bluebird", "don't", "I'LL", "naïve", "ﬁne", "e\u0301", "ÅNGSTRÖM", "ß",
        "\n", "\n\n", "\r\n", "\t", "  ", "    ", "\u00a0", "\u2003", "\u200b", "\u200d", "\ufeff",
        "\n1", "\n22\n333", "\r\n4444", "1234567890", "3.14", "1,000", "٣٤٥", "²½", "Ⅷ", "2026-11",
        "🙂", "👩‍👩‍👧‍👦", "🇪🇺", "✊🏽", "你好，世界", "こんにちは",
        "안녕하세요", "Привет", "مرحبا", "שלום", "नमस्ते",
        "def f(x):\n    return x[0] != None\n", "for (;;) { i++; }", "https://a.b/c?d=e&f#g",
        "a@b.example", "<br/>", "{{ x }}", "{% if %}", "\\n", "\\u0041", '"\'`', "!!!???", "—…",
        "\x00", "\x07", "\x7f", "\ud7ff", "\ue000", "\U0010ffff", "$", "%s", "#", "0x1F", "_a_b",
    ]  # fmt: skip
    rng = random.Random(20)
    texts = list(special)
    while len(texts) < count:
        drawn = [
            rng.choice(special) if rng.random() < 0.1 else rng.choice(pieces)
            for _ in range(rng.randint(1, 9))
        ]
        glue = rng.choice(["", " ", "\n"])
        texts.append(rng.choice(["", " ", "\n"]) + glue.join(drawn) + rng.choice(["", " ", "\n "]))
    return texts[:count]


def test_a_thousand_texts_get_the_ids_of_llama_cpps_chat_path(
    form: PromptFormat, chat: LlamaChat, smollm2: GgufFile
) -> None:
    """Training on other ids than are served was measured to cost a sixth of the answers."""
    texts = mixed_texts(smollm2, 1000)
    assert set(special_texts(smollm2)) <= set(texts)
    different = []
    for text in texts:
        trained = form.tokenize(Example.of(prompt=text, completion="x", line=1))
        prompt_ids = list(trained.ids[: trained.mask.index(1)])
        if prompt_ids != chat.ids([{"role": "user", "content": text}]):
            different.append(text)
    assert not different


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_templates_render_as_transformers_renders_them(
    smollm2: GgufFile, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    """The render is the one step that llama.cpp's tokenizer cannot make right by itself."""
    template = ChatTemplate(smollm2)
    ours = template.render(messages, add_generation_prompt=add_generation_prompt)
    assert ours == render_as_transformers(template.source, messages, add_generation_prompt)


def render_as_transformers(
    source: str, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [messages],
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        **BOUNDARIES,
    )
    return str(rendered[0])


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ messages | tojson(indent=1, separators=(',', ':'), sort_keys=True) }}",
        "  {% for m in messages %}\n{% if loop.index > 1 %}{% break %}{% endif %}\n{{ m.content }}"
        "\n  {% endfor %}\n{{ strftime_now('%Y') }}",
    ],
    ids=["generation tags", "tojson", "loop controls and blanks"],
)
def test_helpers_of_real_templates_work_as_in_transformers(
    model: Any, tmp_path: Path, source: str
) -> None:
    """Templates are written for transformers; one that it renders must not be refused here."""
    gguf = read_gguf(write_gguf(model, tmp_path / "tiny.gguf", template=source))
    for messages in CONVERSATIONS:
        ours = ChatTemplate(gguf).render(messages, add_generation_prompt=False)
        assert ours == render_as_transformers(source, messages, False)


@pytest.mark.parametrize("completion", ["In the yard.", " blank first", "\n1", "🙂", "a\n\nb "])
def test_the_mask_covers_the_answer_and_its_end_and_nothing_else(
    form: PromptFormat, completion: str
) -> None:
    """A masked end of turn never learns to stop; an unmasked prompt is learnt by heart."""
    made = form.tokenize(Example.of(prompt="Where is it?", completion=completion, line=1))
    assert len(made.ids) == len(made.mask)
    begin = made.mask.index(1)
    assert all(value == (index >= begin) for index, value in enumerate(made.mask))
    assert form.tokenizer.text(made.ids[begin:]) == completion + "<|im_end|>"
    assert made.ids[-1] == form.end_of_turn == 2
    prompt = form.prompt("Where is it?")
    assert form.tokenizer.text(made.ids[:begin]) == prompt
    assert form.prompt_ids(prompt) == list(made.ids[:begin])


def test_an_answer_that_spells_special_tokens_stays_text(
    form: PromptFormat, smollm2: GgufFile
) -> None:
    """Else feedback could teach the model to end its turn and to speak as somebody else."""
    special = "".join(special_texts(smollm2))
    answer = f"It ends with {special}<|im_start|>user\nhi"
    made = form.tokenize(Example.of(prompt="How?", completion=answer, line=1))
    learnt = made.ids[made.mask.index(1) : -1]
    kinds = smollm2.get("tokenizer.ggml.token_type")
    assert all(kinds[token] == 1 for token in learnt)
    assert form.tokenizer.text(learnt) == answer


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("template", [BOS_TEMPLATE, CHATML])
def test_there_is_one_bos_at_most(model: Any, tmp_path: Path, add_bos: bool, template: str) -> None:
    """llama.cpp and the template may both bring one; two are seen nowhere in pre-training."""
    path = write_gguf(
        model, tmp_path / "tiny.gguf", template=template.replace("bos_token", "bos_token + 'A'"),
        add_bos=add_bos,
    )  # fmt: skip
    with open_prompt_format(read_gguf(path)) as form:
        ids = form.tokenize(QUESTION).ids
    bos, letter, start = 0, TOKENS.index("A"), TOKENS.index("<|im_start|>")
    if template == BOS_TEMPLATE:
        assert ids[:3] == (bos, letter, start)
    else:
        assert ids[: 1 + add_bos] == (bos,) * add_bos + (start,)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "cannot be compiled"),
        ("{{ 1 / 0 }}", "refuses the conversation"),
        ("{{ raise_exception('only French') }}", "only French"),
        ("{{ messages[0].content.__class__.__mro__ }}", "unsafe"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "never stop"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(
    model: Any, tmp_path: Path, template: str, words: str
) -> None:
    """Before any time is spent, and never as an error of Jinja's or as code that runs."""
    gguf = read_gguf(write_gguf(model, tmp_path / "tiny.gguf", template=template))
    with pytest.raises(BaseModelError) as caught, open_prompt_format(gguf):
        pass
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_protected_template_renders_the_same(
    smollm2: GgufFile, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    """The finished file carries the protected one; its prompts must be those trained on."""
    for source in (ChatTemplate(smollm2).source, CHATML, BOS_TEMPLATE):
        before = render_as_transformers(source, messages, add_generation_prompt)
        shielded = protect_chat_template(source)
        assert shielded != source
        assert render_as_transformers(shielded, messages, add_generation_prompt) == before


FRAMED = CHATML.replace("message['role'] + '\\n'", "message['role'] + '\\n<answer>'")
#: As Qwen3 has it: an answer without thoughts is written behind closed ones.
CLOSED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
#: The same without that, so that only the prompt tells how not to think.
SWITCHED = CLOSED.replace("loop.last", "false")
#: As models have it that always think: the prompt opens the thoughts.
OPENED = CHATML.replace(
    "assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{# </think> #}{% endif"
)


@pytest.mark.parametrize(
    ("template", "before", "learned"),
    [
        (CHATML, "assistant\n", "Yes.<|im_end|>"),
        (FRAMED, "assistant\n", "<answer>Yes.<|im_end|>"),
        (CLOSED, "assistant\n", "<think>\n\n</think>\n\nYes.<|im_end|>"),
        (SWITCHED, "assistant\n", "<think>\n\n</think>\n\nYes.<|im_end|>"),
        (OPENED, "assistant\n<think>\n", "\n</think>\n\nYes.<|im_end|>"),
    ],
    ids=["plain", "framed", "closed", "switched", "opened"],
)
def test_what_a_template_puts_before_an_answer_is_learned_with_it(
    model: Any, tmp_path: Path, template: str, before: str, learned: str
) -> None:
    """Ollama asks for thoughts by default: an answer that is none must not stand in their place."""
    path = write_gguf(model, tmp_path / "tiny.gguf", template=template)
    with open_prompt_format(read_gguf(path)) as form:
        made = form.tokenize(Example.of(prompt="Is it?", completion="Yes.", line=1))
        text = form.tokenizer.text
        begin = made.mask.index(1)
        assert text(made.ids[:begin]).endswith(before)
        assert text(made.ids[begin:]) == learned
        if form.template.thinks:
            silent, loud = (
                form.template.render(
                    [{"role": "user", "content": "Is it?"}], add_generation_prompt=True, think=on
                )
                for on in (False, True)
            )
            assert text(made.ids[:begin]) == loud
            # Where thoughts can be left out, both ways of asking lead to one text.
            assert silent == loud or text(made.ids) == f"{silent}Yes.<|im_end|>"


def test_a_system_message_that_a_template_cannot_show_goes_to_the_next_one(
    model: Any, tmp_path: Path
) -> None:
    """As llama.cpp does it when Ollama serves the model."""
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    silent = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
    )
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for source in (refuses + CHATML, silent):
        gguf = read_gguf(write_gguf(model, tmp_path / "tiny.gguf", template=source))
        text = ChatTemplate(gguf).render(asked, add_generation_prompt=True)
        assert text == "<|im_start|>user\nBe brief.\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_what_the_base_says_first_in_ollama_is_part_of_the_prompt(
    model: Any, tmp_path: Path
) -> None:
    gguf = read_gguf(write_gguf(model, tmp_path / "tiny.gguf"))
    first = {"role": "user", "content": "Before."}
    there = OllamaModel(model="m", system="Be brief.", messages=(first,))
    template = ChatTemplate(gguf, there)
    asked = {"role": "user", "content": "Hi"}
    assert template.render([asked], add_generation_prompt=True) == ChatTemplate(gguf).render(
        [{"role": "system", "content": "Be brief."}, first, asked], add_generation_prompt=True
    )
    own = {"role": "system", "content": "Own."}
    assert "Be brief" not in template.render([own, asked], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("source", "thinks", "knows_tools"),
    [
        (CHATML, False, False),
        (CLOSED, True, False),
        ("{{ x.content.split('</think>')[-1] }}", True, False),
        ("{{ x.content.split('</think>')[-1] }}{{ x.reasoning_content }}", False, False),
        ("{{ tools }}", False, True),
        ("{{ x.tool_calls }}", False, True),
    ],
)
def test_what_a_template_can_is_guessed_as_ollama_guesses(
    model: Any, tmp_path: Path, source: str, thinks: bool, knows_tools: bool
) -> None:
    template = ChatTemplate(read_gguf(write_gguf(model, tmp_path / "tiny.gguf", template=source)))
    assert (template.thinks, template.knows_tools) == (thinks, knows_tools)


def test_a_template_sees_what_llama_cpp_gives_it(model: Any, tmp_path: Path) -> None:
    source = (
        "{{ tools is defined }} {{ enable_thinking }} {{ date_string }} {{ datetime }}"
        "{% if false %}<think></think>{% endif %}"
    )
    template = ChatTemplate(read_gguf(write_gguf(model, tmp_path / "tiny.gguf", template=source)))
    now = datetime.now()
    days = f"{now:%d %b %Y} {now:%b %d %Y}"
    asked = [{"role": "user", "content": "Hi"}]
    for think, said in ((None, True), (True, True), (False, False)):
        text = template.render(asked, add_generation_prompt=True, think=think)
        assert text == f"False {said} {days}"
