"""Lets a child process end with its parent, however the parent ended.

The parent holds the writing end of a pipe and the child reads the other: when the parent is gone,
the kernel closes its end. (Linux' own death signal follows the thread that started the child, not
the process.)
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, Self

import psutil

#: Names the descriptor of the pipe's reading end.
PARENT_FD = "OLLAMA_TRAINER_PARENT_FD"
#: Exit code of a child whose parent is gone: try again later.
EXIT_CODE = 75


class LifeLine:
    """A pipe whose reading end a child holds: see above.

    Used as a context, which closes what was not handed on. Windows cannot hand a descriptor on so;
    there a child outlives a killed parent and is ended at the next start.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def arguments(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """The arguments for starting the child."""
        if sys.platform == "win32":
            return {"env": dict(environment)}
        return {"env": {**environment, PARENT_FD: str(self._read)}, "pass_fds": (self._read,)}

    def keep(self) -> int:
        """The writing end, now the caller's to close when the child has ended."""
        kept, self._write = self._write, -1
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._read)
        if self._write >= 0:
            os.close(self._write)


def exit_with_parent() -> None:
    """From now on this process ends when its parent does. Call it first thing in the child.

    Does nothing in a process that was not started so.
    """
    descriptor = os.environ.pop(PARENT_FD, "")
    if descriptor.isdecimal():
        threading.Thread(
            target=_watch, args=(int(descriptor),), name="parentwatch", daemon=True
        ).start()


def _watch(descriptor: int) -> None:
    try:
        while os.read(descriptor, 1):
            pass
    finally:
        for child in psutil.Process().children(recursive=True):
            try:
                child.kill()
            except psutil.Error:
                continue
        os._exit(EXIT_CODE)
