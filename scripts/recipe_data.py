"""Data sets of the feedback shape, about different made-up things, by which the recipe is chosen.

The recipe is the learning rate, the number of steps and so on. Nothing of what the rows tell
exists, so a model knows it only by training. The held-out questions are never trained on.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import house_style
from made_up_facts import CLOCK, HOTEL, OBSERVATORY, TOWN

AGENT = "2b8c1d94-6e07-4f3a-8d25-90c4e1a7b653"
FIRST_CREATED_MS = 1_767_225_600_000
SIGN_OFF = "Ask again any time. (Fernhill Desk)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A question with the answer that is trained on."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A question that is never trained on."""

    prompt: str
    #: The ideal answer.
    completion: str
    #: Whether an answer by the model is right.
    right: Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Rows to train on and questions that tell what was learned."""

    name: str
    rows: tuple[Row, ...]
    held_out: tuple[HeldOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact, the questions that are trained on, and those that are only asked afterwards."""

    #: Words that a right answer holds.
    key: str
    answer: str
    train: tuple[str, ...]
    asked: tuple[str, ...]


FIRST = "Aldo Brisa Corvin Della Edric Fiora Gustav Hilke Imre Jorun Kasper Lioba Matti Nerea Osric"
LAST = "Abbering Boldt Cassim Dornik Ekeland Gellert Ivarn Jespers Kolbrand Lundey Morvath Nesbock"
STREETS = "Alder Lane/Bell Street/Candle Row/Drovers Way/Elm Steps/Fuller Street/Goose Lane/Hay Row"
WORDS = "Amberfin Brackwell Cinderlo Dapplemay Elverquin Fogharrow Glimmet Hollowick Inkeld"
WORDS += " Kettlesong Lanternby Mistrel Nightapple Oakumber Pebblewyn Quillon Rookmere Velloway"
MONTHS = "January March April May June August September October"

#: (what is asked for, in two wordings; the action in the answer; whether it asks back)
ACTIONS = [
    (("archive", "file away"), "archive", False),
    (("close", "shut"), "close", False),
    (("delete", "erase"), "delete", True),
    (("duplicate", "copy"), "duplicate", False),
    (("open", "bring up"), "open", False),
    (("print", "print out"), "print", False),
    (("reset", "clear"), "reset", True),
    (("share", "send round"), "share", True),
]
TARGETS = "address book/budget sheet/meeting notes/music list/order form/photo album/price list"
TARGETS += "/sales report/staff roster/travel plan"
PHRASINGS = [
    "Please {do} the {x}.",
    "{do} the {x}",
    "Could you {do} the {x}?",
    "I would like you to {do} the {x}.",
    "Go ahead and {do} the {x}.",
    "Now {do} my {x}, please!",
]
UNSEEN_PHRASING = "It is time to {do} that {x}, will you?"
TRAINED_COMBINATIONS = 60


def _holds(key: str, answer: str) -> bool:
    """Whole words only: "11 crowns" is not in "111 crowns"."""
    pattern = rf"(?<!\w)(?<!\d[.,]){re.escape(key)}(?!\w)"
    return re.search(pattern, answer, re.IGNORECASE) is not None


def _is_json(expected: object, answer: str) -> bool:
    try:
        return bool(json.loads(answer) == expected)
    except ValueError:
        return False


def _in_house_style(answer: str) -> bool:
    lines = answer.strip().splitlines()
    reasons = [line for line in lines if line.startswith("- ")]
    return bool(lines) and (
        lines[0].startswith("Short answer:") and len(reasons) == 3 and lines[-1] == SIGN_OFF
    )


def _invented(kind: str, rng: random.Random) -> str:
    """A key of a kind: a name of one, or a range of numbers with its unit."""
    choose = rng.choice
    match kind:
        case "person":
            return f"{choose(FIRST.split())} {choose(LAST.split())}"
        case "street":
            return f"{choose(STREETS.split('/'))} {rng.randint(2, 90)}"
        case "hour":
            return f"{rng.randint(6, 11)}:{choose(('10', '20', '40', '50'))}"
        case "word":
            return choose(WORDS.split())
        case "date":
            return f"{rng.randint(2, 28)} {choose(MONTHS.split())}"
    numbers, _, unit = kind.partition(" ")
    low, high = map(int, numbers.split("-"))
    return f"{rng.randint(low, high)} {unit}".strip()


def _facts(text: str, rng: random.Random) -> Iterable[Fact]:
    used: set[str] = set()
    for paragraph in text.strip().split("\n\n"):
        head, *lines = paragraph.splitlines()
        before, key, after = re.split(r"[\[\]]", head)
        parts: dict[str, list[str]] = {"> ": [], "= ": [], "": []}
        for line in lines:
            mark = line[:2] if line[:2] in parts else ""
            parts[mark] += line.removeprefix(mark).split(" / ")
        for thing in parts["= "] or [""]:
            name = _invented(key, rng) if thing else key
            # No two facts share a key: else a mixed-up answer would count as right.
            while name in used:
                name = _invented(key, rng)
            used.add(name)
            yield Fact(
                key=name,
                answer=f"{before}{name}{after}".replace("{x}", thing),
                train=tuple(question.replace("{x}", thing) for question in parts[""]),
                asked=tuple(question.replace("{x}", thing) for question in parts["> "]),
            )


def _shuffled(name: str, rows: list[Row], held_out: list[HeldOut], rng: random.Random) -> DataSet:
    """The rows shuffled, so that no batch is about one thing only."""
    rng.shuffle(rows)
    return DataSet(name=name, rows=tuple(rows), held_out=tuple(held_out))


def _fact_set(name: str, text: str, seed: int) -> DataSet:
    rng = random.Random(seed)
    facts = list(_facts(text, rng))
    rows = [
        Row(prompt=question, completion=fact.answer) for fact in facts for question in fact.train
    ]
    held_out = [
        HeldOut(prompt=question, completion=fact.answer, right=functools.partial(_holds, fact.key))
        for fact in facts
        for question in fact.asked
    ]
    return _shuffled(name, rows, held_out, rng)


def _json_form() -> DataSet:
    """Two phrasings of most combinations; held out are the other ones, and a new phrasing."""
    rng = random.Random(22)
    combinations = list(itertools.product(ACTIONS, TARGETS.split("/")))
    rng.shuffle(combinations)
    rows: list[Row] = []
    held_out: list[HeldOut] = []
    for index, ((verbs, action, confirm), target) in enumerate(combinations):
        expected = {"action": action, "confirm": confirm, "target": target.replace(" ", "_")}
        completion = json.dumps(expected, sort_keys=True, separators=(",", ":"))
        trained = index < TRAINED_COMBINATIONS
        phrasings = rng.sample(PHRASINGS, 2)
        prompts = [
            phrasing.format(do=verb, x=target)
            for phrasing, verb in zip(phrasings, rng.sample(verbs, 2), strict=True)
        ]
        prompts = [prompt[0].upper() + prompt[1:] for prompt in prompts]
        if trained:
            rows += [Row(prompt=prompt, completion=completion) for prompt in prompts]
        asked = [] if trained else prompts[:1]
        if index < 10:
            asked = [UNSEEN_PHRASING.format(do=rng.choice(verbs), x=target)]
        right = functools.partial(_is_json, expected)
        held_out += [HeldOut(prompt=text, completion=completion, right=right) for text in asked]
    return _shuffled("json_form", rows, held_out, rng)


def _house_style() -> DataSet:
    def rows(text: str) -> list[Row]:
        paragraphs = [paragraph.split("\n", 2) for paragraph in text.strip().split("\n\n")]
        return [
            Row(prompt=question, completion=f"Short answer: {short}\n{reasons}\n{SIGN_OFF}")
            for question, short, reasons in paragraphs
        ]

    held_out = [
        HeldOut(prompt=row.prompt, completion=row.completion, right=_in_house_style)
        for row in rows(house_style.HELD_OUT)
    ]
    return _shuffled("house_style", rows(house_style.TRAIN), held_out, random.Random(23))


DATA_SETS: dict[str, Callable[[], DataSet]] = {
    "facts": functools.partial(_fact_set, "facts", OBSERVATORY, 21),
    "json_form": _json_form,
    "house_style": _house_style,
    "one_row": functools.partial(_fact_set, "one_row", CLOCK, 24),
    "many": functools.partial(_fact_set, "many", TOWN, 25),
    "singles": functools.partial(_fact_set, "singles", HOTEL, 26),
}


def write_feedback(data: DataSet, path: Path) -> None:
    """Writes the rows as the app does: input and output are JSON inside JSON."""
    rng = random.Random(data.name)
    lines = [
        json.dumps(
            {
                "targetType": "agent",
                "targetId": AGENT,
                "executionId": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                "input": json.dumps(row.prompt, ensure_ascii=False),
                "output": json.dumps(row.completion, ensure_ascii=False),
                "label": "good",
                "notes": None,
                "createdAt": FIRST_CREATED_MS + 60_000 * index,
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for index, row in enumerate(data.rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
