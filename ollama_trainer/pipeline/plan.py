"""Every hyperparameter of a run, settled before it starts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from ollama_trainer.backends import Recipe, ReplayPlan
from ollama_trainer.bases.configuration import configuration
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.architectures import architecture_of
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.grids import MERGEABLE
from ollama_trainer.gguf.tensors import block_count, trained_tensors, whole
from ollama_trainer.pipeline.held_out import HELD_OUT
from ollama_trainer.records import ReplayText, TokenizedExample, TrainingOptions
from ollama_trainer.replay import in_batches

#: Small batches: on few rows the number of updates counts more than their smoothness.
BATCH_SIZE = 8
#: How often each example is seen (docs/recipe.md has what was tried).
_EPOCHS = 5
_STEPS = (20, 400)
#: Some dozen rows are seen more often, up to so many steps.
_STEPS_FOR_FEW = 84
#: Peak learning rates for hidden sizes below and from 1,024.
_LEARNING_RATES = (2e-3, 3e-4)
#: What small models of an architecture stand at most. Gemma 3 learned the same at a third of the
#: rate, and lost 0.10 instead of 0.37 nats on unrelated text.
_MOST_LEARNING_RATE = {"gemma3": 7e-4}
#: The upper half of the layers is trained by default: it learns as much, a step takes less time,
#: and half as many weights are rounded.
_SHARE_OF_LAYERS = 0.5

#: Of larger data sets so many examples are looked at, at least.
_DRAWN = 4096

#: Weight of the penalty beside the loss of the examples, on average over the steps.
_REPLAY_WEIGHT = 2.5
#: Texts that are replayed at once: few, so that it can be often. At the same cost, four texts at
#: every fourth step left 0.024 nats of forgetting, two at every second one 0.004.
_REPLAY_BATCH = 2
#: Share of the time of the examples' own steps that replay may take.
_REPLAY_SHARE = 0.35
#: A replayed token costs more than an example's: logits are computed at each. Seen: 1.5 times.
_REPLAY_COST = 1.5
#: Steps between two penalties. The rarer they are, the more each has to pull at once.
_REPLAY_EVERY = (1, 4)
#: Penalties that a training has at least, at every step if it is short: twenty steps on one row
#: spoil as much as eighty on many. They take a quarter of a minute, whatever their share is then.
_REPLAYS_AT_LEAST = 40


def recipe_for(base: GgufFile, options: TrainingOptions, n_examples: int) -> Recipe:
    """The recipe for `n_examples` on `base`.

    Raises:
        BaseModelError: the base's architecture or its tensors' types are not supported.
    """
    batch_size, steps = batches_for(options, n_examples)
    small, large = _LEARNING_RATES
    rate = small if whole(base, "embedding_length") < 1024 else large
    rate = min(rate, _MOST_LEARNING_RATE.get(base.architecture, rate))
    return Recipe(
        rank=options.rank,
        alpha=options.alpha,
        target_modules=check_trainable(base),
        layers=layers_for(base, options),
        learning_rate=options.learning_rate or rate,
        steps=steps,
        # A warm-up begins at zero: a single step would teach nothing.
        warmup_steps=min(max(1, steps // 12), steps - 1),
        batch_size=batch_size,
        max_length=options.max_length,
        seed=options.seed,
    )


def batches_for(options: TrainingOptions, n_examples: int) -> tuple[int, int]:
    """Examples in a batch, and optimiser steps."""
    batch_size = min(options.batch_size or BATCH_SIZE, n_examples)
    epochs_steps = math.ceil(_EPOCHS * n_examples / batch_size)
    at_least = min(max(_STEPS[0], 4 * n_examples), _STEPS_FOR_FEW)
    return batch_size, options.steps or min(max(epochs_steps, at_least), _STEPS[1])


def most_examples(options: TrainingOptions) -> int:
    """How many examples a training can see at most: of larger data sets so many are drawn."""
    batch_size = options.batch_size or BATCH_SIZE
    return max(_DRAWN, batch_size * (options.steps or _STEPS[1]) + HELD_OUT)


def with_smaller_batches(recipe: Recipe, halvings: int) -> Recipe:
    """The same recipe with less on the device at once: what a step sees stays the same."""
    size = max(1, math.ceil(recipe.batch_size / 2**halvings))
    return replace(recipe, batch_size=size, accumulation=math.ceil(recipe.batch_size / size))


def layers_for(base: GgufFile, options: TrainingOptions) -> tuple[int, ...]:
    """Indices of the layers that are trained.

    Raises:
        BaseModelError: the base has fewer.
    """
    count = block_count(base)
    named = {"all": count, "auto": math.ceil(_SHARE_OF_LAYERS * count)}
    asked = options.layers if isinstance(options.layers, int) else named[options.layers]
    if asked > count:
        raise BaseModelError(
            f"{asked} layers were asked for, and {base.path.name} has {count}",
            f"Set layers to {count} at most.",
        )
    return tuple(range(count - asked, count))


def replay_plan(
    texts: Sequence[ReplayText],
    options: TrainingOptions,
    examples: Sequence[TokenizedExample],
    recipe: Recipe,
) -> ReplayPlan:
    """How strongly and how often a training is held to its base.

    With `replay = off` the texts are not trained on; compensated rounding needs them all the same.
    """
    asked = options.replay
    replayed = _REPLAY_BATCH * statistics.fmean(len(text.ids) for text in texts)
    own = (
        recipe.batch_size
        * recipe.accumulation
        * statistics.fmean(len(example.ids) for example in examples)
    )
    least, most = _REPLAY_EVERY
    every = math.ceil(_REPLAY_COST * replayed / (_REPLAY_SHARE * own))
    every = min(every, recipe.steps // _REPLAYS_AT_LEAST)
    return ReplayPlan(
        batches=in_batches(texts, _REPLAY_BATCH, options.seed),
        weight=asked if isinstance(asked, float) else {"auto": _REPLAY_WEIGHT, "off": 0.0}[asked],
        every=min(max(every, least), most),
    )


def check_trainable(base: GgufFile) -> tuple[str, ...]:
    """The modules of `base` that a LoRA is put on; asked before any time is spent.

    Raises:
        BaseModelError: the architecture is unknown here, no configuration says what the file says,
            or a tensor cannot be merged into.
    """
    modules = architecture_of(base).target_modules
    configuration(base)
    for tensor in trained_tensors(base):
        if tensor.type.name not in MERGEABLE:
            raise BaseModelError(
                f"{tensor.name} of {base.path.name} is of the type {tensor.type.name}, which cannot"
                " be merged into",
                f"Choose a base whose tensors are of {', '.join(sorted(MERGEABLE))}.",
            )
    return modules
