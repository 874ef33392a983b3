"""Which trained rows a served model is tried with, and what is known of their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.pipeline.golden import Candidate, candidates, golden_chats
from ollama_trainer.pipeline.report import Seen
from ollama_trainer.prompts import open_prompt_format
from ollama_trainer.records import Example, TokenizedExample
from tests.scripted import ANSWER, CALL, CALLS, SAYS, THOUGHT, write_scripted

TEXT = "".join(ANSWER)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    ],
}
ASKED = ({"role": "user", "content": "What is it?"},)


def seen(question: str, answer: str, n_tokens: int) -> Seen:
    ids = TokenizedExample(
        ids=(1,) * n_tokens + (hash(answer) % 997, 2), mask=(0,) * n_tokens + (1, 1)
    )
    return Seen(example=Example.of(question, answer, 1), group=0, ids=ids, sampled=True)


def candidate_of(base: GgufFile, example: Example) -> Candidate:
    with open_prompt_format(base) as form:
        row = Seen(example=example, group=0, ids=form.tokenize(example), sampled=True)
    return candidates([row])[0]


def calling_candidate(base: GgufFile) -> Candidate:
    """A row that calls a tool; the scripted template has no words for one that was called."""
    with open_prompt_format(base) as form:
        prompt = form.prompt_of(Example(ASKED, CALLED, 2, (TOOL,)))
        return Candidate(
            messages=ASKED,
            tools=(TOOL,),
            prompt_ids=tuple(form.prompt_ids(prompt)),
            answer_ids=tuple(form.tokenizer.ids("".join(CALL), special=True, begin=False)),
            calls=("weather",),
        )


STOVE = (*THOUGHT, "A stove.")
NO = ("No.",)


def scripted(path: Path, says: Any, calls: Any, **options: Any) -> GgufFile:
    """A model with the words of all of these tests in one order, whatever it says of them."""
    prompts = {SAYS: says, CALLS: calls}
    unused = iter(("<|a|>", "<|b|>"))
    script = {}
    for answer in (STOVE, NO, ANSWER, CALL):
        prompt = next((one for one, said in prompts.items() if said == answer), None)
        script[prompt or next(unused)] = answer
    return read_gguf(write_scripted(path, script, **options))


def test_short_rows_of_different_answers_come_first() -> None:
    rows = [seen(f"q{n}", "yes" if n < 9 else "no", n + 1) for n in range(12)]
    chosen = candidates(rows)
    assert [one.messages[0]["content"] for one in chosen] == ["q0", "q9", "q1", "q2", "q3", "q4"]


def test_rows_that_call_tools_are_tried_beside_the_others() -> None:
    row = seen("q", "", 3)
    calling = Seen(example=Example(ASKED, CALLED, 1, (TOOL,)), group=0, ids=row.ids, sampled=True)
    plain, found = candidates([calling, seen("q", "yes", 9)])
    assert (plain.calls, found.calls) == ((), ("weather",))
    assert found.tools == (TOOL,)


def test_the_answers_of_the_file_and_of_its_base(tmp_path: Path) -> None:
    base = scripted(tmp_path / "base.gguf", STOVE, NO)
    served = scripted(tmp_path / "served.gguf", ANSWER, CALL)
    asked = [
        candidate_of(base, Example.of("What is it?", "Anything.", 1)),
        calling_candidate(base),
    ]
    plain, calling = golden_chats(base, served.path, asked)
    assert (plain.answer, plain.base_answer) == (TEXT, "A stove."), "thoughts are not the answer"
    assert (plain.ended, plain.n_tokens) == (True, len(ANSWER) + 1)
    assert plain.messages == ASKED
    assert calling.calls == ("weather",)
    assert calling.base_answer == "No."


def test_a_call_that_the_file_does_not_write_proves_nothing(tmp_path: Path) -> None:
    base = scripted(tmp_path / "base.gguf", STOVE, CALL)
    served = scripted(tmp_path / "served.gguf", ANSWER, NO)
    assert golden_chats(base, served.path, [calling_candidate(base)]) == ()


def test_an_answer_that_does_not_end_or_is_the_bases(tmp_path: Path) -> None:
    base = scripted(tmp_path / "base.gguf", STOVE, NO)
    served = scripted(tmp_path / "served.gguf", ANSWER, NO, endless=[SAYS])
    asked = [candidate_of(base, Example.of("What is it?", TEXT, 1))]
    (chat,) = golden_chats(base, served.path, asked)
    assert not chat.ended
    assert chat.n_tokens > 16
    (same,) = golden_chats(base, base.path, asked)
    assert same.ended
    assert same.base_answer is None


def test_nothing_to_ask() -> None:
    assert candidates([]) == ()
