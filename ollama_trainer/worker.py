"""A worker: python -m ollama_trainer.worker RUN_DIR.

Reads the run directory, does what its lease says, and writes into the run directory and into
nothing else of the server's; its result is its last word. SIGTERM asks it to tidy up and end.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

from ollama_trainer.errors import DiskFull, LeaseLost, OutOfMemory, TrainerError, is_disk_full
from ollama_trainer.executors import EXIT_DISK_FULL
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.pipeline.attempt import Run
from ollama_trainer.pipeline.run import TASKS
from ollama_trainer.records import ErrorInfo, RunResult
from ollama_trainer.workspace import RunDirectory

log = logging.getLogger(__name__)

EXIT_COMPLETED, EXIT_FAILED = 0, 1
#: Another worker has taken over; nothing was written.
EXIT_LEASE_LOST = 76
#: As a shell tells of a process that SIGTERM ended.
EXIT_STOPPED = 143
_HEARTBEAT_S = 2.0


class Stopped(BaseException):
    """SIGTERM came. Not an Exception, so that nothing takes it for a failure that may pass."""


def main(arguments: list[str] | None = None) -> int:
    """Does one task in one run directory; returns the exit code."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    exit_with_parent()
    directory = RunDirectory(Path(path))
    start_heartbeat(directory)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return _work(directory)
    except Stopped:
        log.info("stopped")
        return EXIT_STOPPED
    except LeaseLost as error:
        log.error("%s", error)
        return EXIT_LEASE_LOST
    except OSError as error:
        if not is_disk_full(error):
            raise
        log.error("the disk is full: %s", error)
        return EXIT_DISK_FULL


def _work(directory: RunDirectory) -> int:
    run = Run(directory, directory.read_spec(), directory.read_lease())
    result = _result(run)
    run.check_lease()
    directory.write_result(
        result.model_copy(update={"token": run.lease.token}), task=run.lease.task
    )
    return EXIT_COMPLETED if result.status == "completed" else EXIT_FAILED


def _result(run: Run) -> RunResult:
    try:
        return TASKS[run.lease.task](run)
    except LeaseLost:
        raise
    except Exception as error:
        log.exception("the run failed")
        return _failed(run, _said(run, error))


def _said(run: Run, error: Exception) -> ErrorInfo:
    """What the server is told of an error."""
    if is_disk_full(error):
        return ErrorInfo.of(
            DiskFull(f"The disk is full: {error}".rstrip("."), "Make room for the data directory.")
        )
    if isinstance(error, TrainerError):
        return ErrorInfo.of(error)
    if isinstance(error, MemoryError):
        remedy = "Set a smaller batch_size, or choose a smaller base."
        return ErrorInfo.of(OutOfMemory("The machine ran out of memory", remedy))
    return ErrorInfo(
        code="internal",
        cause=f"An unexpected error ended the run: {type(error).__name__}: {error}",
        remedy=f"Its traceback is in {run.directory.log}; please report it.",
    )


def _failed(run: Run, error: ErrorInfo) -> RunResult:
    return RunResult(status="failed", error=error, seconds=run.seconds, metrics=run.metrics)


def start_heartbeat(directory: RunDirectory) -> None:
    """From now on the server sees that this process lives, whatever it computes."""

    def beat() -> None:
        pause = threading.Event()
        while True:
            try:
                directory.heartbeat.touch()
            except OSError:
                log.warning("a heartbeat could not be given")
            pause.wait(_HEARTBEAT_S)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()


def _stop(*_: object) -> NoReturn:
    # Once is enough: what is tidied up must not be broken off.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
