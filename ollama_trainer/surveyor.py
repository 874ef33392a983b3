"""A process that looks at this machine: python -m ollama_trainer.surveyor bases|doctor.

Settings come from the environment; the answer goes to standard output, as JSON in one line. A
process of its own, because headers of models take memory, and the packages of a training seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from ollama_trainer.checks import examine, free_memory
from ollama_trainer.errors import TrainerError
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.executors.surveying import Survey
from ollama_trainer.ollama.host import resolve
from ollama_trainer.pipeline.survey import local_bases
from ollama_trainer.records import ErrorInfo
from ollama_trainer.reports import BasesReport
from ollama_trainer.settings import Settings, load_settings


def main() -> int:
    """Answers one question; returns the exit code."""
    exit_with_parent()
    (what,) = sys.argv[1:]
    survey = _answer(_LOOKS[what])
    sys.stdout.buffer.write(b"\n" + survey.model_dump_json().encode() + b"\n")
    return 0 if survey.error is None else 1


def _answer(look: Callable[[Settings], Survey]) -> Survey:
    try:
        return look(load_settings())
    except TrainerError as error:
        return Survey(error=ErrorInfo.of(error))


def _bases(settings: Settings) -> Survey:
    models = local_bases(settings.ollama_host, settings.name_prefix, settings.training)
    url = resolve(settings.ollama_host).url
    return Survey(bases=BasesReport(ollama=url, memory=free_memory(), models=tuple(models)))


def _doctor(settings: Settings) -> Survey:
    return Survey(doctor=examine(settings))


_LOOKS = {"bases": _bases, "doctor": _doctor}

if __name__ == "__main__":
    sys.exit(main())
