"""Asking a process of this program's own, which has one question to answer and then ends."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from ollama_trainer.executors.parentwatch import LifeLine


class Reply(NamedTuple):
    """What came back."""

    code: int
    said: bytes
    #: What it printed besides, cut to its end.
    complaints: str


#: Bytes of what a broken process printed that are of use to somebody.
_MOST_COMPLAINTS = 4000


@asynccontextmanager
async def child(
    *command: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """A process with three pipes, that ends when it is left, or with this process.

    Args:
        environment: set on top of this process's variables.
    """
    with LifeLine() as life_line:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **life_line.arguments(os.environ | dict(environment or {})),
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def end_of(complaints: bytes) -> str:
    """The end of what a process printed besides, as text."""
    return complaints[-_MOST_COMPLAINTS:].decode("utf-8", "replace").strip()


async def ask(
    module: str,
    *arguments: str,
    question: bytes = b"",
    most_s: float,
    environment: Mapping[str, str] | None = None,
) -> Reply:
    """Runs `python -m module`, which ends with this process, however that ends.

    Args:
        question: for its standard input.
        most_s: seconds that it may take.
        environment: set on top of this process's variables.

    Raises:
        TimeoutError: it took longer, and was ended.
    """
    command = (sys.executable, "-m", module, *arguments)
    async with child(*command, environment=environment) as process:
        said, complaints = await asyncio.wait_for(process.communicate(question), most_s)
    return Reply(process.returncode or 0, said, end_of(complaints))
