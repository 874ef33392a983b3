"""Reads what a worker appends to its events file, line by whole line."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from ollama_trainer.records import Event

_log = logging.getLogger(__name__)
#: At most so much is read at once; the rest comes with the next call.
_CHUNK_BYTES = 1 << 20


class EventTail:
    """The events that are appended from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read(self) -> list[Event]:
        """Events that came since the last call. A line that is no event is skipped."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [event for line in lines if line and (event := _parse(line)) is not None]


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
