"""Follows one worker to its end: passes on what it tells, and ends it when it is silent."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from ollama_trainer.errors import (
    DiskFull,
    OutOfMemory,
    StoreUnavailable,
    TrainerError,
    WorkerLost,
)
from ollama_trainer.executors import EXIT_DISK_FULL, Worker
from ollama_trainer.queue.rows import Run
from ollama_trainer.queue.store import RunStore
from ollama_trainer.queue.tail import EventTail, last_lines
from ollama_trainer.records import Event
from ollama_trainer.workspace import RunDirectory

_log = logging.getLogger(__name__)

#: Seconds between two looks at a worker.
_POLL_S = 0.25
#: A worker whose result is written has so many seconds to end by itself.
_FAREWELL_S = 60.0
#: Seconds between two heartbeats that are stored.
_BEAT_EVERY_S = 10.0
_SIGKILL = 9
_SAID_CHARACTERS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a worker may be silent, in seconds."""

    #: Without a heartbeat, which a worker gives every few seconds whatever it computes.
    beat_s: float
    #: Without telling anything.
    word_s: float


class Chronicle:
    """Stores what a run's worker tells. What cannot be stored now is kept until it can."""

    def __init__(self, store: RunStore, run: Run, directory: RunDirectory) -> None:
        self._store = store
        self._run = run
        self._tail = EventTail(directory.events, run.events_offset)
        self._unstored: list[Event] = []

    async def store(self, *, rest: bool = False) -> bool:
        """Stores what is new; returns whether anything was.

        Args:
            rest: the worker has ended, so that nothing more will come.

        Raises:
            StoreUnavailable: the rest could not be stored.
        """
        before = self._tail.offset
        read = self._tail.rest if rest else self._tail.read
        self._unstored += await asyncio.to_thread(read)
        came = self._tail.offset != before
        if came or self._unstored:
            try:
                await self._store.record(self._run, self._unstored, self._tail.offset)
            except StoreUnavailable as error:
                if rest:
                    raise
                _log.warning("events of run %s wait: %s", self._run.run_id, error.cause)
            else:
                self._unstored = []
        return came


class SignsOfLife:
    """When a worker was last seen to live, and to get on.

    Counted from when this process saw a change, never from a file's time: clocks are stepped, and
    machines sleep.
    """

    def __init__(self, heartbeat: Path, patience: Patience) -> None:
        self._heartbeat = heartbeat
        self._patience = patience
        self._seen: int | None = None
        self._beat = self._word = time.monotonic()

    def look(self, *, told: bool) -> bool:
        """Looks at the heartbeat; returns whether there was a new one.

        Args:
            told: it told something since the last look.
        """
        try:
            beat = self._heartbeat.stat().st_mtime_ns
        except OSError:
            beat = None
        new = beat != self._seen
        self._seen = beat
        if new:
            self._beat = time.monotonic()
        if told:
            self._word = time.monotonic()
        return new

    def silence(self) -> str | None:
        """What is missing for too long, in words."""
        now = time.monotonic()
        if now - self._beat > self._patience.beat_s:
            return f"gave no sign of life for {self._patience.beat_s:g} s"
        if now - self._word > self._patience.word_s:
            return f"told nothing for {self._patience.word_s:g} s"
        return None


class Watcher:
    """Follows one worker.

    Args:
        token: of the worker's lease, to store its heartbeats by.
        result: the file that is its last word.
        chronicle: None where a worker's events are nobody's.
        cancelled: ends the worker when it is set.
    """

    def __init__(
        self,
        store: RunStore,
        directory: RunDirectory,
        token: int,
        *,
        result: Path,
        patience: Patience,
        chronicle: Chronicle | None,
        cancelled: asyncio.Event,
    ) -> None:
        self._store = store
        self._token = token
        self._result = result
        self._chronicle = chronicle
        self._cancelled = cancelled
        self._signs = SignsOfLife(directory.heartbeat, patience)
        self._beat_stored = 0.0

    async def follow(self, worker: Worker) -> tuple[int, str | None]:
        """Returns the exit code, and why the worker had to be ended, if it had."""
        ended = asyncio.create_task(worker.wait())
        cancelled = asyncio.create_task(self._cancelled.wait())
        why: str | None = None
        left_s = _FAREWELL_S
        try:
            while not ended.done():
                await asyncio.wait(
                    {ended, cancelled}, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED
                )
                told = await self._chronicle.store() if self._chronicle else True
                new = self._signs.look(told=told)
                # Judged before anything else is waited for: the database may take its time.
                why = "was cancelled" if self._cancelled.is_set() else self._signs.silence()
                await self._beat(new)
                left_s -= _POLL_S if self._result.exists() else 0.0
                if why or left_s < 0:
                    await worker.stop()
                    break
            exit_code = await ended
        finally:
            cancelled.cancel()
            ended.cancel()
        if self._chronicle:
            await self._chronicle.store(rest=True)
        return exit_code, why

    async def _beat(self, new: bool) -> None:
        if new and time.monotonic() - self._beat_stored > _BEAT_EVERY_S:
            self._beat_stored = time.monotonic()
            try:
                await self._store.beat(self._token)
            except StoreUnavailable as error:
                _log.warning("a heartbeat could not be stored: %s", error.cause)


class Casualties:
    """Whether the system killed processes for their memory since it was made (Linux tells)."""

    def __init__(self) -> None:
        self._before = _oom_kills()

    def any(self) -> bool:
        return _oom_kills() > self._before


def error_without_result(
    log: Path, exit_code: int, why: str | None, casualties: Casualties
) -> TrainerError:
    """What a worker that left no result died of.

    Args:
        why: why it was ended from outside, in words.
    """
    if exit_code == EXIT_DISK_FULL:
        return DiskFull(
            "The disk is full, so that not even the result could be written",
            "Make room where the data directory lies.",
        )
    if exit_code == -_SIGKILL and why is None and casualties.any():
        return OutOfMemory(
            "The system ended the worker because memory ran out",
            "Set a smaller batch_size, or choose a smaller base.",
        )
    how = f"ended with exit code {exit_code}"
    if exit_code < 0:
        how = f"was ended by {_signal_name(-exit_code)}"
    if exit_code == -_SIGKILL:
        how += " (by hand, or by the system because memory ran out)"
    if why is not None:
        how = f"{why} and was ended"
    said = " | ".join(last_lines(log))[-_SAID_CHARACTERS:]
    words = f"; its last words: {said.rstrip('. ')}" if said else ""
    return WorkerLost(
        f"the worker process {how} and left no result{words}",
        f"See {log}, then train again with a fresh runId.",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _oom_kills() -> int:
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
