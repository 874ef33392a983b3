"""What a process takes: seconds, anonymous memory, bytes written. Linux tells it in /proc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.01


@dataclass(frozen=True, slots=True)
class Taken:
    """What a command took, from its start to its end."""

    seconds: float
    #: The most that it held at any time, as far as a look every hundredth of a second can tell.
    peak_bytes: int
    written_bytes: int
    #: What it said on its standard output.
    said: str


def measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Taken:
    """Runs a command.

    Raises:
        RuntimeError: it failed.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | (environment or {}),
    )  # fmt: skip
    said = _Reader(process)
    peak = 0
    # Looked at without being taken away: a process that is waited for has no numbers any more.
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        peak = max(peak, _number(process.pid, "status", "RssAnon:", 1024))
        time.sleep(_EVERY_S)
    seconds = time.monotonic() - started
    written = _number(process.pid, "io", "write_bytes:", 1)
    output, errors = said.all()
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{errors[-4000:]}")
    return Taken(seconds, peak, written, output)


class _Reader:
    """Both outputs of a process, read beside it so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._parts = ["", ""]
        streams = enumerate((process.stdout, process.stderr))
        self._threads = [
            threading.Thread(target=self._read, args=(index, stream)) for index, stream in streams
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, index: int, stream: object) -> None:
        self._parts[index] = stream.read()  # type: ignore[attr-defined]

    def all(self) -> tuple[str, str]:
        for thread in self._threads:
            thread.join()
        return self._parts[0], self._parts[1]


def _number(pid: int, file: str, key: str, unit: int) -> int:
    """A number of /proc/PID; 0 while the process begins or ends."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * unit for line in lines if line.startswith(key)), 0)


def this_script(script: str, *arguments: object) -> list[str]:
    """A command that runs a script beside this one."""
    return [sys.executable, str(Path(script).resolve()), *map(str, arguments)]


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds that a copy of a file takes until it is on the disk."""
    started = time.monotonic()
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 24)
            writer.flush()
            os.fsync(writer.fileno())
        return time.monotonic() - started
    finally:
        target.unlink(missing_ok=True)
