"""Workers as processes on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ollama_trainer.executors.parentwatch import LifeLine
from ollama_trainer.workspace import RunDirectory

#: What a worker gets on top of the server's environment: no reporting home, no forked tokenizers.
WORKER_ENVIRONMENT = {
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
#: A process's start time is read off clocks that may be stepped by about a second.
_START_TOLERANCE_S = 2.0
_NICENESS = 5


class LocalExecutor:
    """Starts `command RUN_DIR` in a process group of its own.

    Args:
        command: what runs a worker; the run directory is appended.
        stop_timeout_s: how long a stopped worker may tidy up before it is killed.
    """

    def __init__(
        self,
        command: Sequence[str] = (sys.executable, "-m", "ollama_trainer.worker"),
        *,
        stop_timeout_s: float = 8.0,
    ) -> None:
        self._command = tuple(command)
        self._stop_timeout_s = stop_timeout_s

    async def start(self, run_directory: Path) -> LocalWorker:
        """Raises:
        OSError: the process cannot be started.
        """
        with LifeLine() as life_line, RunDirectory(run_directory).log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                str(run_directory),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **life_line.arguments(os.environ | WORKER_ENVIRONMENT),
            )
            return LocalWorker(process, life_line.keep(), self._stop_timeout_s)

    async def end_survivor(self, pid: int, started: float) -> None:
        """Kills the process with this pid and start time, and its group, if it still lives."""
        while _lives(pid, started):
            # No time to tidy up: its attempt is lost, and nothing that it does may count.
            _signal_group(pid, _KILL)
            await asyncio.sleep(0.05)


class LocalWorker:
    """A worker process and its group."""

    def __init__(
        self, process: asyncio.subprocess.Process, life_line: int, stop_timeout_s: float
    ) -> None:
        self._process = process
        self._life_line = life_line
        self._stop_timeout_s = stop_timeout_s
        self._started = 0.0
        # A worker that is already gone has no start time, and needs none.
        with suppress(psutil.Error):
            info = psutil.Process(process.pid)
            self._started = info.create_time()
            # The server must answer in milliseconds while the worker takes every core.
            info.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else _NICENESS)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def started(self) -> float:
        return self._started

    async def wait(self) -> int:
        code = await self._process.wait()
        if self._life_line >= 0:
            os.close(self._life_line)
            self._life_line = -1
            # What the worker started and left behind would hold memory and cores.
            _signal_group(self.pid, _KILL)
        return code

    async def stop(self) -> None:
        if self._process.returncode is None:
            _signal_group(self.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), self._stop_timeout_s)
            except TimeoutError:
                _signal_group(self.pid, _KILL)
        await self.wait()


_KILL = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signals a process group; one that is gone already is fine."""
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            os.kill(pid, number)
        else:
            os.killpg(pid, number)


def _lives(pid: int, started: float) -> bool:
    """Whether the process with this pid is the one that started then, and still runs."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < _START_TOLERANCE_S
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        # Gone, or somebody else's.
        return False
