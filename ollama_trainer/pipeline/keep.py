"""A base out of Ollama stays readable for its run, also where Ollama removes it meanwhile.

Ollama removes a file at once when no name stands for it any more: when its tag is pulled again,
for instance, and a training takes hours. So the run directory gets a second name for the file,
which costs nothing, and goes when the run has ended. Where that is not allowed (on Linux, for a
file of another user) the worker holds the file open, and copies it should its name vanish.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ollama_trainer.records import BaseGguf
from ollama_trainer.workspace import atomic_path


def linked(base: BaseGguf, folder: Path) -> BaseGguf:
    """The same base by second names in `folder`, as far as it can have them.

    Args:
        folder: of the run; made where it is needed.
    """
    if base.ollama is None:
        # A file that somebody named is his own to keep.
        return base
    folder.mkdir(exist_ok=True)
    for path in _files(base):
        # Another file system, another user's file, or gone already.
        with suppress(OSError):
            os.link(path, folder / path.name)
    return _within(base, folder)


@contextmanager
def held(base: BaseGguf, folder: Path) -> Iterator[Callable[[], BaseGguf]]:
    """Keeps the base readable; yields what returns it by names that exist.

    Args:
        base: as `linked` returned it.
    """
    with ExitStack() as stack:
        handles = {}
        # On Windows an open file could not be removed: that would be Ollama's trouble.
        if base.ollama is not None and sys.platform != "win32":
            for path in _files(base):
                if path.parent != folder:
                    with suppress(OSError):
                        handles[path] = stack.enter_context(path.open("rb"))

        def existing() -> BaseGguf:
            for path, handle in handles.items():
                target = folder / path.name
                if _is_gone(path) and not target.exists():
                    handle.seek(0)
                    with atomic_path(target) as partial, partial.open("wb") as copy:
                        shutil.copyfileobj(handle, copy, 1 << 20)
            return _within(base, folder)

        yield existing


def _files(base: BaseGguf) -> list[Path]:
    return [base.gguf, *(base.ollama.projectors if base.ollama is not None else ())]


def _within(base: BaseGguf, folder: Path) -> BaseGguf:
    """The base with the names in `folder` of those files that have one."""

    def name(path: Path) -> Path:
        return folder / path.name if (folder / path.name).exists() else path

    if base.ollama is None:
        return base
    projectors = tuple(map(name, base.ollama.projectors))
    return replace(base, gguf=name(base.gguf), ollama=replace(base.ollama, projectors=projectors))


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
