"""What a worker died of, and when it counts as silent."""

import os
import signal
import time
from pathlib import Path

import pytest

from ollama_trainer.executors import EXIT_DISK_FULL
from ollama_trainer.queue.watch import Casualties, Patience, SignsOfLife, error_without_result


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, as a list that holds its time."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def died(log: Path, code: int, why: str | None = None, *, oom: bool = False) -> tuple[str, str]:
    casualties = Casualties()
    if oom:
        casualties._before -= 1
    error = error_without_result(log, code, why, casualties)
    assert error.retryable
    return error.code, error.cause


def test_what_a_worker_died_of(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("one\n\nlast words.\n", encoding="utf-8")
    code, cause = died(log, 3)
    assert (code, cause) == (
        "worker_lost",
        "the worker process ended with exit code 3 and left no result; "
        "its last words: one | last words",
    )
    assert "SIGSEGV" in died(log, -signal.SIGSEGV)[1]
    assert "by the system because memory ran out" in died(log, -signal.SIGKILL)[1]
    assert "told nothing for 5 s and was ended" in died(log, -9, "told nothing for 5 s")[1]
    assert died(log, EXIT_DISK_FULL)[0] == "disk_full"


def test_memory_is_blamed_only_where_the_system_says_so(tmp_path: Path) -> None:
    log = tmp_path / "none"
    assert died(log, -signal.SIGKILL, oom=True)[0] == "out_of_memory"
    assert died(log, -signal.SIGTERM, oom=True)[0] == "worker_lost"
    assert died(log, -signal.SIGKILL)[0] == "worker_lost"


def test_a_heartbeat_counts_from_when_it_was_seen(tmp_path: Path, clock: list[float]) -> None:
    """A file from the future, or from before a clock was set back, is as good as any."""
    heartbeat = tmp_path / "heartbeat"
    signs = SignsOfLife(heartbeat, Patience(beat_s=60, word_s=1000))
    clock[0] += 59
    assert signs.silence() is None, "a worker takes a moment to begin"
    heartbeat.touch()
    for mtime in (5e9, 1.0, 2.0):
        os.utime(heartbeat, (mtime, mtime))
        assert signs.look(told=False)
        clock[0] += 59
        assert not signs.look(told=False)
        assert signs.silence() is None
    clock[0] += 2
    assert not signs.look(told=True)
    assert signs.silence() == "gave no sign of life for 60 s"


def test_a_worker_that_beats_and_says_nothing_is_silent(tmp_path: Path, clock: list[float]) -> None:
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    signs = SignsOfLife(heartbeat, Patience(beat_s=60, word_s=100))
    for second in range(99):
        clock[0] += 1
        os.utime(heartbeat, (second, second))
        signs.look(told=False)
        assert signs.silence() is None
    signs.look(told=True)
    clock[0] += 101
    os.utime(heartbeat, (1e6, 1e6))
    signs.look(told=False)
    assert signs.silence() == "told nothing for 100 s"
