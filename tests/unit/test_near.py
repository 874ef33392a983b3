"""Near duplicates: inputs that say the same in nearly the same words, with the same answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ollama_trainer.compiler import near
from ollama_trainer.compiler.near import Groups, NearDuplicates, words
from tests.reading import read_rows

#: Words that no text has by chance.
VOCABULARY = [f"w{number}" for number in range(4000)]


def groups(directory: Path, prompts: list[str], answers: list[int] | None = None) -> list[int]:
    """The group of each prompt; numbers begin at 1 and have gaps, as those of a file have."""
    directory.mkdir(exist_ok=True)
    found = NearDuplicates(directory)
    for place, prompt in enumerate(prompts):
        found.add(1 + 3 * place, prompt, answers[place] if answers else 7)
    joined = found.groups(2 + 3 * len(prompts))
    return [(joined.of(1 + 3 * place) - 1) // 3 for place in range(len(prompts))]


TWENTY = "Please tell me in few short words how the old clock on the tower of our town is wound up"


@pytest.mark.parametrize(
    "other",
    [
        TWENTY.upper(),
        TWENTY + "?!",
        f"  {TWENTY.replace(' ', chr(10), 3)}...",
        TWENTY.replace("clock on", "clock, on").replace("town is", "town: is"),
        TWENTY.replace("short", "brief"),
        TWENTY.removeprefix("Please "),
        TWENTY + " today",
    ],
)
def test_the_same_in_nearly_the_same_words_belongs_together(tmp_path: Path, other: str) -> None:
    """Held out, such a row would be judged by what its twin taught."""
    assert len(TWENTY.split()) == 20
    assert groups(tmp_path, [TWENTY, "Something else entirely", other]) == [0, 1, 0]


def test_another_answer_makes_another_question(tmp_path: Path) -> None:
    """One word in twenty may be the one that counts."""
    prompts = [TWENTY, TWENTY.replace("old", "new"), TWENTY + "!"]
    assert groups(tmp_path / "1", prompts, [1, 2, 1]) == [0, 1, 0]
    assert groups(tmp_path / "2", prompts, [1, 2, 2]) == [0, 1, 1]


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("今日の東京の天気を教えてください。", "今日の東京の天気を教えてください", True),
        ("今日の東京の天気を教えてください。", "明日の大阪の為替を調べて欲しい。", False),
        ("请告诉我今天北京的天气怎么样,谢谢你", "请告诉我今天北京的天气怎么样,谢谢您", True),
        ("วันนี้อากาศที่กรุงเทพเป็นอย่างไรบ้าง", "ราคาทองคำเมื่อวานนี้คือเท่าไรกันแน่", False),
        ("水の沸点は？", "水の沸点は", True),
        ("水の沸点は？", "鉄の融点は？", False),
        ("x", "y", False),
        ("?", "?!", False),
        ("", "", True),
    ],
)
def test_languages_without_spaces(tmp_path: Path, one: str, other: str, together: bool) -> None:
    """Taken for one word each, no two texts would ever be alike."""
    assert (groups(tmp_path, [one, other]) == [0, 0]) is together


def test_words_are_told_apart_by_what_people_read() -> None:
    """Case, punctuation and spaces say little; letters of any script say all."""
    assert words("Hello,  WORLD!\n(Äh: 3.5)") == ["hello", "world", "äh", "3", "5"]
    assert words("天気を。GPT-4") == ["天気", "気を", "gpt", "4"]
    assert words("x" * 17) == ["xxx"] * 15
    assert (words(""), words("?!"), words("気")) == ([], ["?!"], ["気"])


def related(rng: random.Random, jaccard: float, size: int = 200) -> tuple[str, str]:
    """Two texts of so many words each, whose sets of words overlap by so much."""
    shared = round(2 * size * jaccard / (1 + jaccard))
    picked = rng.sample(VOCABULARY, 2 * size - shared)
    one, other = picked[:size], picked[size - shared :]
    assert abs(len(set(one) & set(other)) / len({*one, *other}) - jaccard) < 0.01
    rng.shuffle(one)
    rng.shuffle(other)
    return " ".join(one), " ".join(other)


def share_joined(directory: Path, jaccard: float, n: int = 200) -> float:
    rng = random.Random(round(jaccard * 100))
    pairs = [related(rng, jaccard) for _ in range(n)]
    prompts = [text for pair in pairs for text in pair]
    # Each pair has its own answer: others do not come between.
    found = groups(directory, prompts, [place // 2 for place in range(2 * n)])
    return sum(found[2 * place + 1] == 2 * place for place in range(n)) / n


@pytest.mark.parametrize(
    ("jaccard", "least", "most"),
    [(1.0, 1, 1), (0.95, 0.98, 1), (0.9, 0.94, 1), (0.8, 0.3, 0.75), (0.4, 0, 0), (0.2, 0, 0)],
)
def test_how_alike_texts_must_be(tmp_path: Path, jaccard: float, least: float, most: float) -> None:
    """Estimated from signatures, so there is a slope about the bound, and nothing far from it."""
    assert least <= share_joined(tmp_path, jaccard) <= most


def some_prompts(n: int) -> list[str]:
    """Texts of which about half are near others, in chains and in clusters."""
    rng = random.Random(4)
    made: list[str] = []
    while len(made) < n:
        if made and rng.random() < 0.5:
            changed = rng.choice(made).split()
            changed[rng.randrange(len(changed))] = rng.choice(VOCABULARY)
            made.append(" ".join(changed))
        else:
            made.append(" ".join(rng.sample(VOCABULARY, 40)))
    return made


@pytest.mark.parametrize("name", ["_MOST_KEYS", "_BATCH", "_MOST_WORDS"])
def test_what_is_done_in_parts_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Large files are; the parts must not show."""
    prompts = some_prompts(700)
    answers = [place % 2 for place in range(700)]
    whole = groups(tmp_path / "whole", prompts, answers)
    assert 200 < len(set(whole)) < 650
    monkeypatch.setattr(near, name, 64)
    assert groups(tmp_path / "parts", prompts, answers) == whole


def test_many_of_one_kind_are_one_group(tmp_path: Path) -> None:
    """A form that an app fills in a thousand times: no square of pairs is looked at."""
    prompts = [f"{TWENTY} number {place}" for place in range(3000)]
    assert len(set(groups(tmp_path, prompts))) < 30


def test_a_very_long_input_is_told_by_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page snapshot of megabytes has millions of words."""
    monkeypatch.setattr(near, "_MOST_LETTERS", 1000)
    rng = random.Random(2)
    head = " ".join(rng.sample(VOCABULARY, 400))
    tails = [" ".join(rng.sample(VOCABULARY, 400)) for _ in range(2)]
    assert groups(tmp_path, [f"{head} {tail}" for tail in tails]) == [0, 0]


def test_groups_are_named_by_their_first(tmp_path: Path) -> None:
    """So that a row's group does not change when rows are added behind it."""
    made = Groups(10)
    for pair in [(8, 9), (5, 8), (2, 9), (3, 4), (4, 3)]:
        made.join(*pair)
    assert [made.of(number) for number in range(10)] == [0, 1, 2, 3, 3, 2, 6, 7, 2, 2]
    assert made.n_joined() == 4


def test_no_examples_and_one_example_have_no_groups(tmp_path: Path) -> None:
    """Nothing to compare is nothing to fail at."""
    assert groups(tmp_path / "none", []) == []
    assert groups(tmp_path / "one", ["alone"]) == [0]


def test_near_rows_of_a_file_have_one_group_and_stay(tmp_path: Path) -> None:
    """They are counted and kept together, not dropped: other words teach, too."""
    asked = [TWENTY, "Who?", f"{TWENTY}!", TWENTY.replace("old", "new"), "Who?"]
    said = ["a", "a", "a", "b", "b"]
    rows = [
        {"input": json.dumps(ask), "output": json.dumps(say), "label": "good"}
        for ask, say in zip(asked, said, strict=True)
    ]
    data = read_rows(tmp_path, rows, method="sft")
    assert data.groups == [1, 2, 1, 4, 5]
    assert [example.line for example in data.examples] == [1, 2, 3, 4, 5]
