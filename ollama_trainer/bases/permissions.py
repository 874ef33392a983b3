"""Why a file may not be read, told so that somebody can do something about it."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

import psutil

from ollama_trainer.errors import BaseModelError


def our_user() -> str:
    """The user that this program runs as."""
    return str(psutil.Process().username())


def not_allowed(what: str, path: Path) -> BaseModelError:
    """The error for a file that this user may not read.

    Args:
        what: what the file belongs to, for a person.
    """
    blocker = _blocker(path)
    us, owner = our_user(), _owner(blocker)
    way = f"Run the trainer as {owner}, or let {us} read it"
    if group := _helpful_group(blocker):
        way += f" (sudo usermod -aG {group} {us}, then log in again)"
    where = f" ({blocker} keeps it from others)" if blocker != path else ""
    return BaseModelError(
        f"The file of {what}, {path}, belongs to the user {owner}, and this program runs as {us},"
        f" who may not read it{where}",
        f"{way}. Or copy the file to where {us} can read it, and use gguf: and its absolute path.",
    )


def _blocker(path: Path) -> Path:
    """The first directory on the way that may not be entered, or else the file itself."""
    ways = (way for way in reversed(path.parents) if not os.access(way, os.X_OK))
    return next(ways, path)


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError, KeyError, NotImplementedError):
        return path.owner()
    with contextlib.suppress(OSError):
        return str(path.stat().st_uid)
    return "unknown"


def _helpful_group(path: Path) -> str:
    """The group whose members may pass; empty where none may, or on Windows."""
    if sys.platform == "win32":
        return ""
    with contextlib.suppress(OSError, KeyError):
        mode = path.stat().st_mode
        needed = stat.S_IXGRP if stat.S_ISDIR(mode) else stat.S_IRGRP
        if mode & needed:
            return path.group()
    return ""
