"""What a run is judged on: prompts that it never trains on, with answers that it should know.

A row that is kept from training is a piece of feedback that is not learned, so rows are kept only
where others teach the same answer. The rest of the set are trained rows in other words: what is
unseen then is the wording, not the answer.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ollama_trainer.compiler import content
from ollama_trainer.compiler.near import Groups
from ollama_trainer.records import Example

#: Examples that a run is judged on: enough for a loss, read within seconds.
HELD_OUT = 16
#: At most one row in so many is kept from training.
_ONE_IN = 10
#: Rows that must remain for each answer that a row is kept of.
_REMAIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Examples to train on, and examples to be judged on."""

    #: Indices of the examples to train on, and of those that are kept from training.
    train: tuple[int, ...]
    kept: tuple[int, ...]
    #: Trained examples, asked in other words.
    rephrased: tuple[Example, ...]


def split(examples: Sequence[Example], seed: int, near: Sequence[int] = ()) -> Split:
    """Divides examples; the same seed divides them in the same way.

    Args:
        examples: at least one.
        seed: of what is drawn by chance.
        near: for each example the number of its group; those of one group have nearly the same
            input and are never parted. Left out: each is its own.
    """
    chance = random.Random(seed)  # noqa: S311 - a choice, no secret
    kept = _to_keep(examples, _groups(examples, near or range(len(examples))), chance)
    train = tuple(index for index in range(len(examples)) if index not in kept)
    rows = [examples[index] for index in train]
    return Split(
        train=train,
        kept=tuple(sorted(kept)),
        rephrased=tuple(_in_other_words(rows, HELD_OUT - len(kept), chance)),
    )


def _groups(examples: Sequence[Example], near: Sequence[int]) -> Collection[list[int]]:
    """Indices of examples that belong together: near ones, those of one input or of one line."""
    groups = Groups(len(examples))
    first: dict[tuple[str, object], int] = {}
    for index, (example, group) in enumerate(zip(examples, near, strict=True)):
        for key in (("near", group), ("line", example.line), ("asked", example.prompt)):
            groups.join(index, first.setdefault(key, index))
    members = defaultdict(list)
    for index in range(len(examples)):
        members[groups.of(index)].append(index)
    return members.values()


def _to_keep(
    examples: Sequence[Example], groups: Collection[list[int]], chance: random.Random
) -> set[int]:
    """Indices of groups whose one answer stands in enough rows outside: one group an answer."""
    said = [content(example.answer) for example in examples]
    rows = Counter(said)
    candidates = defaultdict(list)
    for members in groups:
        answers = {said[member] for member in members}
        answer = answers.pop()
        if not answers and rows[answer] - len(members) >= _REMAIN:
            candidates[answer].append(members)
    chosen = [chance.choice(found) for found in candidates.values()]
    chance.shuffle(chosen)
    kept: set[int] = set()
    for members in chosen:
        if len(kept) + len(members) <= min(HELD_OUT, len(examples) // _ONE_IN):
            kept.update(members)
    return kept


def _in_other_words(rows: Sequence[Example], n: int, chance: random.Random) -> Iterator[Example]:
    """`n` rephrased rows: of different rows first, in different ways; fewer where rows are few."""
    asked = [row for row in rows if row.question]
    order = chance.sample(range(len(asked)), len(asked))
    # Nor an empty prompt, which is what is left of a lone question mark.
    taken = {"", *(row.question for row in rows)}
    for turn in range(len(asked) * len(_WAYS)):
        before, number = divmod(turn, len(asked))
        row, way = asked[order[number]], _WAYS[(number + before) % len(_WAYS)]
        question = way(row.question)
        if n > 0 and question not in taken:
            taken.add(question)
            n -= 1
            yield row.asked(question)


def _bare(prompt: str) -> str:
    """As typed in a hurry: no capital at the beginning, no mark at the end."""
    shorter = prompt.rstrip().rstrip("?.!")
    return shorter[:1].lower() + shorter[1:]


_WAYS: tuple[Callable[[str], str], ...] = (
    _bare,
    "Hello! {} Thank you.".format,
    "I have a question. {}".format,
    "{} Please answer.".format,
)
