"""What is known of every example of a file, in a table on disk: memory does not grow with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

#: Rows that are written at once.
_BATCH = 2048
_MEMORY_KIB = 8192
#: Numbers of 62 bits: the sum of two is a whole number in SQLite.
_MASK = (1 << 62) - 1
#: Lines with the very same answer to one input that are held at once.
_MOST_REPEATED = 1000
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE example (
    id INTEGER PRIMARY KEY, line, offset, n_bytes, part, context, answer, good, reason
);
CREATE TABLE pair (chosen, rejected);
"""

CONFLICT = "labelled both good and bad"
REPEATED = "repeats an earlier row"
BAD = "labelled bad"


class Entry(NamedTuple):
    """An example without its text."""

    #: Of its line: 1-based number, and where it lies in the file, in bytes.
    line: int
    offset: int
    n_bytes: int
    #: Its place, from 0, among all that was found in the line, what is left out included.
    part: int
    #: Hashes of 63 bits, of the conversation before the answer and of the answer.
    context: int
    answer: int
    good: bool


class Place(NamedTuple):
    """Where to find an example: its number, its line's place, and which one of the line it is."""

    id: int
    line: int
    offset: int
    n_bytes: int
    part: int


@dataclass(slots=True, kw_only=True)
class Counts:
    """What there is to train on, once repetitions and contradictions are out."""

    good: int = 0
    bad: int = 0
    #: Inputs with a good answer, with both a good and a bad one, and with several good ones.
    good_inputs: int = 0
    paired_inputs: int = 0
    several_answers: int = 0
    pairs: int = 0


class Index:
    """Examples by number, from 1 in the order of the file.

    Args:
        path: a file for the table; it is of no use later.
    """

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(_SCHEMA)
        self._database.execute(f"PRAGMA cache_size = -{_MEMORY_KIB}")
        self._waiting: list[tuple[Any, ...]] = []
        self.size = 0

    def close(self) -> None:
        self._database.close()

    def add(self, entry: Entry | tuple[int, int, int, int, int, int, bool]) -> None:
        """Adds an example: the fields of an `Entry`, in their order."""
        self._waiting.append(entry)
        self.size += 1
        if len(self._waiting) == _BATCH:
            self._flush()

    def settle(self) -> Counts:
        """Drops what repeats or contradicts, and pairs good answers with bad ones."""
        self._flush()
        self._database.execute("CREATE INDEX by_content ON example (context, answer, good, line)")
        self._drop_repeated()
        counts = self._of_single_answers()
        cursor = self._database.execute(
            "SELECT context, answer, good, id, line FROM example WHERE context IN"
            " (SELECT context FROM example GROUP BY context HAVING count(*) > 1)"
            " ORDER BY context, answer, id"
        )
        pairs: list[tuple[int, int]] = []
        for _, rows in groupby(cursor, itemgetter(0)):
            good, bad = _answers(rows)
            counts.good += len(good.first)
            counts.bad += len(bad.first)
            counts.good_inputs += bool(good.first)
            counts.several_answers += len(good.first) > 1
            if good.first and bad.first:
                counts.paired_inputs += 1
                pairs += _paired(good, bad)
            if len(pairs) > _BATCH:
                self._add_pairs(counts, pairs)
        self._add_pairs(counts, pairs)
        return counts

    def _drop_repeated(self) -> None:
        """Drops what repeats, and answers to one input that are called both good and bad."""
        self._database.execute(
            "CREATE TEMP TABLE again AS SELECT context, answer, min(id) AS first,"
            " min(good) < max(good) AS contradicts FROM example GROUP BY context, answer"
            " HAVING count(*) > 1"
        )
        for reason, condition in (
            (CONFLICT, "contradicts"),
            (REPEATED, "example.id > again.first"),
        ):
            self._write(
                "UPDATE example SET reason = ? FROM again WHERE example.context = again.context"  # noqa: S608
                f" AND example.answer = again.answer AND reason IS NULL AND {condition}",
                [(reason,)],
            )

    def _of_single_answers(self) -> Counts:
        """Counts of the inputs that have but one answer."""
        good, all_ = self._database.execute(
            "SELECT coalesce(sum(good), 0), count(*) FROM"
            " (SELECT max(good) AS good FROM example GROUP BY context HAVING count(*) = 1)"
        ).fetchone()
        return Counts(good=good, bad=all_ - good, good_inputs=good)

    def with_repeated_answers(self) -> Iterator[tuple[Place, int]]:
        """The examples that are left and whose answer others have, too; with its hash."""
        self._database.execute("CREATE INDEX by_answer ON example (answer) WHERE reason IS NULL")
        cursor = self._database.execute(
            "SELECT id, line, offset, n_bytes, part, answer FROM example WHERE reason IS NULL"
            " AND answer IN (SELECT answer FROM example WHERE reason IS NULL"
            " GROUP BY answer HAVING count(*) > 1) ORDER BY id"
        )
        return ((Place(*place), answer) for *place, answer in cursor)

    def drop(self, reason: str, where: str) -> None:
        """Drops all that are left and for which an SQL condition holds."""
        self._write(f"UPDATE example SET reason = ? WHERE reason IS NULL AND {where}", [(reason,)])  # noqa: S608

    def drop_one(self, reason: str, number: int) -> None:
        self._write("UPDATE example SET reason = ? WHERE id = ?", [(reason, number)])

    def drop_unpaired(self, reason: str) -> int:
        """Drops all that are left and whose partners are not; returns how many pairs are left."""
        self._database.execute(
            "DELETE FROM pair WHERE EXISTS (SELECT 1 FROM example WHERE id IN (chosen, rejected)"
            " AND reason IS NOT NULL)"
        )
        self.drop(reason, "id NOT IN (SELECT chosen FROM pair UNION ALL SELECT rejected FROM pair)")
        n_pairs: int = self._database.execute("SELECT count(*) FROM pair").fetchone()[0]
        return n_pairs

    def dropped(self, most: int) -> Iterator[tuple[str, int, list[int]]]:
        """Reasons, each with how many lines were dropped for it, and the first of their numbers."""
        reasons = self._database.execute(
            "SELECT reason, count(DISTINCT line) FROM example WHERE reason IS NOT NULL"
            " GROUP BY reason ORDER BY min(id)"
        ).fetchall()
        for reason, count in reasons:
            found = self._database.execute(
                "SELECT DISTINCT line FROM example WHERE reason = ? ORDER BY id LIMIT ?",
                (reason, most),
            )
            yield reason, count, [line for (line,) in found]

    def n_left(self) -> tuple[int, int]:
        """How many examples are left, and how many lines they come from."""
        row: tuple[int, int] = self._database.execute(
            "SELECT count(*), count(DISTINCT line) FROM example WHERE reason IS NULL"
        ).fetchone()
        return row

    def left(self, most: int, seed: int) -> list[Place]:
        """At most so many of the examples that are left, in their order.

        Where there are more, the same seed chooses the same; a row more or less in the file
        changes little of the choice.
        """
        # Hashes are as good as drawn by chance; the seed says where among them the choice begins.
        chosen = self._database.execute(
            "SELECT id, line, offset, n_bytes, part FROM example WHERE reason IS NULL"
            " ORDER BY ((context & :mask) + :begin) & :mask, id LIMIT :most",
            {"mask": _MASK, "begin": _mixed(seed) & _MASK, "most": most},
        )
        return sorted(Place(*row) for row in chosen)

    def pairs(self) -> Iterator[tuple[Place, Place]]:
        """Good answers with bad ones to the same input."""
        columns = ", ".join(f"{t}.{c}" for t in "gb" for c in Place._fields)
        cursor = self._database.execute(
            f"SELECT {columns} FROM pair JOIN example g ON g.id = chosen"  # noqa: S608
            " JOIN example b ON b.id = rejected ORDER BY g.id, b.id"
        )
        half = len(Place._fields)
        return ((Place(*row[:half]), Place(*row[half:])) for row in cursor)

    def _add_pairs(self, counts: Counts, pairs: list[tuple[int, int]]) -> None:
        self._write("INSERT INTO pair VALUES (?, ?)", pairs)
        counts.pairs += len(pairs)
        pairs.clear()

    def _flush(self) -> None:
        self._write(
            "INSERT INTO example (line, offset, n_bytes, part, context, answer, good)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            self._waiting,
        )
        self._waiting.clear()

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self._database.execute("BEGIN")
        self._database.executemany(statement, rows)
        self._database.execute("COMMIT")


@dataclass(slots=True)
class _Answers:
    """Different answers of one kind to one input."""

    #: The number of each.
    first: list[int]
    #: Line -> the number of its answer; where that repeats an earlier one, of the earlier one.
    by_line: dict[int, int]


def _answers(rows: Iterable[tuple[int, int, int, int, int]]) -> tuple[_Answers, _Answers]:
    """Good and bad answers to one input, without those that are called both."""
    good, bad = _Answers([], {}), _Answers([], {})
    for _, same in groupby(rows, itemgetter(1)):
        first: tuple[int, ...] = ()
        lines: list[int] = []
        contradicts = False
        for row in same:
            first = first or row
            contradicts |= row[2] != first[2]
            if len(lines) < _MOST_REPEATED:
                lines.append(row[4])
        if not contradicts:
            kind = good if first[2] else bad
            kind.first.append(first[3])
            kind.by_line.update(dict.fromkeys(lines, first[3]))
    return good, bad


def _paired(good: _Answers, bad: _Answers) -> list[tuple[int, int]]:
    """Pairs of one line as they are; other answers with those of the other kind in turns."""
    pairs = {
        (number, bad.by_line[line]): None
        for line, number in good.by_line.items()
        if line in bad.by_line
    }
    paired = {number for pair in pairs for number in pair}
    left = [number for number in bad.first if number not in paired]
    pairs |= {(good.first[turn % len(good.first)], each): None for turn, each in enumerate(left)}
    paired |= {number for pair in pairs for number in pair}
    left = [number for number in good.first if number not in paired]
    pairs |= {(each, bad.first[turn % len(bad.first)]): None for turn, each in enumerate(left)}
    return list(pairs)


def _mixed(seed: int) -> int:
    """A number that looks drawn by chance, of 64 bits (the mixing of SplitMix64)."""
    mask = (1 << 64) - 1
    x = (seed + 1) * 0x9E3779B97F4A7C15 & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)
