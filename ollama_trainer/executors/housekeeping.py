"""Looking after the models in Ollama in a process of its own: see `ollama_trainer.housekeeper`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ollama_trainer.errors import ServerError, TrainerError
from ollama_trainer.executors.asking import ask
from ollama_trainer.records import ErrorInfo
from ollama_trainer.reports import ModelsReport, RemovalReport

_log = logging.getLogger(__name__)
#: Seconds. Each of many models may have to leave memory first.
_MOST_S = 3600.0


class Question(BaseModel):
    """What is to be done."""

    model_config = ConfigDict(frozen=True)

    what: Literal["models", "rm", "gc"]
    ollama_host: str
    #: Absolute; its runs tell what they uploaded.
    data_dir: Path
    #: For `models` and `gc`: only those of this job.
    job: str | None = None
    #: For `rm`.
    names: tuple[str, ...] = ()
    #: For `gc`.
    keep: int = 3
    dry_run: bool = False


class Answer(BaseModel):
    """What was asked for, or why it is not to be had."""

    model_config = ConfigDict(frozen=True)

    models: ModelsReport | None = None
    removal: RemovalReport | None = None
    error: ErrorInfo | None = None


async def list_models(question: Question) -> ModelsReport:
    """The models that this program made.

    Raises:
        TrainerError: no Ollama answers, or the packages for it are missing.
    """
    report = (await _ask(question)).models
    if report is None:
        raise ServerError("the housekeeper answered nothing", "Please report it.")
    return report


async def remove_models(question: Question) -> RemovalReport:
    """What was removed, or would be.

    Raises:
        TrainerError: one is not to be removed, no Ollama answers, or the packages for it are
            missing.
    """
    report = (await _ask(question)).removal
    if report is None:
        raise ServerError("the housekeeper answered nothing", "Please report it.")
    return report


async def _ask(question: Question) -> Answer:
    asked = question.model_dump_json().encode()
    try:
        reply = await ask("ollama_trainer.housekeeper", question=asked, most_s=_MOST_S)
    except TimeoutError as error:
        raise ServerError(f"it took longer than {_MOST_S:g} s", "Look after Ollama.") from error
    if reply.code not in (0, 1) or not reply.said:
        _log.error("the housekeeper broke with code %s: %s", reply.code, reply.complaints)
        raise ServerError("looking after the models failed", "See above; please report it.")
    answer = Answer.model_validate_json(reply.said)
    if answer.error is not None:
        raise TrainerError(answer.error.cause, answer.error.remedy)
    return answer
