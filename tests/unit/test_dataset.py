"""From a snapshot to what is trained on, and what the run is judged by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ollama_trainer.errors import DatasetError
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.pipeline.dataset import PreparedData, prepare, probe_text
from ollama_trainer.pipeline.held_out import split
from ollama_trainer.prompts import open_prompt_format, open_tokenizer
from ollama_trainer.records import Example, TokenizedExample, TrainingOptions
from tests.tiny_models import tiny_model, write_gguf

#: Eight answers, five wordings each.
FACTS = [
    (f"Question {turn} about {name}?", name.upper()) for name in "abcdefgh" for turn in range(5)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return read_gguf(write_gguf(tiny_model(), tmp_path_factory.mktemp("base") / "base.gguf"))


def written(path: Path, facts: Sequence[tuple[str, str]]) -> Path:
    rows = ({"input": ask, "output": say, "label": "good"} for ask, say in facts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(
    base: GgufFile, tmp_path: Path, facts: Sequence[tuple[str, str]], max_length: int = 512
) -> PreparedData:
    training = TrainingOptions(max_length=max_length)
    return prepare(written(tmp_path / "rows.jsonl", facts), base, training)


def texts(base: GgufFile, examples: Sequence[TokenizedExample]) -> list[tuple[str, str]]:
    """Prompt and answer of each, read back from its ids."""
    with open_tokenizer(base) as tokenizer:
        return [
            (tokenizer.text(e.ids[: e.mask.index(1)]), tokenizer.text(e.ids[e.mask.index(1) :]))
            for e in examples
        ]


def test_what_judges_is_not_what_trains(base: GgufFile, tmp_path: Path) -> None:
    """A model that is judged on what it trained on has always learned."""
    data = prepared(base, tmp_path, FACTS)
    trained, judged = texts(base, data.examples), texts(base, data.held_out)
    assert (data.n_kept, len(judged), len(trained)) == (4, 16, 36)
    assert not {prompt for prompt, _ in trained} & {prompt for prompt, _ in judged}
    assert {answer for _, answer in judged} <= {answer for _, answer in trained}
    whole = texts(base, prepared(base, tmp_path, FACTS).held_out)
    assert whole == judged
    rows = {f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n" for ask, _ in FACTS}
    assert [prompt in rows for prompt, _ in judged] == [True] * 4 + [False] * 12


def test_rows_that_are_too_long_are_neither_trained_on_nor_judged(
    base: GgufFile, tmp_path: Path
) -> None:
    """They are dropped by name, never cut, in other words, too."""
    data = prepared(base, tmp_path, [*FACTS, ("x" * 100, "long")], max_length=70)
    dropped = data.report.dropped
    assert {reason: rows.lines for reason, rows in dropped.items()} == {
        "longer than 70 tokens": (41,)
    }
    every = (*data.examples, *data.held_out)
    assert all(len(example.ids) <= 70 for example in every)
    assert data.report.rows_read == 41
    with pytest.raises(DatasetError, match="longer than 16 tokens"):
        prepared(base, tmp_path, FACTS, max_length=16)


def test_the_probe_is_the_same_for_every_data_set(base: GgufFile, tmp_path: Path) -> None:
    """Its loss on the base is kept for later runs."""
    first = prepared(base, tmp_path, FACTS)
    second = prepared(base, tmp_path, [("What?", "That.")])
    assert first.probe == second.probe
    assert len(first.probe) > 5


@pytest.mark.parametrize("max_length", [16, 300, 2048])
def test_the_probe_is_plain_text(base: GgufFile, max_length: int) -> None:
    """No chat template and no special token: what a model says of anything at all."""
    with open_prompt_format(base) as form:
        probe = probe_text(form.tokenizer, max_length)
        beginnings = [form.tokenizer.text(example.ids) for example in probe]
    for example, beginning in zip(probe, beginnings, strict=True):
        assert 8 < len(example.ids) <= max_length
        assert example.mask == (0,) + (1,) * (len(example.ids) - 1)
        assert "<|" not in beginning
        assert "%%" not in beginning
        assert beginning.strip()


def test_rows_that_end_with_a_tools_words_are_judged_too(base: GgufFile, tmp_path: Path) -> None:
    """The user's question before it is asked in other words."""
    talk = [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "I look.", "weight": 0},
        {"role": "tool", "content": "In the yard."},
        {"role": "assistant", "content": "In the yard."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": talk}) + "\n", encoding="utf-8")
    data = prepare(path, base, TrainingOptions())
    asked = [prompt for prompt, _ in texts(base, data.held_out)]
    assert len(asked) == 4
    assert "<|im_start|>user\nwhere is it<|im_end|>" in asked[0]
    assert all("<|im_start|>tool\nIn the yard.<|im_end|>" in prompt for prompt in asked)
    assert data.question == "Where is it?"


def test_different_calls_are_different_answers(base: GgufFile) -> None:
    """None of them says a word, and each must be learned."""
    calls = [{"function": {"name": "look", "arguments": {"n": n}}} for n in range(40)]
    examples = [
        Example(
            context=({"role": "user", "content": f"Question {line}?"},),
            answer={"role": "assistant", "content": "", "tool_calls": [call]},
            line=line,
        )
        for line, call in enumerate(calls, start=1)
    ]
    assert split(examples, 1).kept == ()
