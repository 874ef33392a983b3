"""The penalty that holds a model to its base while it learns: KL divergence on replayed texts.

It comes as a mixin for any trainer of transformers (SFT, DPO, KTO, …): at some steps the gradient
of the penalty is added to that of the trainer's own loss, before the optimiser's step. Its forward
and backward passes are its own, so its memory is never held beside the trainer's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ollama_trainer.backends import ReplayPlan
from ollama_trainer.backends._forward import logits_at
from ollama_trainer.records import ReplayText

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class ReplayLog:
    """What replay did during a training."""

    seconds: float = 0.0
    #: KL divergence to the base in nats a token, of each step at which it was computed.
    divergences: list[float] = field(default_factory=list)

    @property
    def last_divergence(self) -> float | None:
        """Mean of the last few, since each is that of a few texts only."""
        last = self.divergences[-8:]
        return sum(last) / len(last) if last else None


class ReplayMixin:
    """Adds the penalty to a trainer; put it before the trainer's class.

    `replay_plan` and `replay_log` are set before training begins.
    """

    replay_plan: ReplayPlan
    replay_log: ReplayLog
    state: Any
    accelerator: Any

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        plan = self.replay_plan
        texts = plan.batch_of(self.state.global_step)
        # Gradients are synchronised at the last batch of an optimiser's step: once a step.
        if texts is not None and self.accelerator.sync_gradients:
            started = time.monotonic()
            divergence = divergence_from_base(model, texts)
            self.accelerator.backward(divergence * (plan.weight * plan.every))
            self.replay_log.divergences.append(float(divergence.detach()))
            self.replay_log.seconds += time.monotonic() - started
        return loss


def divergence_from_base(model: Any, texts: Sequence[ReplayText]) -> torch.Tensor:
    """Mean KL(base || model) over the tokens that the base wrote, in nats a token.

    The likeliest tokens count one by one and all others together, which is a lower bound of the
    whole divergence.

    Args:
        model: a causal language model of transformers, in any mode.
        texts: with what the base said.
    """
    import torch

    places = [range(text.start, len(text.ids)) for text in texts]
    logits = logits_at(model, [text.ids for text in texts], places)
    likeliest = torch.cat([torch.from_numpy(text.likeliest).long() for text in texts])
    base = torch.cat([torch.from_numpy(text.log_probabilities).float() for text in texts])
    return _divergence(logits, likeliest.to(logits.device), base.to(logits.device))


def _divergence(logits: torch.Tensor, likeliest: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    own = logits.gather(1, likeliest) - logits.logsumexp(1, keepdim=True)
    probabilities = base.exp()
    rest = (1 - probabilities.sum(1)).clamp(min=1e-6)
    own_rest = (1 - own.exp().sum(1)).clamp(min=1e-6)
    each = (probabilities * (base - own)).sum(1) + rest * (rest.log() - own_rest.log())
    return each.mean()
