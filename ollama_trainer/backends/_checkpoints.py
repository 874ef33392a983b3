"""Checkpoints of a training, and the way back to the newest of them.

    <checkpoints>/step-<N>/     transformers' own checkpoint, ours.json, and a manifest written last
    <checkpoints>.partial/      what is being written or deleted

A directory is moved in when it is whole and durable, and out before it is deleted, so that whatever
lies under a final name is whole.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.backends import TrainJob
from ollama_trainer.backends._replay import ReplayLog
from ollama_trainer.manifests import read_manifest, write_manifest
from ollama_trainer.workspace import PARTIAL_SUFFIX, fsync_directory, sync_files

if TYPE_CHECKING:
    from transformers import TrainerCallback

#: The second one is for when the newest is damaged.
_KEPT = 2
#: Training goes on for at least so many times as long as the last save took.
_TRAINED_PER_SAVED = 50
_PREFIX, _MANIFEST, _OURS = "step-", "manifest.json", "ours.json"
_NAME = re.compile(rf"{_PREFIX}\d+")


@dataclass(slots=True)
class OwnState:
    """What a training has told so far and transformers does not keep."""

    #: Losses on the held-out examples, first to last.
    held_out: list[float] = field(default_factory=list)
    replay: ReplayLog = field(default_factory=ReplayLog)
    #: Seconds that the steps up to the last checkpoint took, in all processes.
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> OwnState:
        values = json.loads(path.read_bytes())
        return cls(**values | {"replay": ReplayLog(**values["replay"])})


class Checkpoints:
    """The checkpoints of one training.

    Making one deletes whatever cannot be gone on from: damaged checkpoints, those of other keys,
    and what was unfinished when an earlier process ended.

    Args:
        job: with the directory, the key and the time between two checkpoints.
    """

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._directory = job.checkpoints or job.out.with_name("checkpoints")
        #: Where transformers writes; never looked into by a later training.
        self.partial = self._directory.with_name(self._directory.name + PARTIAL_SUFFIX)
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        whole = self._whole() if job.checkpoints else []
        #: The checkpoint that the training goes on from, if it does.
        self.newest = whole[-1] if whole else None
        self.own = OwnState.read(self.newest / _OURS) if self.newest else OwnState()

    def callback(self) -> TrainerCallback:
        """A callback that saves checkpoints; it must be the last that has a say in the end."""
        from transformers import TrainerCallback

        checkpoints, job = self, self._job
        earlier_s = self.own.seconds

        class Saver(TrainerCallback):  # type: ignore[misc]
            started = saved = saving = took = 0.0

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                self.started = self.saved = time.monotonic()

            def on_log(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
                # Called at the end of each step, after all that may end the training.
                self.saving = time.monotonic()
                pause = max(job.checkpoint_every_s, _TRAINED_PER_SAVED * self.took)
                is_due = job.checkpoint_every_s == 0 or self.saving - self.saved >= pause
                if job.checkpoints and is_due and not control.should_training_stop:
                    control.should_save = True

            def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                checkpoints.own.seconds = earlier_s + self.saving - self.started
                checkpoints.keep(state.global_step)
                self.took = time.monotonic() - self.saving
                job.saved(state.global_step)
                self.saved = time.monotonic()

        return Saver()

    def keep(self, step: int) -> None:
        """Completes what transformers has written at `step`, and gives it its final name."""
        made = self.partial / f"checkpoint-{step}"
        self.own.write(made / _OURS)
        sync_files(made)
        write_manifest(made / _MANIFEST, self._job.key, made, [made])
        if not self._directory.exists():
            self._directory.mkdir()
            fsync_directory(self._directory.parent)
        made.rename(self._directory / f"{_PREFIX}{step}")
        fsync_directory(self._directory)
        for path in self._by_step()[:-_KEPT]:
            self._delete(path)

    def _whole(self) -> list[Path]:
        """The whole checkpoints for this key, oldest first; all else is deleted."""
        whole = [
            path
            for path in self._by_step()
            if read_manifest(path / _MANIFEST, self._job.key, path) is not None
        ]
        if self._directory.exists():
            for path in set(self._directory.iterdir()) - set(whole):
                self._delete(path)
        return whole

    def _by_step(self) -> list[Path]:
        """What has the name of a checkpoint, oldest first."""
        if not self._directory.exists():
            return []
        found = [path for path in self._directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))

    def _delete(self, path: Path) -> None:
        # A deletion that is broken off must not leave half a checkpoint under a final name.
        moved = path.rename(self.partial / path.name)
        shutil.rmtree(moved, ignore_errors=True)


@contextlib.contextmanager
def open_checkpoints(job: TrainJob) -> Iterator[Checkpoints]:
    """The checkpoints of a training; whatever is unfinished at its end is deleted."""
    checkpoints = Checkpoints(job)
    try:
        yield checkpoints
    finally:
        shutil.rmtree(checkpoints.partial, ignore_errors=True)
