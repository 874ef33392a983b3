"""The finished GGUF, asked in llama.cpp before anyone else may ask it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ollama_trainer.errors import ExportError
from ollama_trainer.fidelity import answer_loss
from ollama_trainer.records import TokenizedExample

#: Enough to see learning, few enough to take seconds.
_N_EXAMPLES = 12


def verify(base: Path, tuned: Path, examples: Sequence[TokenizedExample]) -> dict[str, float]:
    """Checks that the finished file loads and has learned.

    Returns:
        `loss_base` and `loss_tuned` on some of the examples, in nats a token.

    Raises:
        ExportError: llama.cpp cannot load it, or it answers no better than its base.
    """
    sample = examples[:: math.ceil(len(examples) / _N_EXAMPLES)]
    losses = {"loss_base": answer_loss(base, sample), "loss_tuned": answer_loss(tuned, sample)}
    if losses["loss_tuned"] >= losses["loss_base"]:
        raise ExportError(
            "The finished model has learned nothing: its loss on the examples is"
            f" {losses['loss_tuned']:.3f}, the base's {losses['loss_base']:.3f}",
            "Train for more steps or at a higher learning rate.",
        )
    return losses
