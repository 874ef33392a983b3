"""Chat templates for bases that bring none: which one is chosen, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.chat_template import ChatTemplate
from ollama_trainer.errors import BaseModelError
from ollama_trainer.families import FAMILIES, PLAIN, family_of, template_of
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.prompts import open_prompt_format
from tests.servable import SPECIAL, write_servable

ROOT = Path(__file__).parents[2]
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi\n"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And?"},
]


def gguf_of(
    path: Path, architecture: str, special: tuple[str, ...], *, eos: str | None = "</s>"
) -> GgufFile:
    return read_gguf(
        write_servable(path / "x.gguf", architecture=architecture, special=special, eos=eos)
    )


IM = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.mark.parametrize(
    ("architecture", "special", "name"),
    [
        ("llama", LLAMA3, "llama3"),
        ("llama", (*LLAMA3, *IM), "llama3"),
        ("llama", LLAMA3[:2], "plain"),
        ("llama", ("[INST]", "[/INST]"), "mistral"),
        ("llama", ("[INST]", "[/INST]", *IM), "chatml"),
        ("llama", (), "plain"),
        ("qwen2", IM, "chatml"),
        ("qwen3", (*IM, *LLAMA3), "chatml"),
        ("smollm3", IM, "chatml"),
        ("gemma3", ("<start_of_turn>", "<end_of_turn>"), "gemma"),
        ("gemma2", ("<start_of_turn>",), "plain"),
        ("granite", ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), "granite"),
        ("phi3", ("<|user|>", "<|assistant|>", "<|end|>"), "phi3"),
        ("phi3", ("<|user|>", "<|assistant|>"), "plain"),
        ("olmo2", ("<|endoftext|>", *IM), "olmo2"),
        ("starcoder2", ("<|endoftext|>",), "starcoder2"),
        ("never-heard-of", SPECIAL, "chatml"),
    ],
)
def test_the_family_is_chosen_by_architecture_and_tokens(
    tmp_path: Path, architecture: str, special: tuple[str, ...], name: str
) -> None:
    """A template whose tokens are spelled letter by letter is nothing that the base has seen."""
    gguf = gguf_of(tmp_path, architecture, special)
    assert family_of(gguf).name == name
    (note,) = ChatTemplate(gguf).notes
    assert f"modelfiles/{name}.jinja" in note
    assert ("last resort" in note) == (name == "plain")


def test_without_any_token_that_ends_a_text_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="would never stop"):
        ChatTemplate(gguf_of(tmp_path, "llama", (), eos=None))


def test_every_file_is_some_familys() -> None:
    files = {path.stem for path in (ROOT / "modelfiles").glob("*.jinja")}
    assert files == {family.name for family in (*FAMILIES, PLAIN)}
    assert all(f"`{name}.jinja`" in (ROOT / "modelfiles/README.md").read_text() for name in files)


EXPECTED = {
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n Hi\n<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\n Hi\n<end_of_turn>\n"
    "<start_of_turn>model\nHello.<end_of_turn>\n<start_of_turn>user\nAnd?<end_of_turn>\n"
    "<start_of_turn>model\n",
    "granite": "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|> Hi\n<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>Hello.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>And?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
    "mistral": "<s>[INST]Be brief.\n\n Hi\n[/INST]Hello.</s>[INST]And?[/INST]",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\n Hi\n<|end|>\n<|assistant|>\nHello.<|end|>\n"
    "<|user|>\nAnd?<|end|>\n<|assistant|>\n",
    "olmo2": "<|endoftext|><|system|>\nBe brief.\n<|user|>\n Hi\n\n<|assistant|>\n"
    "Hello.<|endoftext|>\n<|user|>\nAnd?\n<|assistant|>\n",
    "starcoder2": "Be brief.\n\n### Instruction\n Hi\n\n\n### Response\nHello.<|endoftext|>\n\n"
    "### Instruction\nAnd?\n\n### Response\n",
    "plain": "<s>System:\nBe brief.\n\nUser:\n Hi\n\n\nAssistant:\nHello.</s>\n\nUser:\nAnd?\n\n"
    "Assistant:\n",
}
ENDS = {
    "llama3": "<|eot_id|>", "chatml": "<|im_end|>", "gemma": "<end_of_turn>",
    "granite": "<|end_of_text|>", "mistral": "</s>", "phi3": "<|end|>", "olmo2": "<|endoftext|>",
    "starcoder2": "<|endoftext|>", "plain": "</s>",
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_template_writes_and_how_it_ends(tmp_path: Path, name: str) -> None:
    (family,) = (family for family in (*FAMILIES, PLAIN) if family.name == name)
    gguf = read_gguf(write_servable(tmp_path / "x.gguf", template=template_of(family)))
    assert ChatTemplate(gguf).render(CHAT, add_generation_prompt=True) == EXPECTED[name]
    with open_prompt_format(gguf) as form:
        assert form.tokenizer.text([form.end_of_turn]) == ENDS[name]
