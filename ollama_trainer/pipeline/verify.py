"""The finished GGUF, read in llama.cpp before anyone else may ask it, and judged.

Two texts are read: answers that the run did not train on (what was learned must be there), and the
project's probe text (nothing else may be spoilt). Both are compared with what the trained model
said in torch, before anything was rounded, and with the base.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ollama_trainer import fidelity
from ollama_trainer.errors import ExportError, NothingLearned
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.pipeline.dataset import PreparedData
from ollama_trainer.records import (
    Adapter,
    BaseGguf,
    FidelityOptions,
    Figures,
    Losses,
    Reading,
)
from ollama_trainer.workspace import write_text

#: Raised when the probe text changes.
_PROBE = 1
#: Gains below it, in nats a token, are no learning that a share could be taken of.
_SMALLEST_GAIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLosses:
    """What a finished file is compared with, beside the trained model."""

    held_out: float
    unrelated: float


def base_losses(
    base: BaseGguf, scales: GgufFile | None, data: PreparedData, cache: Path
) -> BaseLosses:
    """Reads both texts with the base; the probe text once a base, however many runs it has.

    Args:
        scales: the base in the quantisation of the result, where that is not its own.

    Raises:
        ExportError: llama.cpp cannot read with it.
    """
    # A max_length below a section's cuts it.
    n_tokens = sum(len(section.ids) for section in data.probe)
    gguf, kind = base.gguf, ""
    if scales is not None:
        gguf, kind = scales.path, f"-{scales.path.stem.rpartition('-')[2]}"
    kept = cache / f"probe-{_PROBE}-{base.digest[:32]}{kind}-{n_tokens}.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(fidelity.answer_loss(gguf, data.probe)))
    return BaseLosses(
        held_out=fidelity.answer_loss(gguf, data.held_out),
        unrelated=float(json.loads(kept.read_text(encoding="utf-8"))),
    )


def judge(
    served: Path,
    quantization: str,
    data: PreparedData,
    trained: Adapter,
    base: BaseLosses,
    options: FidelityOptions,
) -> Figures:
    """Reads both texts with a finished file and compares.

    Args:
        served: the file.
        quantization: what its touched tensors are, for the record.
        trained: with what the trained model said.

    Raises:
        Unloadable: llama.cpp cannot load the file.
        NotANumber: it computes values that are no numbers.
        ExportError: the backend did not say what the trained model says.
    """
    if trained.held_out is None or trained.unrelated is None:
        raise ExportError("The training backend did not read the held-out rows")
    readings = fidelity.read(served, data.held_out), fidelity.read(served, data.probe)
    said = trained.held_out, trained.unrelated
    return figures_of(quantization, said, readings, base, options)


def figures_of(
    quantization: str,
    trained: tuple[Reading, Reading],
    served: tuple[Reading, Reading],
    base: BaseLosses,
    options: FidelityOptions,
) -> Figures:
    """The figures of readings of the held-out answers and of the probe text, and what they miss."""
    held_out = Losses(base=base.held_out, trained=trained[0].loss, served=served[0].loss)
    unrelated = Losses(base=base.unrelated, trained=trained[1].loss, served=served[1].loss)
    kept = None
    if held_out.base - held_out.trained >= _SMALLEST_GAIN:
        kept = fidelity.learning_kept(held_out.base, held_out.trained, held_out.served)
    n_tokens = len(served[0].top)
    n_others = sum(a != b for a, b in zip(trained[0].top, served[0].top, strict=True))
    agreement = 1 - n_others / n_tokens
    missed = []
    if kept is not None and kept < options.min_learning_kept:
        missed.append(f"only {kept:.1%} of what was learned is there")
    # In whole tokens: of 98, three may be others where 97 % must be the same.
    if n_others > math.ceil(n_tokens * (1 - options.min_agreement) - 1e-9):
        missed.append(f"only {agreement:.1%} of the answers' tokens are the trained model's")
    if unrelated.served - unrelated.trained > options.max_unrelated_over_trained:
        missed.append(
            f"on unrelated text it loses {unrelated.served - unrelated.trained:.3f} nats a token"
            " against the trained model"
        )
    if unrelated.served - unrelated.base > options.max_unrelated_over_base:
        missed.append(
            f"on unrelated text it loses {unrelated.served - unrelated.base:.3f} nats a token"
            " against its base"
        )
    return Figures(
        quantization=quantization,
        learning_kept=kept,
        agreement=agreement,
        held_out=held_out,
        unrelated=unrelated,
        missed=tuple(missed),
    )


def can_be_mended(figures: Figures, options: FidelityOptions) -> bool:
    """Whether finer weights may help: they bring a file nearer to the trained model, no further."""
    unrelated = figures.unrelated
    # The trained model's own, so that it stays; the file's, so that it is among what that misses.
    lost = min(unrelated.trained, unrelated.served) - unrelated.base
    spoilt = lost > options.max_unrelated_over_base
    return len(figures.missed) > (1 if spoilt else 0)


def check_learned(figures: Figures) -> None:
    """Raises:
    NothingLearned: the finished file answers no better than its base, though there was something
        to learn.
    """
    losses = figures.held_out
    if losses.served >= losses.base and losses.base > _SMALLEST_GAIN:
        raise NothingLearned(
            "The finished model has learned nothing: its loss on the answers is"
            f" {losses.served:.3f}, the base's {losses.base:.3f}",
            "Train for more steps or at a higher learning rate.",
        )
