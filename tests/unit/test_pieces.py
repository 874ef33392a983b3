"""Pieces of a file: made side by side, given in their order, never too many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ollama_trainer.gguf import pieces as pieces_module
from ollama_trainer.gguf.pieces import Flusher, Piece, made


class Work:
    """Pieces that note how many of them are at work, or waiting to be taken, at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held = self.most_held = 0

    def piece(self, index: int, n_bytes: int = 1) -> Piece:
        return Piece(partial(self._make, index, n_bytes), n_bytes)

    def _make(self, index: int, n_bytes: int) -> bytes:
        with self._lock:
            self.held += n_bytes
            self.most_held = max(self.most_held, self.held)
        # The later ones are ready first.
        time.sleep(0.002 * (20 - index % 20))
        return bytes([index])

    def taken(self, n_bytes: int = 1) -> None:
        with self._lock:
            self.held -= n_bytes


@pytest.mark.parametrize("n_workers", [1, 2, 8])
def test_the_order_is_that_of_the_file(n_workers: int) -> None:
    """Threads end in any order."""
    work = Work()
    with ThreadPoolExecutor(n_workers) as executor:
        pieces = (work.piece(index) for index in range(40))
        contents = list(made(pieces, executor, n_workers, lambda: 1000))
    assert b"".join(contents) == bytes(range(40))


@pytest.mark.parametrize(("n_bytes", "room", "most"), [(30, 100, 90), (150, 100, 150), (50, 0, 50)])
def test_what_is_in_work_fits_the_room(n_bytes: int, room: int, most: int) -> None:
    """Memory is bounded whatever the number of cores; a piece without room is made alone."""
    work = Work()
    with ThreadPoolExecutor(8) as executor:
        pieces = (work.piece(index, n_bytes) for index in range(12))
        for _ in made(pieces, executor, 8, lambda: room):
            work.taken(n_bytes)
    assert work.most_held == most


def test_few_are_asked_for_ahead() -> None:
    """A file has thousands of pieces: none is thought of long before its turn."""
    asked: list[int] = []

    def pieces() -> Iterator[Piece]:
        for index in range(100):
            asked.append(index)
            yield Piece(lambda: b"x", 0)

    with ThreadPoolExecutor(2) as executor:
        for taken, _ in enumerate(made(pieces(), executor, 2, lambda: 1)):
            assert len(asked) <= taken + 7


def test_a_piece_that_waits_has_all_others_behind_it() -> None:
    """What is asked for after it may take all the room that there is."""
    ended: list[int] = []

    def pieces() -> Iterator[Piece]:
        for index in range(4):
            yield Piece(partial(_slow, ended, index), 1)
        yield Piece(bytes, 0, waits=True)
        assert sorted(ended) == [0, 1, 2, 3]
        yield Piece(lambda: b"last", 1)

    with ThreadPoolExecutor(4) as executor:
        contents = list(made(pieces(), executor, 4, lambda: 100))
    assert contents == [b"\x00", b"\x01", b"\x02", b"\x03", b"", b"last"]


def _slow(ended: list[int], index: int) -> bytes:
    time.sleep(0.05)
    ended.append(index)
    return bytes([index])


class Disk:
    """Stands in for the system's fsync, and fails from some call on."""

    def __init__(self, fails_from: int = 1000) -> None:
        self.calls = 0
        self._fails_from = fails_from

    def fsync(self, _descriptor: int) -> None:
        self.calls += 1
        if self.calls >= self._fails_from:
            raise OSError("the disk is full")


def written(path: Path, n: int) -> None:
    with path.open("wb") as sink, Flusher(sink) as flusher:
        for _ in range(n):
            sink.write(bytes(100))
            flusher.go_on()
            time.sleep(0.01)


def test_a_file_goes_to_the_disk_while_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not for every few bytes."""
    disk = Disk()
    monkeypatch.setattr("os.fsync", disk.fsync)
    monkeypatch.setattr(pieces_module, "_FLUSH_BYTES", 500)
    written(tmp_path / "x", 20)
    assert 2 <= disk.calls <= 4


def test_a_disk_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later fsync may say that all is well: the error is told once."""
    monkeypatch.setattr("os.fsync", Disk(fails_from=2).fsync)
    monkeypatch.setattr(pieces_module, "_FLUSH_BYTES", 200)
    with pytest.raises(OSError, match="full"):
        written(tmp_path / "x", 20)


def test_a_disk_that_fails_at_the_end_is_noticed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks again after the last piece."""
    monkeypatch.setattr("os.fsync", Disk(fails_from=1).fsync)
    monkeypatch.setattr(pieces_module, "_FLUSH_BYTES", 200)
    with pytest.raises(OSError, match="full"):
        written(tmp_path / "x", 3)


def test_an_error_ends_the_work() -> None:
    """The pieces behind it are not made first: nobody will write them."""
    started: list[int] = []

    def fail() -> bytes:
        raise OSError("gone")

    def note(index: int) -> bytes:
        started.append(index)
        return b""

    pieces = [Piece(fail, 1), *(Piece(partial(note, index), 1) for index in range(50))]
    with ThreadPoolExecutor(1) as executor, pytest.raises(OSError, match="gone"):
        list(made(pieces, executor, 1, lambda: 100))
    assert len(started) <= 3
