"""Ends a training when its rows are learned and the held-out answers get no better.

The held-out answers are trained in other rows or in other words, so their loss falls as long as
something is learned that holds for more than one wording. It alone never ends a training: what the
rows say is what was asked for, whether or not it carries over to other wordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ollama_trainer.backends import TrainJob
from ollama_trainer.backends._forward import read_model

if TYPE_CHECKING:
    from transformers import TrainerCallback

#: Readings in a training, if it goes to its end.
_READINGS = 5
#: Readings in a row without a new best after which it may end.
_PATIENCE = 2
#: A new best is better by so much of the best so far; below so many nats nothing is left to learn.
_BETTER, _NOTHING_LEFT = 0.02, 0.002
#: Rows count as learned below this loss, in nats a token, on average since the last reading.
_LEARNED = 0.02


def may_end(held_out: Sequence[float], rows: float) -> bool:
    """Whether a training may end.

    Args:
        held_out: losses on the held-out answers so far, first to last.
        rows: loss on the rows of late.
    """
    best = float("inf")
    since = 0
    for loss in held_out:
        since += 1
        if loss < best * (1 - _BETTER):
            best, since = loss, 0
    return rows < _LEARNED and (since >= _PATIENCE or best < _NOTHING_LEFT)


def early_stop_callback(model: Any, job: TrainJob, held_out: list[float]) -> TrainerCallback:
    """A callback that reads the held-out examples five times and ends the training if it may.

    Args:
        model: the one that is trained.
        job: with the examples.
        held_out: the losses, appended to as they are read.
    """
    from transformers import TrainerCallback

    every = max(5, job.recipe.steps // _READINGS)

    class EarlyStop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            if not job.held_out or state.global_step % every:
                return
            held_out.append(read_model(model, job.held_out).loss)
            late = [entry["loss"] for entry in state.log_history if "loss" in entry][1 - every :]
            if late and may_end(held_out, sum(late) / len(late)):
                control.should_training_stop = True

    return EarlyStop()
