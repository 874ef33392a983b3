"""Reads what a worker appends to its events file, line by whole line."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pydantic import ValidationError

from ollama_trainer.records import Event

_log = logging.getLogger(__name__)
#: At most so much is read at once; the rest comes with the next call.
_CHUNK_BYTES = 1 << 20
#: Of the progress within so many seconds the last is kept: a night's training tells thousands.
_PROGRESS_EVERY_S = 1.0


class EventTail:
    """The events in a file from a place on.

    Args:
        offset: bytes that were read before, by whoever came before.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self._path = path
        self.offset = offset
        self._held: Event | None = None
        self._last_progress_s = float("-inf")

    def read(self) -> list[Event]:
        """Events that came since the last call; `offset` is then behind them.

        A line that is no event is skipped. So is progress that comes too fast, but for the last
        before something else.
        """
        try:
            # A crash of the machine may have cost the end of the file.
            self.offset = min(self.offset, self._path.stat().st_size)
            with self._path.open("rb") as file:
                file.seek(self.offset)
                chunk = file.read(_CHUNK_BYTES)
                while b"\n" not in chunk and (more := file.read(_CHUNK_BYTES)):
                    chunk += more
        except FileNotFoundError:
            chunk = b""
        except OSError as error:
            _log.warning("%s is read later: %s", self._path, error)
            chunk = b""
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self.offset += len(whole)
        lines = [line for line in whole.split(b"\n") if line]
        return self._thinned([event for line in lines if (event := _parse(line)) is not None])

    def _thinned(self, events: list[Event]) -> list[Event]:
        told: list[Event] = []
        for event in events:
            if event.kind == "progress":
                self._held = event
                continue
            told += self._release(always=True)
            told.append(event)
        return told + self._release()

    def _release(self, *, always: bool = False) -> list[Event]:
        due = always or time.monotonic() - self._last_progress_s >= _PROGRESS_EVERY_S
        if self._held is None or not due:
            return []
        self._last_progress_s = time.monotonic()
        held, self._held = self._held, None
        return [held]

    def rest(self) -> list[Event]:
        """All that is left, at the worker's end."""
        told: list[Event] = []
        while True:
            before = self.offset
            told += self.read()
            if self.offset == before:
                return told + self._release(always=True)


def _parse(line: bytes) -> Event | None:
    try:
        return Event.model_validate_json(line)
    except ValidationError:
        _log.warning("not an event: %.200r", line)
        return None


def last_lines(path: Path, n_lines: int = 8, n_bytes: int = 4096) -> list[str]:
    """The last non-empty lines of a log; empty where there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - n_bytes))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-n_lines:]
