"""The real server and command line, with workers that can be killed at a point of their way."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

from ollama_trainer import cli
from ollama_trainer.executors.local import LocalExecutor
from ollama_trainer.server import app

HERE = Path(__file__)
COMMAND = (sys.executable, str(HERE))


def executor() -> LocalExecutor:
    return LocalExecutor((sys.executable, str(HERE.with_name("fragile_worker.py"))))


if __name__ == "__main__":
    with mock.patch.object(app, "LocalExecutor", executor):
        sys.exit(cli.main())
