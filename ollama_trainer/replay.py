"""Texts that the base itself wrote: what a training is held to, so that it spoils nothing else.

Plain fine-tuning on a few hundred rows changes what a model says about everything. The cure needs
no data from anywhere: the base writes some dozen texts (continuations of the openings below,
answers to the general prompts below), and while the rows are learned, the model is held to what the
base said there, by the Kullback-Leibler divergence (backends/_replay.py). What the base says
is noted while it writes, so it costs nothing more, and is kept with the texts, per base.

Never part of it: the user's rows, and the probe text by which runs are judged.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import BaseModelError, NotANumber
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.llama import Sequences, continue_texts, open_sequences
from ollama_trainer.ollama_prompts import open_format, prompts_digest
from ollama_trainer.prompts import PromptFormat
from ollama_trainer.records import BaseGguf, ReplayText
from ollama_trainer.workspace import atomic_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    #: The likeliest tokens after a text, and their log-probabilities.
    _Said = tuple[NDArray[np.int32], NDArray[np.float16]]

#: Raised when the prompts or the file change, so that older caches are not used.
_LAYOUT = 3
#: Sequences that are written together.
_TOGETHER = 16
#: Shorter ones say too little.
_SHORTEST = 8
_OPENINGS = (
    "The ferry leaves the island twice a day, and",
    "In the early years of the railway, few people believed that",
    "Preheat the oven and line a baking tray. Mix the flour with",
    "def count_words(text):\n    ",
    "Dear Ms Holloway,\n\nThank you for your letter of last week. We",
    "When the rain stopped, the children ran out to",
    "Heat moves from warm things to cold ones. A metal spoon",
    "Yesterday the council decided to close the old library, because",
    "for (const item of items) {\n  ",
    "I bought this kettle two months ago and I must say",
    "SELECT name, city FROM customers WHERE ",
    '"Are you coming with us?" she asked. "We have',
    "Most birds build their nests in spring. They",
    "# Installation\n\nFirst, download the package and",
    "A farmer has 12 sheep and buys 5 more. How many",
    "If you want to grow tomatoes on a balcony, you should",
    "The heart is a muscle that pumps blood through",
    "Subject: Meeting on Monday\n\nHi all,\n\n",
    "To reach the castle, follow the river until",
    "#!/bin/bash\n# Make a backup of the home directory\n",
    "The novel tells the story of a young woman who",
    '{\n  "name": "garden",\n  "plants": [',
    "Many people find it hard to fall asleep. It helps to",
    "After the war, the town was rebuilt by",
    "The price of bread has risen since",
    "import os\n\nclass Settings:\n    ",
    "It was a cold evening, and the old man",
    "<html>\n<head>\n  <title>",
    "Light from the sun takes about eight minutes to",
    "My grandmother used to say that",
    "There are three ways to solve this problem. The first",
    "The team lost the match, but its coach",
)
_PROMPTS = (
    "Tell me something interesting about the sea.",
    "How do I make a good vegetable soup?",
    "Write a short story about a lost umbrella.",
    "Explain how a magnet works.",
    "What is the difference between a lake and a pond?",
    "Write a Python function that reverses a list.",
    "Give me three tips for learning a language.",
    "Summarise why sleep matters.",
    "Write a polite e-mail that moves a meeting to Friday.",
    "What should I consider before I buy a used bicycle?",
    "Who was Marie Curie?",
    "Translate 'Good morning, my friend' into French.",
    "What is 17 times 6? Show your steps.",
    "Describe a quiet street in the rain.",
    "List five things to take on a hike.",
    "How do computers store text?",
    "Why is the sky blue?",
    "Write a haiku about winter.",
    "What does 'to beat around the bush' mean?",
    "Explain inflation to a child.",
    "Give an example of a JSON object that describes a book.",
    "What are the causes of earthquakes?",
    "How can I stay calm before an examination?",
    "Write a SQL query that counts the customers of each city.",
    "Hello! How are you today?",
    "Recommend a game for four people.",
    "What is the capital of Australia?",
    "Compare tea and coffee in two sentences.",
    "How does a bill become a law?",
    "Name some animals that live in the desert.",
    "What is a good way to save money every month?",
    "Describe the water cycle.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """All that decides which texts are written; part of the cache's name."""

    n_texts: int = 48
    #: Tokens that the base writes in each.
    n_tokens: int = 48
    temperature: float = 0.8
    #: Likeliest tokens whose probabilities are kept; the others count together.
    n_likeliest: int = 128
    seed: int = 1


def replay_texts(
    base: BaseGguf,
    cache: Path,
    settings: ReplaySettings,
    *,
    ollama_host: str = "",
    budget_s: float = 600.0,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> tuple[ReplayText, ...]:
    """The base's own texts, written at the first call and kept by digest and settings.

    Args:
        base: who writes.
        cache: directory that holds such texts of all bases.
        settings: how many, how long, how random.
        ollama_host: where the base is, if Ollama makes its prompts.
        budget_s: no further texts are begun after so many seconds; those that there are suffice.
        progress: called with the share that is written, 0 to 1.

    Raises:
        ExportError: llama.cpp cannot load the base.
        BaseModelError: the base has no usable chat template, or writes nothing.
    """
    key = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:12]
    key += prompts_digest(base.ollama)
    final = cache / f"replay-{_LAYOUT}-{base.digest[:32]}-{key}.npz"
    if not final.exists():
        with open_format(read_gguf(base.gguf), base.ollama, ollama_host) as form:
            openings = [_opening(form, number) for number in range(settings.n_texts)]
        _save(final, _written(base, openings, settings, budget_s, progress))
    return _load(final)


def in_batches(
    texts: Sequence[ReplayText], batch_size: int, seed: int
) -> tuple[tuple[ReplayText, ...], ...]:
    """Batches of texts of about one length, so that little is padded, in an order by chance."""
    by_length = sorted(texts, key=lambda text: len(text.ids))
    starts = list(range(0, len(by_length), batch_size))
    random.Random(seed).shuffle(starts)  # noqa: S311 - an order, no secret
    return tuple(tuple(by_length[start : start + batch_size]) for start in starts)


def _written(
    base: BaseGguf,
    openings: list[list[int]],
    settings: ReplaySettings,
    budget_s: float,
    progress: Callable[[float], None],
) -> list[ReplayText]:
    started = time.monotonic()
    texts: list[ReplayText] = []
    n_tokens = _TOGETHER * (max(map(len, openings)) + settings.n_tokens)
    with open_sequences(base.gguf, n_sequences=_TOGETHER, n_tokens=n_tokens) as sequences:
        for start in range(0, len(openings), _TOGETHER):
            if texts and time.monotonic() - started > budget_s:
                break
            some = openings[start : start + _TOGETHER]
            share = partial(_overall, progress, start / len(openings), len(some) / len(openings))
            texts += _write(sequences, some, settings, start, share)
    long_enough = [text for text in texts if len(text.ids) - text.start >= _SHORTEST]
    if not long_enough:
        raise BaseModelError(
            f"{base.name} writes nothing when it is asked, so nothing can be replayed",
            "Choose another base, or set replay = off.",
        )
    return long_enough


def _overall(
    progress: Callable[[float], None], before: float, width: float, fraction: float
) -> None:
    progress(before + width * fraction)


def _opening(form: PromptFormat, number: int) -> list[int]:
    """Token ids that text `number` begins with: an opening, or a prompt, in turns."""
    index, is_answer = divmod(number, 2)
    if is_answer:
        return form.prompt_ids(form.prompt(_PROMPTS[index % len(_PROMPTS)]))
    return form.tokenizer.ids(_OPENINGS[index % len(_OPENINGS)], special=False)


def _write(
    sequences: Sequences,
    openings: list[list[int]],
    settings: ReplaySettings,
    first: int,
    progress: Callable[[float], None],
) -> list[ReplayText]:
    """Continues some openings together, each with random numbers of its own."""
    import numpy as np

    chance = [np.random.default_rng([settings.seed, first + n]) for n in range(len(openings))]
    said: list[list[_Said]] = [[] for _ in openings]

    def draw(number: int, logits: NDArray[np.float32]) -> int:
        token, likeliest = _draw(logits, settings, chance[number].random())
        said[number].append(likeliest)
        return token

    written = continue_texts(sequences, openings, settings.n_tokens, draw, progress)
    return [
        ReplayText(
            ids=(*opening, *text),
            start=len(opening),
            likeliest=np.stack([tokens for tokens, _ in kept]),
            log_probabilities=np.stack([values for _, values in kept]),
        )
        for text, opening, kept in zip(written, openings, said, strict=True)
    ]


def _draw(
    logits: NDArray[np.float32], settings: ReplaySettings, chance: float
) -> tuple[int, _Said]:
    """The next token, and the likeliest ones with their log-probabilities at temperature 1."""
    import numpy as np

    below = logits - logits.max()
    total = np.exp(below).sum(dtype=np.float64)
    if not np.isfinite(total):
        raise NotANumber("The base computes values that are no numbers", "Choose another base.")
    cumulated = np.exp(below / settings.temperature).cumsum(dtype=np.float64)
    token = int(np.searchsorted(cumulated, chance * cumulated[-1], side="right"))
    k = min(settings.n_likeliest, len(logits) - 1)
    top = np.argpartition(logits, -k)[-k:]
    said = top.astype(np.int32), (below[top] - np.log(total)).astype(np.float16)
    return min(token, len(logits) - 1), said


def _save(path: Path, texts: Sequence[ReplayText]) -> None:
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    for number, text in enumerate(texts):
        arrays[f"{number}.ids"] = np.asarray(text.ids, np.int32)
        arrays[f"{number}.start"] = np.asarray(text.start)
        arrays[f"{number}.likeliest"] = text.likeliest
        arrays[f"{number}.log_probabilities"] = text.log_probabilities
    with atomic_path(path) as partial, partial.open("wb") as handle:
        np.savez(handle, **arrays)


def _load(path: Path) -> tuple[ReplayText, ...]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return tuple(
            ReplayText(
                ids=tuple(arrays[f"{number}.ids"].tolist()),
                start=int(arrays[f"{number}.start"]),
                likeliest=arrays[f"{number}.likeliest"],
                log_probabilities=arrays[f"{number}.log_probabilities"],
            )
            for number in range(len(arrays.files) // 4)
        )
