"""Where a worker runs: an executor starts it on a run directory, and says how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

#: Exit code of a worker that could not even write its result, for want of room.
EXIT_DISK_FULL = 74


class Worker(Protocol):
    """A worker process that was started."""

    @property
    def pid(self) -> int: ...

    @property
    def started(self) -> float:
        """Seconds since the epoch; with the pid it names one process for ever."""
        ...

    async def wait(self) -> int:
        """Returns the exit code, negative for the signal that ended it, once it ended."""
        ...

    async def stop(self) -> None:
        """Ends it and everything that it started, within a bound."""
        ...


class Executor(Protocol):
    """Starts workers."""

    async def start(self, run_directory: Path) -> Worker: ...

    async def end_survivor(self, pid: int, started: float) -> None:
        """Ends a worker that an earlier server started, if it still lives."""
        ...
