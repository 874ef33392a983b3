"""Pieces of a file, made side by side and written in their order.

numpy leaves Python's own lock alone while it works, so threads are enough. What a piece holds is
the same however many of them there are, and so is what is written.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

#: What a piece is written as: anything that gives its bytes away, such as an array.
Data = Any


#: Written bytes from which on they are flushed.
_FLUSH_BYTES = 32 << 20
#: Of a block that is taken and given back before the work begins.
_SETTLING_BYTES = 8 << 20


def settle_allocator() -> None:
    """Lets glibc keep what chunks give back, for the next ones.

    It returns memory to the system as soon as more than twice the largest block ever given back is
    free, and what it asks for again arrives page by page: that takes as long as all other work on a
    chunk. Other allocators take no notice.
    """
    bytes(_SETTLING_BYTES)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the file that is still to be made."""

    make: Callable[[], Data]
    #: Bytes that making it takes, its content included.
    n_bytes: int
    #: Whether every piece before this one is to be done before the next is asked for.
    waits: bool = False


def made(
    pieces: Iterable[Piece], executor: Executor, n_workers: int, room: Callable[[], int]
) -> Iterator[Data]:
    """The contents of pieces, in their order.

    Args:
        pieces: asked for one by one, as there is room.
        n_workers: threads that the executor has.
        room: tells how many bytes the pieces in work may take together; a larger one is made alone.
    """
    waiting: deque[tuple[Future[Data], int]] = deque()
    held = 0
    try:
        for piece in pieces:
            while waiting and (
                piece.waits or held + piece.n_bytes > room() or len(waiting) > 2 * n_workers
            ):
                future, n_bytes = waiting.popleft()
                yield future.result()
                held -= n_bytes
            waiting.append((executor.submit(piece.make), piece.n_bytes))
            held += piece.n_bytes
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        # Left early, nobody needs what is still to be made.
        for future, _ in waiting:
            future.cancel()


class Flusher:
    """Has a file put on the disk while its next pieces are made. Used as a context.

    Else the disk rests until the file is whole, and then everybody waits for the disk.
    """

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._executor = ThreadPoolExecutor(1)
        self._flushed_to = 0
        self._flush: Future[None] | None = None

    def __enter__(self) -> Flusher:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._executor.shutdown()
        if kind is None and self._flush is not None:
            self._flush.result()

    def go_on(self) -> None:
        """Flushes what was written, unless that is little, or an earlier flush is not done.

        Raises:
            OSError: the earlier one failed.
        """
        position = self._sink.tell()
        if position - self._flushed_to < _FLUSH_BYTES:
            return
        if self._flush is not None:
            if not self._flush.done():
                return
            self._flush.result()
        self._flush = self._executor.submit(os.fsync, self._sink.fileno())
        self._flushed_to = position
