"""The real worker, killed at one point of its way: python fragile_worker.py RUN_DIR.

A point is a moment before something changes outside of the process: a file of the run or cache is
opened for writing, renamed or removed, or a request goes to Ollama. Environment:
    FRAGILE_COUNT   file that gets the number of points at the end
    FRAGILE_KILL    "NUMBER WHO": SIGKILL at this point, once a run, to `worker`, `server` or `both`
    FRAGILE_FILM    folder with a recorded training, which takes Unsloth's place
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

from ollama_trainer import backends, worker
from tests.recovery import film


class Points:
    """Counts points, and kills at one of them."""

    def __init__(self, run_directory: Path) -> None:
        self._run = run_directory
        self._data = str(run_directory.parent.parent)
        self.passed = 0
        number, _, self._who = os.environ.get("FRAGILE_KILL", "0 nobody").partition(" ")
        self._at = int(number)
        sys.addaudithook(self._audit)
        send = httpx.Client.send

        def fragile_send(*arguments: Any, **named: Any) -> httpx.Response:
            self._pass()
            return send(*arguments, **named)

        httpx.Client.send = fragile_send  # type: ignore[method-assign]

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir"):
            path = arguments[0]
        else:
            return
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if name.startswith(self._data) and not name.endswith(("heartbeat", "killed")):
            self._pass()

    def _pass(self) -> None:
        self.passed += 1
        killed = self._run / "killed"
        if self.passed != self._at or killed.exists():
            return
        killed.touch()
        if self._who in ("server", "both"):
            os.kill(os.getppid(), signal.SIGKILL)
        if self._who in ("worker", "both"):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    points = Points(Path(sys.argv[1]))
    if recorded := os.environ.get("FRAGILE_FILM"):
        projector = film.Projector(Path(recorded))
        mock.patch.object(backends, "get", return_value=projector).start()
    code = worker.main()
    if count := os.environ.get("FRAGILE_COUNT"):
        Path(count).write_text(str(points.passed))
    return code


if __name__ == "__main__":
    sys.exit(main())
