"""One server a data directory: a file lock that ends with the process that holds it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Self

from ollama_trainer.errors import ServerError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

#: A killed server's lock may outlive it by the moment in which a child of it starts.
_PATIENCE_S = 2.0


class DirectoryLock:
    """Held from construction until `release` or the end of the process.

    The file says who holds it: pid, and the URL once the server listens.

    Raises:
        ServerError: another process holds it; the message names its pid.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "server.lock"
        self._file = self.path.open("a+", encoding="utf-8")
        deadline = time.monotonic() + _PATIENCE_S
        while not _try_lock(self._file.fileno()):
            if time.monotonic() > deadline:
                self._file.close()
                raise _held(directory, read_holder(directory).get("pid"))
            time.sleep(0.05)
        self.write()

    def write(self, **details: object) -> None:
        """Puts this process's pid and `details` into the file."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps({"pid": os.getpid(), **details}) + "\n")
        self._file.flush()

    def release(self) -> None:
        self._file.truncate(0)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def read_holder(directory: Path) -> dict[str, object]:
    """What the lock file says; empty where it says nothing. It may be left by a dead process."""
    try:
        holder = json.loads((directory / "server.lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _held(directory: Path, pid: object) -> ServerError:
    stop = f"Stop it (kill {pid})" if pid else "Stop it"
    return ServerError(
        f"the data directory {directory} is in use by another server, process {pid or 'unknown'}",
        f"{stop}, or choose another --data-dir.",
    )


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            # One byte far behind the text, so that the text stays readable.
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
