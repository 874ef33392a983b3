"""A process that looks at one data set: python -m ollama_trainer.inspector.

Reads what is asked from its standard input and writes the report, or the error, to its standard
output, both as JSON. A process of its own, because a large file takes seconds of computing, which
a server that answers within milliseconds does not have.
"""

from __future__ import annotations

import sys

from ollama_trainer.errors import TrainerError
from ollama_trainer.executors.inspection import Answer, Question
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.pipeline.dataset import inspect
from ollama_trainer.records import ErrorInfo


def main() -> int:
    """Answers one question; returns the exit code."""
    exit_with_parent()
    question = Question.model_validate_json(sys.stdin.buffer.read())
    answer = _answer(question)
    sys.stdout.buffer.write(answer.model_dump_json().encode())
    return 0 if answer.error is None else 1


def _answer(question: Question) -> Answer:
    try:
        return Answer(
            report=inspect(
                question.path,
                question.base,
                question.training,
                question.dataset,
                question.cache,
                question.scratch,
                ollama_host=question.ollama_host,
                name_prefix=question.name_prefix,
            )
        )
    except TrainerError as error:
        return Answer(error=ErrorInfo.of(error))


if __name__ == "__main__":
    sys.exit(main())
