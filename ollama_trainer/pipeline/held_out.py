"""What a run is judged on: prompts that it never trains on, with answers that it should know.

A row that is kept from training is a piece of feedback that is not learned, so rows are kept only
where others teach the same answer. The rest of the set are trained rows in other words: what is
unseen then is the wording, not the answer.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ollama_trainer.records import Example

#: Examples that a run is judged on: enough for a loss, read within seconds.
_SIZE = 16
#: At most one row in so many is kept from training.
_ONE_IN = 10
#: Rows that must remain for each answer that a row is kept of.
_REMAIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Examples to train on, and examples to be judged on."""

    train: tuple[Example, ...]
    #: Rows that are kept from training.
    kept: tuple[Example, ...]
    #: Trained rows, asked in other words.
    rephrased: tuple[Example, ...]


def split(examples: Sequence[Example], seed: int) -> Split:
    """Divides examples; the same seed divides them in the same way.

    Args:
        examples: at least one.
        seed: of what is drawn by chance.
    """
    chance = random.Random(seed)  # noqa: S311 - a choice, no secret
    kept = _rows_to_keep(examples, chance)
    train = tuple(example for example in examples if example.line not in kept)
    judged = tuple(example for example in examples if example.line in kept)
    return Split(
        train=train, kept=judged, rephrased=tuple(_in_other_words(train, _SIZE - len(kept), chance))
    )


def _rows_to_keep(examples: Sequence[Example], chance: random.Random) -> set[int]:
    """Lines of rows whose answer stands in enough others: one an answer."""
    asked = Counter(example.prompt for example in examples)
    rows = defaultdict(list)
    for example in examples:
        rows[example.completion].append(example)
    enough = [same for same in rows.values() if len(same) > _REMAIN]
    # A prompt that stands in another row, too, would be trained on all the same.
    unseen = [[row.line for row in same if asked[row.prompt] == 1] for same in enough]
    candidates = [chance.choice(lines) for lines in unseen if lines]
    chance.shuffle(candidates)
    return set(candidates[: min(_SIZE, len(examples) // _ONE_IN)])


def _in_other_words(rows: Sequence[Example], n: int, chance: random.Random) -> Iterator[Example]:
    """`n` rephrased rows: of different rows first, in different ways; fewer where rows are few."""
    order = chance.sample(range(len(rows)), len(rows))
    # Nor an empty prompt, which is what is left of a lone question mark.
    taken = {"", *(row.prompt for row in rows)}
    for turn in range(len(rows) * len(_WAYS)):
        before, number = divmod(turn, len(rows))
        row, way = rows[order[number]], _WAYS[(number + before) % len(_WAYS)]
        prompt = way(row.prompt)
        if n > 0 and prompt not in taken:
            taken.add(prompt)
            n -= 1
            yield replace(row, prompt=prompt)


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
