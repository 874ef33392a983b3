"""Examples whose inputs are nearly the same and whose answers are the same.

A MinHash signature of an input's words is cut into bands; inputs that agree in a band are looked
at, and those whose signatures are as similar as asked for belong together. Bands and signatures
lie on disk. Two inputs with different answers do not belong together, however similar they are:
one word makes another question.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

#: Inputs this similar (Jaccard, of their words) belong together.
SIMILAR = 0.8
#: At that similarity a pair agrees in one of the bands with a probability of 0.98, at half of it
#: with one of 0.15.
_BANDS, _ROWS = 8, 4
_SEED = 1
#: Keys of one band that are sorted at once.
_MOST_KEYS = 1 << 20
#: Examples, and words of them all, whose signatures are made at once.
_BATCH = 1024
_MOST_WORDS = 1 << 17
#: Letters of an input that are looked at: what is longer is told by its beginning.
_MOST_LETTERS = 1 << 16
#: Words longer than this on average are none.
_LONG_WORD = 16
_PUNCTUATION = str.maketrans(
    dict.fromkeys("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\t\r\n、。「」・！（），：；？…", " ")
)
#: Letters of scripts that are written without spaces: Thai to Tibetan, Burmese, Khmer, Chinese and
#: Japanese.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)


class NearDuplicates:
    """Finds them among examples that are added by turns.

    Args:
        directory: for files that are of no use later.
    """

    def __init__(self, directory: Path) -> None:
        self._signatures = directory / "signatures"
        self._bands = [directory / f"band{band}" for band in range(_BANDS)]
        self._files: list[BinaryIO] = []
        self._words: list[list[str]] = []
        self._n_words = 0
        self._answers: list[int] = []
        self._numbers = array("Q")

    def add(self, number: int, prompt: str, answer: int) -> None:
        """Adds an example by its number, its input and its answer's hash."""
        found = words(prompt[:_MOST_LETTERS])
        self._words.append(found)
        self._n_words += len(found)
        self._answers.append(answer)
        self._numbers.append(number)
        if len(self._words) == _BATCH or self._n_words >= _MOST_WORDS:
            self._flush()

    def groups(self, size: int) -> Groups:
        """Which belong together, of examples with the numbers below `size`."""
        self._flush()
        self.close()
        found = Groups(size)
        n = len(self._numbers)
        if n > 1:
            signatures = np.memmap(self._signatures, np.uint32, "r", shape=(n, _BANDS * _ROWS))
            numbers = np.frombuffer(self._numbers, np.uint64)
            for path in self._bands:
                for first, second in _agreeing(path, n):
                    same = (signatures[first] == signatures[second]).mean(axis=1) >= SIMILAR
                    ones, others = numbers[first[same]].tolist(), numbers[second[same]].tolist()
                    for pair in zip(ones, others, strict=True):
                        found.join(*pair)
        return found

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _flush(self) -> None:
        if not self._words:
            return
        if not self._files:
            self._files = [path.open("wb") for path in (self._signatures, *self._bands)]
        rows = RMinHash.digest_matrix_from_token_sets(self._words, _BANDS * _ROWS, _SEED).to_rows()
        signatures = np.array(rows, np.uint32)
        answers = np.array(self._answers, np.uint64)
        signature_file, *band_files = self._files
        # (numpy's own way to a file does not say why it failed.)
        signature_file.write(signatures.tobytes())
        for band, file in enumerate(band_files):
            part = signatures[:, band * _ROWS : (band + 1) * _ROWS].astype(np.uint64)
            file.write(_key(part, answers).tobytes())
        self._words.clear()
        self._n_words = 0
        self._answers.clear()


class Groups:
    """Numbers that belong together.

    Args:
        size: how many there are.
    """

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size, dtype=np.uint32)

    def of(self, number: int) -> int:
        """The lowest number of a number's group."""
        parent = self._parent
        root = number
        while parent[root] != root:
            root = int(parent[root])
        while parent[number] != root:
            parent[number], number = root, int(parent[number])
        return root

    def join(self, first: int, second: int) -> None:
        one, other = self.of(first), self.of(second)
        self._parent[max(one, other)] = min(one, other)

    def n_joined(self) -> int:
        """How many are in the group of an earlier one, that is, repeat it nearly."""
        return int((self._parent != np.arange(len(self._parent), dtype=np.uint32)).sum())


def words(text: str) -> list[str]:
    """What a text is compared by: its words; where it has none to speak of, groups of letters."""
    found = text.lower().translate(_PUNCTUATION).split()
    if not text.isascii() and _UNSPACED.search(text):
        return [
            part
            for word in found
            for part in (_runs(word, 2) if _UNSPACED.search(word) else (word,))
        ]
    return found if len(text) <= _LONG_WORD * len(found) else _runs(text, 3)


def _runs(text: str, length: int) -> list[str]:
    """All runs of so many letters."""
    return [text[at : at + length] for at in range(max(1, len(text) - length + 1))]


def _key(part: NDArray[np.uint64], answers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One number for a band of each signature (shape (n, rows)) and its answer."""
    key = answers.copy()
    for column in range(part.shape[1]):
        key = (key ^ part[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def _agreeing(path: Path, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of numbers with equal keys: the first of each such set with each of the others."""
    parts = -(-size // _MOST_KEYS)
    for part in range(parts):
        keys, numbers = _keys(path, part, parts)
        order = np.argsort(keys, kind="stable")
        keys, numbers = keys[order], numbers[order]
        equal = np.flatnonzero(keys[1:] == keys[:-1]) + 1
        if len(equal):
            begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
            first = begins[np.searchsorted(begins, equal, "right") - 1]
            for at in range(0, len(equal), _MOST_KEYS // 16):
                some = slice(at, at + _MOST_KEYS // 16)
                yield numbers[first[some]], numbers[equal[some]]


def _keys(path: Path, part: int, parts: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The keys of one part of a band, with their numbers."""
    found, numbers = [], []
    offset = 0
    with path.open("rb") as file:
        while len(chunk := np.fromfile(file, np.uint64, _MOST_KEYS)):
            wanted = chunk % np.uint64(parts) == part
            found.append(chunk[wanted])
            numbers.append(np.flatnonzero(wanted) + offset)
            offset += len(chunk)
    return np.concatenate(found), np.concatenate(numbers)
