"""What memory a training takes, estimated before it begins.

    the programs      what Python, torch and Unsloth take before anything is loaded
    weights           bfloat16, of the whole model
    the adapter       its weights, their gradients and two moments of the optimiser, all float32
    activations       of the layers that are trained, for one batch; those below need none
    logits            of one batch

The factors were fitted to trainings of SmolLM2-135M on a CPU (docs/bases.md has the figures). On a
GPU a training takes rather less, as attention keeps less there. Rows are taken to be of 256 tokens,
since nobody knows them yet: twice as long ones take twice the last two parts.
"""

from __future__ import annotations

import math

from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.tensors import trained_tensors
from ollama_trainer.pipeline.plan import BATCH_SIZE, layers_for
from ollama_trainer.records import TrainingOptions

_ROW_TOKENS = 256
_PROGRAMS = 1_000_000_000
_WEIGHT = 2
#: Bytes of each number of the adapter.
_TRAINED = 16
#: Bytes that are kept of each number that goes into or comes out of a trained module.
_ACTIVATION = 2.5
#: Bytes that attention keeps for each pair of tokens and each head.
_ATTENTION = 12
_LOGIT = 6


def parameter_count(gguf: GgufFile) -> int:
    """Weights of all tensors."""
    return sum(math.prod(tensor.shape) for tensor in gguf.tensors)


def needed_bytes(gguf: GgufFile, options: TrainingOptions) -> int:
    """Peak memory of a training, roughly.

    Raises:
        BaseModelError: the base cannot be trained.
    """
    layers = layers_for(gguf, options)
    tokens = min(options.max_length, _ROW_TOKENS)
    n_tokens = (options.batch_size or BATCH_SIZE) * tokens
    features = _features(gguf, layers)
    heads = int(gguf.hyperparameter("attention.head_count", 1))
    vocabulary = gguf.by_name["token_embd.weight"].n_rows
    a_token = (
        _ACTIVATION * features + _ATTENTION * heads * tokens * len(layers) + _LOGIT * vocabulary
    )
    weights = _WEIGHT * parameter_count(gguf)
    adapter = _TRAINED * options.rank * features
    return round(_PROGRAMS + weights + adapter + a_token * n_tokens)


def _features(gguf: GgufFile, layers: tuple[int, ...]) -> int:
    """How many numbers go into all trained modules and come out, for each token."""
    return sum(tensor.row_length + tensor.n_rows for tensor in trained_tensors(gguf, layers))
