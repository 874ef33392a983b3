"""A data set file -> its examples: decoded, redacted, sorted out, and looked up when needed."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ollama_trainer.compiler.index import BAD, Counts, Index, Place
from ollama_trainer.compiler.lines import MOST_BYTES, Line, line_at, lines, open_dataset
from ollama_trainer.compiler.method import Choice, choose
from ollama_trainer.compiler.near import Groups, NearDuplicates
from ollama_trainer.compiler.quality import problem
from ollama_trainer.compiler.redaction import Redactor, is_plain
from ollama_trainer.errors import DatasetError, DiskFull, is_disk_full
from ollama_trainer.formats import FORMATS, Format, format_of, preferences
from ollama_trainer.formats._text import parse
from ollama_trainer.records import DatasetOptions, Example, Message, Method

#: Line numbers that are told of each reason.
MOST_LINES = 100
_UNPAIRED = "no answer of the other kind to the same input"


@dataclass(slots=True)
class Tally:
    """What was dropped for a reason."""

    count: int = 0
    #: The first of the line numbers.
    lines: list[int] = field(default_factory=list)
    _last: int = 0

    def add(self, line: int) -> None:
        # A line of several examples counts once.
        if line != self._last:
            self._last = line
            self.count += 1
            if len(self.lines) < MOST_LINES:
                self.lines.append(line)


@dataclass(slots=True, kw_only=True)
class Compiled:
    """A data set that was read. Its examples are looked up in the file, which stays open."""

    format: str
    rows_read: int
    counts: Counts
    choice: Choice
    #: Kind of secret -> how many were found.
    secrets: Counter[str]
    #: Rows that repeat another one nearly.
    n_near: int
    #: Answers that came after calls of tools that the file does not show.
    n_after_tools: int
    _file: BinaryIO
    _index: Index
    _groups: Groups
    _read: Callable[[bytes, int, bool], list[Example | str]]
    _dropped: dict[str, Tally]
    _counted: tuple[int, int] | None = None
    #: What was looked up last, by the line's number and whether it was redacted.
    _last: tuple[tuple[int, bool], list[Example | str]] = ((0, True), [])

    def __len__(self) -> int:
        """How many examples are left to train on."""
        return self._n_left()[0]

    @property
    def rows_used(self) -> int:
        """How many lines those come from."""
        return self._n_left()[1]

    def _n_left(self) -> tuple[int, int]:
        # Counting goes through the whole table.
        if self._counted is None:
            self._counted = self._index.n_left()
        return self._counted

    @property
    def dropped(self) -> dict[str, Tally]:
        """Reason -> the lines that were dropped for it, whole or in part; the first line first."""
        found = dict(self._dropped)
        for reason, count, numbers in self._index.dropped(MOST_LINES):
            found[reason] = Tally(count, numbers)
        return dict(sorted(found.items(), key=lambda item: item[1].lines))

    def drop(self, reason: str, number: int) -> None:
        """Drops an example by its number, for a reason that was found out later."""
        self._counted = None
        self._index.drop_one(reason, number)

    def drop_unpaired(self) -> None:
        """Drops those whose partners were dropped, where pairs are trained on.

        Raises:
            DatasetError: no pair is left.
        """
        if self.choice.trained_with == "dpo":
            self._counted = None
            self.counts.pairs = self._index.drop_unpaired(_UNPAIRED)
            if not self.counts.pairs:
                raise nothing_left(self)

    def find_near(self, near: NearDuplicates) -> None:
        """Looks for near duplicates among the examples that are left."""
        for place, answer in self._index.with_repeated_answers():
            # Nothing of it is kept, so that its secrets may stay.
            example = self._look_up(place, redact=False)
            # The same question at another place of a conversation is another one.
            earlier = _hash(_json(example.context[:-1])) if len(example.context) > 1 else 0
            near.add(place.id, example.prompt, answer ^ earlier)
        self._groups = near.groups(self._index.size + 1)
        self.n_near = self._groups.n_joined()

    def examples(self, most: int, seed: int) -> list[tuple[int, int, Example]]:
        """At most so many examples in their order: number, group of near duplicates, example.

        Raises:
            DatasetError: the file changed.
        """
        return [
            (place.id, self._groups.of(place.id), self._look_up(place))
            for place in self._index.left(most, seed)
        ]

    def pairs(self) -> Iterator[tuple[Example, Example]]:
        """Good answers, each with a bad one to the same input.

        Raises:
            DatasetError: the file changed.
        """
        for chosen, rejected in self._index.pairs():
            yield self._look_up(chosen), self._look_up(rejected)

    def _look_up(self, place: Place, redact: bool = True) -> Example:
        last, found = self._last
        if last != (place.line, redact):
            # The examples of a line are looked up one after the other: it is read once for them.
            data = line_at(self._file, place.offset, place.n_bytes)
            found = self._read(data, place.line, redact)
            self._last = (place.line, redact), found
        example = found[place.part] if place.part < len(found) else None
        if not isinstance(example, Example):
            raise DatasetError("The data set changed while it was read", "Try again.")
        return example


@contextlib.contextmanager
def compile_dataset(
    path: Path,
    options: DatasetOptions,
    to_be_had: Sequence[Method] = ("sft", "dpo", "kto"),
    scratch: Path | None = None,
    most_bytes: int = MOST_BYTES,
) -> Iterator[Compiled]:
    """Reads a data set; memory does not grow with it.

    Args:
        path: a file of one of the shapes in `formats`.
        options: what is made of its rows.
        to_be_had: the methods that can be trained with.
        scratch: directory for temporary files; None means the system's.
        most_bytes: longer lines are dropped.

    Raises:
        DatasetError: it cannot be read, its rows are of several shapes or of none that is known,
            nothing in it can be used, or it has secrets and is to be refused then.
        DiskFull: there is no room for temporary files.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_dataset(path))
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="dataset-", dir=scratch))
        )
        stack.enter_context(_room_for(folder))
        index = stack.enter_context(contextlib.closing(Index(folder / "index")))
        near = stack.enter_context(contextlib.closing(NearDuplicates(folder)))
        reader = _Reader(options, index, near)
        for line in lines(file, most_bytes):
            reader.take(line)
        yield reader.finish(file, to_be_had)


@contextlib.contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """Raises:
    DiskFull: a temporary file found no room.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"There is no room for temporary files in {folder.parent}", "Make room there."
        ) from error


class _Reader:
    """Takes in one line after the other."""

    def __init__(self, options: DatasetOptions, index: Index, near: NearDuplicates) -> None:
        self._options, self._index, self._near = options, index, near
        self._redactor = Redactor(options)
        self._format: Format | None = None
        self._rows_read = 0
        self._n_after_tools = 0
        self._dropped: dict[str, Tally] = {}

    def take(self, line: Line) -> None:
        """Raises:
        DatasetError: the line is of another shape than those before, or of none that is known.
        """
        self._rows_read += 1
        if line.data is None:
            self._drop("the line is too long to be read", line.number)
            return
        for part, found in enumerate(self.read(line.data, line.number)):
            if isinstance(found, str):
                self._drop(found, line.number)
                continue
            context, answer = _hashes(found)
            self._index.add(
                (line.number, line.offset, line.n_bytes, part, context, answer, found.good)
            )
            self._n_after_tools += found.after_unseen_tools

    def read(self, data: bytes, number: int, redact: bool = True) -> list[Example | str]:
        """A line's examples, and why others are left out.

        Raises:
            DatasetError: as of `take`.
        """
        try:
            row = parse(data)
        except (ValueError, RecursionError):
            return ["the line is not JSON"]
        if not isinstance(row, dict):
            return ["the line is not a JSON object"]
        format_ = self._format_of(row, number)
        try:
            found = format_.read(row, number, self._options)
            return [self._checked(each, format_, redact) for each in found]
        except RecursionError:
            return ["the line is nested too deeply"]

    def finish(self, file: BinaryIO, to_be_had: Sequence[Method]) -> Compiled:
        """Raises:
        DatasetError: nothing can be used, or there are secrets and must be none.
        """
        if not self._rows_read:
            raise DatasetError("The data set is empty", "Give feedback on some answers first.")
        self._redactor.refuse()
        counts = self._index.settle()
        choice = choose(counts, self._options.method, to_be_had)
        self._leave_out(choice.trained_with)
        compiled = Compiled(
            format=self._format.NAME if self._format else "none",
            rows_read=self._rows_read,
            counts=counts,
            choice=choice,
            secrets=Counter(self._redactor.found),
            n_near=0,
            n_after_tools=self._n_after_tools,
            _file=file,
            _index=self._index,
            _groups=Groups(0),
            _read=self.read,
            _dropped=self._dropped,
        )
        if not len(compiled):
            raise nothing_left(compiled)
        compiled.find_near(self._near)
        return compiled

    def _leave_out(self, method: Method) -> None:
        """Drops what the method does not train on."""
        if method == "sft":
            pair = self._format is preferences
            self._index.drop("rejected answers" if pair else BAD, "good = 0")
        elif method == "dpo":
            self._index.drop_unpaired(_UNPAIRED)

    def _checked(self, found: Example | str, format_: Format, redact: bool) -> Example | str:
        if isinstance(found, str):
            return found
        return problem(found, format_) or (self._redactor.redacted(found) if redact else found)

    def _format_of(self, row: dict[str, Any], number: int) -> Format:
        found = format_of(row)
        if found is None:
            # Only plain words: a file may have anything for its keys, secrets, too.
            keys = ", ".join(filter(_WORD.fullmatch, sorted(row)[:8])) or "none that is a word"
            raise DatasetError(
                f"Line {number} of the data set is of no known shape; its keys: {keys}",
                f"Each line needs the keys of one of: {_SHAPES}.",
            )
        if self._format is None:
            self._format = found
        if found is not self._format:
            raise DatasetError(
                f"Line {number} of the data set is of the shape {found.NAME}, those before it are "
                f"{self._format.NAME}",
                "Give one file for each shape.",
            )
        return found

    def _drop(self, reason: str, line: int) -> None:
        self._dropped.setdefault(reason, Tally()).add(line)


def nothing_left(
    compiled: Compiled, remedy: str = "Mark at least one answer as good."
) -> DatasetError:
    """That no row of a data set can be used, with the reasons."""
    reasons = ", ".join(
        f"{reason}: {tally.count} ({_some(tally)})" for reason, tally in compiled.dropped.items()
    )
    return DatasetError(
        f"None of the {compiled.rows_read} rows can be used ({reasons})",
        remedy,
    )


def _some(tally: Tally) -> str:
    numbers = ", ".join(map(str, tally.lines[:3]))
    return f"line{'s' * (tally.count > 1)} {numbers}{', …' * (tally.count > 3)}"


def _hashes(example: Example) -> tuple[int, int]:
    """Of the conversation before the answer, and of the answer."""
    if is_plain(example):
        return _hash(example.context[0]["content"]), _hash(example.answer["content"])
    return _hash(_json([*example.context, *example.tools])), _hash(content(example.answer))


def _json(messages: Sequence[Message]) -> str:
    """Messages as one text, but for the ids of calls, which are drawn by chance."""
    said = [
        {
            **{key: value for key, value in message.items() if key != "tool_call_id"},
            "tool_calls": [call["function"] for call in message.get("tool_calls", ())],
        }
        for message in messages
    ]
    return json.dumps(said, sort_keys=True)


def content(answer: Message) -> str:
    """All that an answer says, as one text."""
    text: str = answer["content"]
    return _json([answer]) if "tool_calls" in answer else text


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


_WORD = re.compile(r"[A-Za-z_]{1,20}")
_SHAPES = "; ".join(f"{format_.NAME} ({', '.join(sorted(format_.KEYS))})" for format_ in FORMATS)
