"""Looking at a data set in a process of its own: see `ollama_trainer.inspector`."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ollama_trainer.errors import DatasetError, DiskFull, ServerError
from ollama_trainer.executors.asking import ask
from ollama_trainer.records import DatasetOptions, DatasetReport, ErrorInfo, TrainingOptions

_log = logging.getLogger(__name__)
_INSPECTOR = "ollama_trainer.inspector"
_KINDS = {kind.code: kind for kind in (DatasetError, DiskFull)}


class Question(BaseModel):
    """What is asked."""

    model_config = ConfigDict(frozen=True)

    path: Path
    #: Empty: the only one in Ollama.
    base: str
    ollama_host: str
    name_prefix: str
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
    with tempfile.TemporaryDirectory(prefix="ollama-trainer-") as scratch:
        asked = question.model_copy(update={"scratch": Path(scratch)})
        try:
            reply = await ask(_INSPECTOR, question=asked.model_dump_json().encode(), most_s=most_s)
        except TimeoutError as error:
            raise ServerError(
                f"looking at {question.path} took longer than {most_s:g} s", "Split the file."
            ) from error
    if reply.code not in (0, 1) or not reply.said:
        # Not told to the caller: it may quote what stands in the file.
        _log.error("the inspector broke with exit code %s: %s", reply.code, reply.complaints)
        raise ServerError(f"looking at {question.path} failed", "See the log; please report it.")
    answer = Answer.model_validate_json(reply.said)
    if answer.error is not None:
        kind = _KINDS.get(answer.error.code, ServerError)
        raise kind(answer.error.cause, answer.error.remedy)
    if answer.report is None:
        raise ServerError("the inspector answered nothing", "Please report it.")
    return answer.report
