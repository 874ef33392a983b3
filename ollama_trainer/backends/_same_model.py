"""Whether the model that is about to be trained is the one that llama.cpp serves.

Weights, rows and configuration are carried over by rules that are tested for each architecture;
this looks at the very file of the run. A wrong rotary scaling or a layout that only one program
writes would otherwise show as a model that learned nothing, hours later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ollama_trainer.backends._forward import logits_at
from ollama_trainer.errors import ModelDiffers
from ollama_trainer.llama import logits_of, open_sequences
from ollama_trainer.records import TokenizedExample

#: Nats a token. Seen: 0.004 on SmolLM2 in Q4_1, whose activations llama.cpp rounds to 8 bits.
MOST_DIVERGENCE = 0.02
_EXAMPLES = 4
#: Of each example. Beyond some hundred tokens nothing new can differ but what the window hides.
_TOKENS = 512
#: Rows of logits of each example: 64 MB for a vocabulary of 256,000.
_POSITIONS = 64


def divergence_from_served(
    model: Any, gguf: Path, examples: Sequence[TokenizedExample]
) -> float | None:
    """Mean KL(llama.cpp || torch) at the last tokens of the first examples, in nats a token.

    Args:
        model: a causal language model of transformers, with an adapter that changes nothing yet.
        gguf: the file whose weights it has.
        examples: of the run; none give None.
    """
    import torch

    texts = [example.ids[:_TOKENS] for example in examples[:_EXAMPLES]]
    texts = [ids for ids in texts if len(ids) > 1]
    if not texts:
        return None
    places = [range(max(1, len(ids) - _POSITIONS), len(ids)) for ids in texts]
    with torch.no_grad():
        computed = logits_at(model, texts, places).double().log_softmax(1).cpu()
    asked = [
        (ids, [place - 1 for place in where]) for ids, where in zip(texts, places, strict=True)
    ]
    longest = max(map(len, texts))
    with open_sequences(gguf, n_sequences=1, n_tokens=longest) as sequences:
        rows = [torch.from_numpy(logits) for logits in logits_of(sequences, asked)]
    served = torch.cat(rows).double().log_softmax(1)
    return float((served.exp() * (served - computed)).sum(1).mean())


def check_same(model: Any, gguf: Path, examples: Sequence[TokenizedExample]) -> float | None:
    """The divergence, as above.

    Raises:
        ModelDiffers: it is too large for rounding.
    """
    was_training = model.training
    model.eval()
    divergence = divergence_from_served(model, gguf, examples)
    model.train(was_training)
    if divergence is not None and not divergence <= MOST_DIVERGENCE:
        raise ModelDiffers(
            f"{gguf.name} computes something else in torch than in llama.cpp: they are"
            f" {divergence:.3g} nats a token apart on the run's first examples, and rounding"
            f" explains {MOST_DIVERGENCE}",
            "Choose another base, and report this one: what was trained would not be what is"
            " served.",
        )
    return divergence
