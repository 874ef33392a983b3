"""A process that looks after the models in Ollama: python -m ollama_trainer.housekeeper.

Reads what is asked from its standard input and writes the answer to its standard output, as JSON in
one line. A process of its own, because the command line imports nothing that talks to Ollama.
"""

from __future__ import annotations

import sys

from ollama_trainer.errors import TrainerError
from ollama_trainer.executors.housekeeping import Answer, Question
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.housekeeping import Stock
from ollama_trainer.ollama import open_api
from ollama_trainer.ollama.host import resolve
from ollama_trainer.records import ErrorInfo
from ollama_trainer.workspace import DataDirectory


def main() -> int:
    """Answers one question; returns the exit code."""
    exit_with_parent()
    question = Question.model_validate_json(sys.stdin.buffer.read())
    try:
        answer = _answer(question)
    except TrainerError as error:
        answer = Answer(error=ErrorInfo.of(error))
    sys.stdout.buffer.write(answer.model_dump_json().encode() + b"\n")
    return 0 if answer.error is None else 1


def _answer(question: Question) -> Answer:
    endpoint = resolve(question.ollama_host)
    with open_api(endpoint) as api:
        api.check_version()
        stock = Stock(api, endpoint.url, DataDirectory(question.data_dir))
        match question.what:
            case "models":
                return Answer(models=stock.models(question.job))
            case "rm":
                return Answer(removal=stock.remove(question.names))
            case "gc":
                removal = stock.collect(question.keep, question.job, dry_run=question.dry_run)
                return Answer(removal=removal)


if __name__ == "__main__":
    sys.exit(main())
