"""Looking at this machine and its models in a process of its own: see `ollama_trainer.surveyor`."""

from __future__ import annotations

import logging
import os
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ollama_trainer.errors import ServerError, TrainerError
from ollama_trainer.executors.asking import ask
from ollama_trainer.records import ErrorInfo
from ollama_trainer.reports import BasesReport, DoctorReport
from ollama_trainer.settings import CONFIG_VARIABLE, Settings

_log = logging.getLogger(__name__)
#: Seconds. A disk may have to wake up for each of many models; packages take long the first time.
_MOST_S = 600.0


class Survey(BaseModel):
    """What was asked for, or why it is not to be had."""

    model_config = ConfigDict(frozen=True)

    bases: BasesReport | None = None
    doctor: DoctorReport | None = None
    error: ErrorInfo | None = None


async def survey_bases(settings: Settings) -> BasesReport:
    """The models in Ollama, as bases.

    Raises:
        TrainerError: no Ollama answers, or the packages of a training are missing.
    """
    report = (await _survey("bases", settings)).bases
    if report is None:
        raise ServerError("the surveyor answered nothing", "Please report it.")
    return report


async def survey_machine(settings: Settings) -> DoctorReport:
    """Whether this machine can train.

    Raises:
        ServerError: it could not even be looked at.
    """
    report = (await _survey("doctor", settings)).doctor
    if report is None:
        raise ServerError("the surveyor answered nothing", "Please report it.")
    return report


async def _survey(what: Literal["bases", "doctor"], settings: Settings) -> Survey:
    # Settled already: the child needs no settings file, and none may add to them.
    environment = settings.as_environment() | {CONFIG_VARIABLE: os.devnull}
    try:
        reply = await ask("ollama_trainer.surveyor", what, most_s=_MOST_S, environment=environment)
    except TimeoutError as error:
        raise ServerError(
            f"looking took longer than {_MOST_S:g} s", "Look after the disks."
        ) from error
    if reply.code not in (0, 1) or not reply.said:
        _log.error("the surveyor broke with exit code %s: %s", reply.code, reply.complaints)
        raise ServerError("looking at this machine failed", "See above; please report it.")
    # Packages may print before it answers.
    survey = Survey.model_validate_json(reply.said.strip().rpartition(b"\n")[2])
    if survey.error is not None:
        raise TrainerError(survey.error.cause, survey.error.remedy)
    return survey
