"""Which failures may pass by themselves, and when to try again.

Errors of the user never come here: the same data fail in the same way tomorrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from ollama_trainer.records import ErrorInfo, Waiting

#: A run is given up when its worker was lost so often in a row without having saved anything.
MAX_LOSSES = 3
#: How often the batch is halved when memory runs out.
MAX_HALVINGS = 1

Reason = Literal["ollama", "disk", "memory", "worker", "machine"]
_REASONS: dict[str, Reason] = {
    "ollama_unreachable": "ollama",
    "publish": "ollama",
    "disk_full": "disk",
    "out_of_memory": "memory",
    "worker_lost": "worker",
    "machine_busy": "machine",
    "memory_held": "machine",
}
#: Those that are waited for by time, not by number.
_BY_TIME = ("ollama", "disk", "machine")
#: Seconds until the first further try, doubled each time, up to the longest. Lost workers and
#: smaller batches go on at once, before the runs behind them: they are few.
_FIRST_S: dict[Reason, float] = {
    "ollama": 2.0,
    "disk": 5.0,
    "machine": 5.0,
    "memory": 0.0,
    "worker": 0.0,
}
_LONGEST_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """How often a run was tried already."""

    #: What it waited for last, if nothing was saved since.
    waiting: Waiting | None = None
    losses: int = 0
    halvings: int = 0
    #: Whether its training is done: a smaller batch would make it anew, and help nothing.
    trained: bool = False


def next_try(
    error: ErrorInfo, tried: Tried, retry_for_s: float, now: datetime | None = None
) -> Waiting | None:
    """When a run that failed so is tried again; None when it never is.

    Args:
        retry_for_s: how long, from the first failure on, others are waited for: Ollama, or whoever
            makes room on the disk. Lost workers and memory are bounded by their number instead.
    """
    reason = _REASONS.get(error.code) if error.retryable else None
    if reason is None:
        return None
    if reason == "memory" and tried.trained:
        reason = "worker"
    if reason == "worker" and tried.losses + 1 >= MAX_LOSSES:
        return None
    if reason == "memory" and tried.halvings >= MAX_HALVINGS:
        return None
    now = now or datetime.now(UTC)
    before = tried.waiting if tried.waiting and tried.waiting.reason == reason else None
    since = before.since if before else now
    tries = before.tries + 1 if before else 1
    deadline = since + timedelta(seconds=retry_for_s)
    if reason in _BY_TIME and now >= deadline:
        return None
    until = now + timedelta(seconds=min(_FIRST_S[reason] * 2 ** min(tries - 1, 20), _LONGEST_S))
    if reason in _BY_TIME:
        # One last try at the deadline itself.
        until = min(until, deadline)
    return Waiting(
        reason=reason, since=since, tries=tries, until=until, deadline=deadline, error=error
    )


def given_up(error: ErrorInfo, tried: Tried) -> ErrorInfo:
    """The error of a run that is not tried again, with how often it was."""
    if error.code == "worker_lost" and tried.losses:
        words = f"{error.cause}; the worker was lost {tried.losses + 1} times"
        return error.model_copy(update={"cause": words})
    waiting = tried.waiting
    if waiting is None or _REASONS.get(error.code) != waiting.reason:
        return error
    waited_s = (datetime.now(UTC) - waiting.since).total_seconds()
    words = f"{error.cause}; tried {waiting.tries + 1} times in {_duration(waited_s)}"
    return error.model_copy(update={"cause": words})


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
