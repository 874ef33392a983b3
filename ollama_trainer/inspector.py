"""A process that looks at one data set: python -m ollama_trainer.inspector.

Reads what is asked from its standard input and writes the report, or the error, to its standard
output, both as JSON. A process of its own, because a large file takes seconds of computing, which
a server that answers within milliseconds does not have.
"""

from __future__ import annotations

import sys

from ollama_trainer.errors import DiskFull, TrainerError, is_disk_full
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
        report = inspect(question.path, question.base, question.training, question.dataset)
    except TrainerError as error:
        return Answer(error=ErrorInfo.of(error))
    except OSError as error:
        if not is_disk_full(error):
            raise
        full = DiskFull(f"The disk is full: {error}", "Make room for temporary files.")
        return Answer(error=ErrorInfo.of(full))
    return Answer(report=report)


if __name__ == "__main__":
    sys.exit(main())
