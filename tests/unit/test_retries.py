"""What is tried again, how often, and until when."""

from datetime import UTC, datetime, timedelta

import pytest

from ollama_trainer.errors import (
    BackendUnavailable,
    BaseModelError,
    DatasetError,
    DiskFull,
    ExportError,
    MachineBusy,
    MemoryHeld,
    NothingLearned,
    OllamaUnreachable,
    OutOfMemory,
    PublishError,
    TrainerError,
    TrainingFailed,
    WorkerLost,
    is_disk_full,
)
from ollama_trainer.queue.retries import MAX_LOSSES, Tried, given_up, next_try
from ollama_trainer.records import ErrorInfo

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AWAY = ErrorInfo.of(OllamaUnreachable("no Ollama", "Start it."))


@pytest.mark.parametrize(
    "error",
    [DatasetError, BaseModelError, BackendUnavailable, TrainingFailed, ExportError,
     NothingLearned, PublishError],
)  # fmt: skip
def test_what_will_not_pass_is_never_tried_again(error: type[TrainerError]) -> None:
    assert next_try(ErrorInfo.of(error("cause")), Tried(), 1e6) is None


def test_ollama_is_waited_for_with_growing_pauses_up_to_a_minute() -> None:
    tried, now, pauses = Tried(), NOW, []
    for _ in range(8):
        waiting = next_try(AWAY, tried, 3600, now)
        assert waiting is not None
        pauses.append((waiting.until - now).total_seconds())
        assert (waiting.since, waiting.deadline) == (NOW, NOW + timedelta(hours=1))
        tried, now = Tried(waiting=waiting), waiting.until
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert tried.waiting is not None
    assert tried.waiting.tries == 8


def test_memory_that_others_hold_is_waited_for_as_a_busy_machine_is() -> None:
    held, busy = (
        next_try(ErrorInfo.of(kind("cause")), Tried(halvings=9, trained=False), 60, NOW)
        for kind in (MemoryHeld, MachineBusy)
    )
    assert held is not None
    assert busy is not None
    assert held.reason == busy.reason == "machine"
    assert held.until == busy.until > NOW
    assert next_try(held.error, Tried(waiting=held), 60, held.deadline) is None


def test_the_last_try_is_at_the_deadline() -> None:
    first = next_try(AWAY, Tried(), 3, NOW)
    assert first is not None
    second = next_try(AWAY, Tried(waiting=first), 3, first.until)
    assert second is not None
    assert second.until == NOW + timedelta(seconds=3)
    assert next_try(AWAY, Tried(waiting=second), 3, second.until) is None
    assert "tried 3 times in" in given_up(AWAY, Tried(waiting=second)).cause


def test_another_reason_has_a_time_of_its_own() -> None:
    away = next_try(AWAY, Tried(), 60, NOW)
    later = NOW + timedelta(minutes=5)
    full = next_try(ErrorInfo.of(DiskFull("full")), Tried(waiting=away), 60, later)
    assert full is not None
    assert (full.reason, full.since, full.tries) == ("disk", later, 1)


def test_a_busy_ollama_is_waited_for_and_a_refusal_is_not() -> None:
    busy = ErrorInfo.of(PublishError("busy")).model_copy(update={"retryable": True})
    waiting = next_try(busy, Tried(), 60)
    assert waiting is not None
    assert waiting.reason == "ollama"


def test_memory_is_tried_once_more() -> None:
    error = OutOfMemory("no memory")
    waiting = next_try(ErrorInfo.of(error), Tried(), 0, NOW)
    assert waiting is not None
    assert (waiting.reason, waiting.until) == ("memory", NOW)
    assert next_try(ErrorInfo.of(error), Tried(halvings=1), 0) is None
    after = next_try(ErrorInfo.of(error), Tried(trained=True), 0)
    assert after is not None
    assert after.reason == "worker", "a smaller batch would train anew, and help nothing"
    error.retryable = False
    assert next_try(ErrorInfo.of(error), Tried(), 0) is None, "a batch of one"


def test_lost_workers_are_bounded_by_their_number() -> None:
    error = ErrorInfo.of(WorkerLost("killed"))
    going = [next_try(error, Tried(losses=n), 0) is not None for n in range(MAX_LOSSES + 1)]
    assert going == [True, True, False, False]
    assert "lost 3 times" in given_up(error, Tried(losses=2)).cause


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (OSError(13, "Permission denied"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("another"), False),
    ],
)
def test_a_full_disk_is_known_by_whatever_library_meets_it(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full
    wrapped = ValueError("outer")
    wrapped.__cause__ = error
    assert is_disk_full(wrapped) is full
