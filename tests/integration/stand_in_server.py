"""The real server and command line, with the stand-in for the worker."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

from ollama_trainer import cli, client
from ollama_trainer.executors.local import LocalExecutor
from ollama_trainer.server import app

HERE = Path(__file__)
WORKER_COMMAND = (sys.executable, str(HERE.with_name("stand_in_worker.py")))
#: Takes the arguments of `ollama-trainer`.
COMMAND = (sys.executable, str(HERE))


def executor() -> LocalExecutor:
    return LocalExecutor(WORKER_COMMAND, stop_timeout_s=1)


if __name__ == "__main__":
    with (
        mock.patch.object(app, "LocalExecutor", executor),
        mock.patch.object(client, "SERVE_COMMAND", (*COMMAND, "serve")),
    ):
        sys.exit(cli.main())
