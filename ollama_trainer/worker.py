"""A run's own process: python -m ollama_trainer.worker RUN_DIR.

Reads the run directory, writes into it and into nothing else of the server's; whatever happens,
result.json is its last word. Exit codes: 0 completed, 1 failed with a result, others died.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from ollama_trainer.errors import OutOfMemory, TrainerError
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.pipeline.run import Run, execute
from ollama_trainer.records import ErrorInfo, RunResult
from ollama_trainer.workspace import RunDirectory

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Runs one run; returns the exit code."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    exit_with_parent()
    directory = RunDirectory(Path(path))
    result = _result(directory)
    directory.write_result(result)
    return 0 if result.status == "completed" else 1


def _result(directory: RunDirectory) -> RunResult:
    run = Run(directory, directory.read_spec())
    try:
        return execute(run)
    except TrainerError as error:
        log.exception("the run failed")
        return _failed(run, ErrorInfo.of(error))
    except MemoryError:
        log.exception("out of memory")
        remedy = "Set a smaller batch_size, or choose a smaller base."
        return _failed(run, ErrorInfo.of(OutOfMemory("The machine ran out of memory", remedy)))
    except Exception as error:
        log.exception("an unexpected error")
        cause = ErrorInfo(
            code="internal",
            cause=f"An unexpected error ended the run: {type(error).__name__}: {error}",
            remedy=f"Its traceback is in {directory.log}; please report it.",
        )
        return _failed(run, cause)


def _failed(run: Run, error: ErrorInfo) -> RunResult:
    return RunResult(status="failed", error=error, seconds=run.seconds, metrics=run.metrics)


if __name__ == "__main__":
    sys.exit(main())
