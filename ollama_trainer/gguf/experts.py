"""An adapter's changes by tensor: one change for most, one for each expert where they are stacked.

transformers keeps a layer's experts in two parameters, gates with what they gate in one of them; a
GGUF keeps them in three tensors. PEFT puts a LoRA on such a parameter (`target_parameters`) as one
pair of matrices that holds the halves of all experts. Source: PEFT's tuners/lora/layer.py,
ParamWrapper.get_delta_weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.adapter import EXPERTS, LoraPair
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.gguf.tensors import whole

#: Rows of a tensor are those of its changes one after the other, each the same number.
Changes = tuple[LoraPair, ...]


class ByTensor(Mapping[str, Changes]):
    """Module, as gguf names it -> the changes of its tensor, read whenever they are asked for.

    Raises:
        ExportError: a change fits no experts of this base.
    """

    def __init__(self, base: GgufFile, adapter: Mapping[str, LoraPair]) -> None:
        self._adapter = adapter
        self._n_experts = whole(base, "expert_count", 0, least=0)
        #: Module -> that of the adapter, and which of its rows.
        self._source: dict[str, tuple[str, slice]] = {}
        for module in adapter:
            experts = EXPERTS.fullmatch(module)
            if experts is None:
                self._source[module] = module, slice(None)
            else:
                self._add_experts(base, experts[1], module)

    def _add_experts(self, base: GgufFile, experts: str, module: str) -> None:
        pair, n = self._adapter[module], self._n_experts
        hidden = whole(base, "embedding_length")
        inner = whole(base, "expert_feed_forward_length", whole(base, "feed_forward_length"))
        shape = pair.down.shape[1], len(pair.up)
        if n > 0 and len(pair.down) % n == 0 and shape == (hidden, 2 * inner):
            self._source[f"{experts}.gate_proj"] = module, slice(inner)
            self._source[f"{experts}.up_proj"] = module, slice(inner, None)
        elif n > 0 and len(pair.down) % n == 0 and shape == (inner, hidden):
            self._source[f"{experts}.down_proj"] = module, slice(None)
        else:
            raise ExportError(
                f"The adapter's {module} has shape {shape} for each expert, and"
                f" {base.path.name} has {n} experts with {hidden} and {inner} features",
                "Merge an adapter into the base that it was trained on.",
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, module: str) -> Changes:
        source, rows = self._source[module]
        pair = self._adapter[source]
        if EXPERTS.fullmatch(source) is None:
            return (pair,)
        n = self._n_experts
        downs = pair.down.reshape(n, -1, pair.down.shape[1])
        ups = pair.up.reshape(len(pair.up), -1, n)[rows]
        return tuple(
            LoraPair(downs[expert], np.ascontiguousarray(ups[..., expert])) for expert in range(n)
        )
