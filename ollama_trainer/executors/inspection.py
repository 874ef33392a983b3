"""Looking at a data set in a process of its own: see `ollama_trainer.inspector`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ollama_trainer.errors import DatasetError, DiskFull, ServerError
from ollama_trainer.executors.parentwatch import LifeLine
from ollama_trainer.records import DatasetOptions, DatasetReport, ErrorInfo, TrainingOptions

_log = logging.getLogger(__name__)
_COMMAND = (sys.executable, "-m", "ollama_trainer.inspector")
#: Bytes of what a broken inspector printed that are logged.
_MOST_COMPLAINTS = 4000
_KINDS = {kind.code: kind for kind in (DatasetError, DiskFull)}


class Question(BaseModel):
    """What is asked."""

    model_config = ConfigDict(frozen=True)

    path: Path
    base: str
    training: TrainingOptions
    dataset: DatasetOptions
    #: Directory for what is made of a base.
    cache: Path
    #: Directory for temporary files.
    scratch: Path | None = None


class Answer(BaseModel):
    """A report, or why there is none."""

    model_config = ConfigDict(frozen=True)

    report: DatasetReport | None = None
    error: ErrorInfo | None = None


async def inspect_dataset(question: Question, most_s: float) -> DatasetReport:
    """What a run would make of a data set.

    Args:
        most_s: seconds that it may take.

    Raises:
        DatasetError: nothing in it can be used, or it must not be.
        DiskFull: there is no room for temporary files.
        ServerError: it took too long, or broke.
    """
    # Removed here: a process that is killed removes nothing.
    with (
        tempfile.TemporaryDirectory(prefix="ollama-trainer-") as scratch,
        LifeLine() as life_line,
    ):
        asked = question.model_copy(update={"scratch": Path(scratch)})
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **life_line.arguments(os.environ),
        )
        try:
            said, complaints = await asyncio.wait_for(
                process.communicate(asked.model_dump_json().encode()), most_s
            )
        except TimeoutError as error:
            raise ServerError(
                f"looking at {question.path} took longer than {most_s:g} s", "Split the file."
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode not in (0, 1) or not said:
        words = complaints[-_MOST_COMPLAINTS:].decode("utf-8", "replace").strip()
        # Not told to the caller: it may quote what stands in the file.
        _log.error("the inspector broke with exit code %s: %s", process.returncode, words)
        raise ServerError(f"looking at {question.path} failed", "See the log; please report it.")
    answer = Answer.model_validate_json(said)
    if answer.error is not None:
        kind = _KINDS.get(answer.error.code, ServerError)
        raise kind(answer.error.cause, answer.error.remedy)
    if answer.report is None:
        raise ServerError("the inspector answered nothing", "Please report it.")
    return answer.report
