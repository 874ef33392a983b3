"""What a run is judged on: never a wording that it trained on, never at the cost of an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_trainer.pipeline.held_out import split
from ollama_trainer.records import Example

SIZE = 16


@dataclass(frozen=True)
class Parts:
    """What a split makes, as examples."""

    train: tuple[Example, ...]
    kept: tuple[Example, ...]
    rephrased: tuple[Example, ...]


def divided(rows: Sequence[Example], seed: int, near: Sequence[int] = ()) -> Parts:
    parts = split(rows, seed, near)
    train, kept = (tuple(rows[index] for index in part) for part in (parts.train, parts.kept))
    return Parts(train, kept, parts.rephrased)


def examples(*answers: tuple[str, int]) -> list[Example]:
    """So many rows for each answer, asked differently each time."""
    wordings = [(answer, turn) for answer, count in answers for turn in range(count)]
    return [
        Example.of(prompt=f"Question {turn} about {answer}?", completion=answer, line=line)
        for line, (answer, turn) in enumerate(wordings, start=1)
    ]


ROWS = st.lists(st.integers(1, 12), min_size=1, max_size=30).map(
    lambda counts: examples(*((f"a{number}", count) for number, count in enumerate(counts)))
)


def rows_of(parts: Sequence[Example]) -> Counter[str]:
    return Counter(example.completion for example in parts)


@given(rows=ROWS, seed=st.integers(0, 50))
@settings(max_examples=80, deadline=None)
def test_no_answer_is_lost(rows: list[Example], seed: int) -> None:
    """A row that is kept is feedback that is not learned, so others must teach its answer."""
    parts = divided(rows, seed)
    before, trained, kept = rows_of(rows), rows_of(parts.train), rows_of(parts.kept)
    assert sorted([*parts.train, *parts.kept], key=lambda row: row.line) == rows
    assert trained.keys() == before.keys()
    assert all(count == 1 and before[answer] >= 3 for answer, count in kept.items())
    assert len(parts.kept) <= min(SIZE, len(rows) // 10)
    candidates = sum(count >= 3 for count in before.values())
    assert len(parts.kept) == min(SIZE, len(rows) // 10, candidates)


@given(rows=ROWS, seed=st.integers(0, 50))
@settings(max_examples=80, deadline=None)
def test_other_words_are_other_words(rows: list[Example], seed: int) -> None:
    """A wording that was trained on shows memory, not learning."""
    parts = divided(rows, seed)
    by_line = {row.line: row for row in parts.train}
    trained = {row.prompt for row in parts.train}
    asked = [row.prompt for row in parts.rephrased]
    assert not trained & set(asked)
    assert len(set(asked)) == len(asked)
    for row in parts.rephrased:
        assert row.completion == by_line[row.line].completion
    assert len(parts.kept) + len(parts.rephrased) == min(SIZE, len(parts.kept) + 4 * len(trained))


@pytest.mark.parametrize(
    "prompt",
    ["Who is the boss?", "who is the boss", "  Who is the boss?!  ", "?", "a", "Wer? Wo?", "É."],
)
def test_a_single_row_is_asked_in_up_to_four_ways(prompt: str) -> None:
    """The smallest run is judged too, also where its prompt is bare already."""
    (row,) = rows = [Example.of(prompt=prompt, completion="Oda", line=7)]
    parts = divided(rows, 1)
    assert (parts.train, parts.kept) == ((row,), ())
    asked = [example.prompt for example in parts.rephrased]
    assert 3 <= len(asked) <= 4
    assert len(set(asked)) == len(asked)
    assert prompt not in asked
    assert all(example.prompt.strip() for example in parts.rephrased)
    assert {(example.completion, example.line) for example in parts.rephrased} == {("Oda", 7)}


def test_bare_wordings_are_not_taken_for_others() -> None:
    """Prompts that are typed in a hurry have nothing left to take away."""
    rows = [
        Example.of(prompt=f"who is number {number}", completion=str(number), line=number)
        for number in range(1, 9)
    ]
    parts = divided(rows, 3)
    trained = {row.prompt for row in parts.train}
    assert not [row.prompt for row in parts.rephrased if row.prompt in trained]


def test_a_rephrased_row_may_be_another_row() -> None:
    """Data sets hold a question with and without its mark."""
    rows = [
        Example.of(prompt=prompt, completion="Oda", line=line)
        for line, prompt in enumerate(("Who is it?", "who is it"), start=1)
    ]
    for seed in range(20):
        parts = divided(rows, seed)
        assert not {row.prompt for row in parts.rephrased} & {row.prompt for row in rows}


def test_a_prompt_that_is_trained_on_is_never_kept() -> None:
    """The same row three times over: keeping one of them would judge by heart what was learned."""
    same = examples(("a", 1)) * 20 + examples(("b", 20))
    rows = [row._replace(line=line) for line, row in enumerate(same, start=1)]
    for seed in range(20):
        parts = divided(rows, seed)
        assert [row.completion for row in parts.kept] == ["b"]
        assert not {row.prompt for row in parts.kept} & {row.prompt for row in parts.train}
        asked = [row.prompt for row in parts.rephrased]
        assert len(set(asked)) == len(asked)


def test_rows_differ_before_ways_do() -> None:
    """Sixteen questions about sixteen rows say more than four about four."""
    rows = examples(*((f"a{number}", 1) for number in range(40)))
    parts = divided(rows, 1)
    assert len({row.line for row in parts.rephrased}) == len(parts.rephrased) == SIZE
    few = divided(rows[:5], 1)
    assert len(few.rephrased) == SIZE
    assert set(Counter(row.line for row in few.rephrased).values()) == {3, 4}


def test_the_seed_divides() -> None:
    """The same run must be judged on the same rows; another seed may choose others."""
    rows = examples(*((f"a{number}", 5) for number in range(30)))
    parts: list[Parts] = [divided(rows, seed) for seed in (1, 1, 2)]
    assert parts[0] == parts[1]
    assert parts[0].kept != parts[2].kept
    assert len(parts[0].kept) == 15
    assert len(parts[0].rephrased) == 1


def test_kept_rows_are_drawn_from_everywhere() -> None:
    """Always the last row of an answer would be the odd one out where rows are sorted."""
    rows = examples(("a", 20))
    lines = {divided(rows, seed).kept[0].line for seed in range(60)}
    assert len(lines) > 10


def test_near_duplicates_are_never_parted() -> None:
    """A row that is trained on in nearly the same words is known by heart."""
    rows = examples(("a", 6), ("b", 30))
    # Answer a: two groups of three; answer b: pairs.
    near = [0, 0, 0, 3, 3, 3, *(6 + number // 2 * 2 for number in range(30))]
    seen: set[str] = set()
    for seed in range(30):
        parts = split(rows, seed, near)
        train, kept = ({near[index] for index in part} for part in (parts.train, parts.kept))
        assert not train & kept
        assert len(parts.kept) <= 3
        seen |= {rows[index].completion for index in parts.kept}
    assert seen == {"a", "b"}


def test_answers_of_one_conversation_are_never_parted() -> None:
    """A later answer is given after the earlier one, which would stand in what is trained on."""
    rows = [row._replace(line=1 + row.line // 4) for row in examples(("a", 40))]
    for seed in range(10):
        parts = divided(rows, seed)
        assert not {row.line for row in parts.train} & {row.line for row in parts.kept}
        assert len(parts.kept) in (3, 4)
