"""What the stages of a run share, and what they tell while an attempt at it goes on."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ollama_trainer.errors import LeaseLost
from ollama_trainer.pipeline.stages import Stages, run_key
from ollama_trainer.records import Event, EventKind, Lease, Progress, RunSpec, Stage
from ollama_trainer.workspace import RunDirectory

log = logging.getLogger(__name__)


class Run:
    """A run in progress: what the stages share, and what they told."""

    def __init__(self, directory: RunDirectory, spec: RunSpec, lease: Lease) -> None:
        self.directory, self.spec, self.lease = directory, spec, lease
        self.seconds: dict[str, float] = {}
        self.metrics: dict[str, Any] = {}
        self.stages = Stages(directory, lease.attempt, self.check_lease, self._saved)

    @functools.cached_property
    def key(self) -> str:
        """Of everything that the run's model follows from, but for its base's content.

        Raises:
            DatasetError: the snapshot is gone.
        """
        return run_key(self.directory, self.spec, self.lease.halvings)

    def check_lease(self) -> None:
        """Raises:
        LeaseLost: the server has given this worker up. Ask before anything gets a final name.
        """
        if self.directory.read_lease() != self.lease:
            raise LeaseLost("Another worker has taken over this run")

    def note(self, message: str, data: Mapping[str, Any]) -> None:
        """Tells something that is neither a stage nor progress, in the events and in the log."""
        self._tell("note", message, data=data)
        log.info("%s: %s", message, json.dumps(data))

    def report(self, progress: Progress) -> None:
        self._tell("progress", progress=progress)

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[Callable[[float], None]]:
        """Announces a stage and takes its time; yields a function that reports its fraction."""
        self._tell("stage", stage, Progress(stage=stage))
        last = 0.0

        def report(fraction: float) -> None:
            nonlocal last
            if time.monotonic() - last > 0.2:
                last = time.monotonic()
                self.report(Progress(stage=stage, fraction=min(fraction, 1.0)))

        started = time.monotonic()
        try:
            yield report
        finally:
            # Export and verification come again where a larger type is needed.
            took = self.seconds.get(stage, 0.0) + time.monotonic() - started
            self.seconds[stage] = round(took, 3)

    def told(self) -> dict[str, Any]:
        """What a later attempt needs of this one's figures."""
        return {"seconds": dict(self.seconds), "metrics": dict(self.metrics)}

    def recall(self, told: Mapping[str, Any]) -> None:
        """Takes over the figures of an earlier attempt."""
        self.metrics |= told["metrics"]
        for stage, seconds in told["seconds"].items():
            self.seconds.setdefault(stage, seconds)

    def _saved(self, what: str) -> None:
        self._tell("saved", what)

    def _tell(
        self,
        kind: EventKind,
        message: str = "",
        progress: Progress | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        # What is done for a finished run is no part of its history.
        if self.lease.task == "run":
            self.directory.append_event(Event.now(kind, message, progress, data))

    def checkpoint_saved(self, step: int) -> None:
        """Raises:
        LeaseLost: the server has given this worker up.
        """
        self.check_lease()
        self._saved(f"checkpoint at step {step}")
