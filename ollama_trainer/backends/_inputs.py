"""Gathers second moments of the inputs of every layer that a LoRA is on.

The trained model reads the run's rows and the replayed texts once more; hooks on its layers sum up
x x' over the tokens. Memory is bounded: where the matrices of all layers are more than fit, the
texts are read several times, for some layers each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.backends._forward import batches, padded
from ollama_trainer.gguf.statistics import write_index, write_moments
from ollama_trainer.workspace import atomic_directory

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
#: Bytes that the matrices of one reading may take together.
_BUDGET = 2 << 30
#: Tokens that are read at once.
_BATCH_TOKENS = 2048
#: Tokens of each kind of text that are enough.
_MOST_TOKENS = 4096
#: How much each kind of text counts. The rows are what the run is about, and they are few.
_WEIGHTS = {"rows": 3.0, "replay": 1.0}

Texts = Sequence[Sequence[int]]


def gather_inputs(model: Any, texts: Mapping[str, Texts], out: Path) -> None:
    """Writes the statistics of a trained model.

    Args:
        model: a PEFT model with its adapter on.
        texts: kind (a key of _WEIGHTS) -> token ids of each text. All texts of a kind together have
            the weight of their kind, however many tokens they are.
        out: directory for the statistics; does not exist yet.
    """
    import torch

    _use_plain_modules(model)
    model.eval()
    chosen = {kind: _enough(some) for kind, some in texts.items() if some}
    n_tokens = {kind: sum(map(len, some)) for kind, some in chosen.items()}
    layers = _lora_layers(model)
    inputs = _shared_inputs(model, layers, next(iter(chosen.values()))[0])
    with atomic_directory(out) as partial, torch.no_grad():
        for part, names in enumerate(_parts(layers, inputs)):
            moments = _Moments({name: layers[name] for name in names})
            for kind, some in chosen.items():
                for batch in batches(some, len, _BATCH_TOKENS):
                    moments.read(model, batch, _WEIGHTS[kind] / n_tokens[kind])
            write_moments(partial, part, moments.sums)
        write_index(partial, inputs, n_tokens)


def _use_plain_modules(model: Any) -> None:
    """Puts the layers' own forward passes back where Unsloth's GPU kernels go past them.

    Those kernels read the weights of several layers at once, so that no hook would see an input.
    """
    for module in model.modules():
        for name in ("apply_qkv", "apply_o"):
            module.__dict__.pop(name, None)
        if hasattr(module, "down_proj"):
            module.__dict__.pop("forward", None)


def _lora_layers(model: Any) -> dict[str, Any]:
    return {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    }


def _shared_inputs(model: Any, layers: Mapping[str, Any], text: Sequence[int]) -> dict[str, str]:
    """Layer -> the first of those layers that get the very same input."""
    import torch

    inputs: dict[str, str] = {}
    previous: list[Any] = [None, ""]

    def note(name: str, x: torch.Tensor) -> None:
        if x is not previous[0]:
            previous[:] = x, name
        inputs[name] = previous[1]

    ids, mask = padded([text], model.device)
    with _hooks(layers, note), torch.no_grad():
        model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=1)
    return inputs


@contextlib.contextmanager
def _hooks(layers: Mapping[str, Any], note: Any) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda _module, arguments: note(name, arguments[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Moments:
    """Sums of x x' for some inputs."""

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = layers
        self.sums: dict[str, torch.Tensor] = {}

    def read(self, model: Any, texts: Texts, weight: float) -> None:
        import torch

        ids, mask = padded(texts, model.device)

        def add(name: str, x: torch.Tensor) -> None:
            rows = x[mask].float()
            if name not in self.sums:
                n = rows.shape[1]
                self.sums[name] = torch.zeros((n, n), device=x.device)
            self.sums[name].addmm_(rows.T, rows, alpha=weight)

        with _hooks(self._layers, add):
            model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=1)


def _parts(layers: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[list[str]]:
    """Inputs whose matrices fit into memory together."""
    part: list[str] = []
    size = 0
    for name in dict.fromkeys(inputs.values()):
        n_bytes = 4 * layers[name].base_layer.in_features ** 2
        if part and size + n_bytes > _BUDGET:
            yield part
            part, size = [], 0
        part.append(name)
        size += n_bytes
    if part:
        yield part


def _enough(texts: Texts) -> Texts:
    """Texts from all over the list, until they have enough tokens."""
    total = sum(map(len, texts))
    step = max(1, -(-total // _MOST_TOKENS))
    return texts[::step]
