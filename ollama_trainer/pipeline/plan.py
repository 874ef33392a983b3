"""Every hyperparameter of a run, settled before it starts."""

from __future__ import annotations

import math

from ollama_trainer.backends import Recipe
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.grids import MERGEABLE
from ollama_trainer.gguf.tensors import architecture_of, tensor_names
from ollama_trainer.records import TrainingOptions

#: Small batches: on few rows the number of updates counts more than their smoothness.
_BATCH_SIZE = 8
#: How often each example is seen. Measured on SmolLM2 with 150 rows about 30 facts, batches of 8:
#: 75 steps answer 35 of 39 unseen paraphrases, 94 steps 39.
_EPOCHS = 5
_STEPS = (20, 400)
#: Some dozen rows are seen more often, up to so many steps: with 90 rows about 18 facts, 57 steps
#: answer 12 of 18 unseen paraphrases, 100 steps 15.
_STEPS_FOR_FEW = 90
#: Peak learning rates for hidden sizes below and from 1,024.
_LEARNING_RATES = (1e-3, 2e-4)


def recipe_for(base: GgufFile, options: TrainingOptions, n_examples: int) -> Recipe:
    """The recipe for `n_examples` on `base`.

    Raises:
        BaseModelError: the base's architecture or its tensors' types are not supported.
    """
    batch_size = min(options.batch_size or _BATCH_SIZE, n_examples)
    epochs_steps = math.ceil(_EPOCHS * n_examples / batch_size)
    at_least = min(max(_STEPS[0], 4 * n_examples), _STEPS_FOR_FEW)
    steps = options.steps or min(max(epochs_steps, at_least), _STEPS[1])
    small, large = _LEARNING_RATES
    rate = small if base.hyperparameter("embedding_length", 0) < 1024 else large
    return Recipe(
        rank=options.rank,
        alpha=options.alpha,
        target_modules=check_trainable(base),
        learning_rate=options.learning_rate or rate,
        steps=steps,
        # A warm-up begins at zero: a single step would teach nothing.
        warmup_steps=min(max(1, steps // 12), steps - 1),
        batch_size=batch_size,
        max_length=options.max_length,
        seed=options.seed,
    )


def check_trainable(base: GgufFile) -> tuple[str, ...]:
    """The modules of `base` that a LoRA is put on; asked before any time is spent.

    Raises:
        BaseModelError: the architecture is unknown here, or a tensor cannot be merged into.
    """
    modules = architecture_of(base).target_modules
    for module, name in tensor_names(base).items():
        kind = base.by_name[name].type.name
        if module.rsplit(".", 1)[-1] in modules and kind not in MERGEABLE:
            raise BaseModelError(
                f"{name} of {base.path.name} is of the type {kind}, which cannot be merged into",
                f"Choose a base whose tensors are of {', '.join(sorted(MERGEABLE))}.",
            )
    return modules
