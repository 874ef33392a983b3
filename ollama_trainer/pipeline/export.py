"""Base + adapter -> the finished GGUF and its Modelfile."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from ollama_trainer.chat_template import ChatTemplate
from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.file import Entry, GgufFile, string_entry
from ollama_trainer.gguf.merge import QUANTIZATIONS, MergeReport, merge, type_after
from ollama_trainer.gguf.provenance import Provenance, adapter_digest
from ollama_trainer.gguf.statistics import InputStatistics
from ollama_trainer.gguf.tensors import trained_tensors, whole
from ollama_trainer.modelfile import Modelfile, tuned_modelfile
from ollama_trainer.ollama.shield import protect_chat_template
from ollama_trainer.ollama_prompts import is_rendered_by_ollama
from ollama_trainer.pipeline.scales import WHOLE
from ollama_trainer.records import BaseGguf, OllamaModel, RunSpec

_TEMPLATE_KEY = "tokenizer.chat_template"


def export(
    base: GgufFile,
    adapter: Path,
    out: Path,
    *,
    quantization: str,
    at_least: str | None = None,
    statistics: Path | None = None,
    scales: GgufFile | None = None,
    base_digest: str | None = None,
    run: RunSpec | None = None,
    add_template: bool = True,
    seed: int,
    model: OllamaModel | None = None,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> MergeReport:
    """Merges an adapter directory into `base`, its chat template protected from replacement.

    Args:
        quantization, at_least: as of `merge`; with `scales`, what these are.
        statistics: directory with statistics of the layers' inputs, for compensated rounding.
        scales: as of `merge`.
        base_digest: to be written into the result, beside what is known here.
        run: whose model it is; None where it is no run's.
        add_template: whether a base that brings no template gets that of its family: one that the
            adapter was trained with.
        model: what the base has in Ollama, if it is from there.

    Raises:
        ExportError: the adapter cannot be merged, or `quantization` is unknown.
        MergedEqualsBase: not one weight differs from the base's.
    """
    check_quantization(quantization)
    pairs = read_adapter(adapter)
    provenance = Provenance(
        base_digest=base_digest,
        adapter_digest=adapter_digest(adapter),
        run_id=run.run_id if run else None,
        job_id=run.job_id if run else None,
        model=run.model_name if run else None,
        rounding="stochastic" if statistics is None else "compensated",
        seed=seed,
    )
    return merge(
        base,
        pairs,
        out,
        quantization="same" if scales else quantization,
        at_least=at_least,
        statistics=InputStatistics(statistics) if statistics is not None else None,
        seed=seed,
        metadata=template_entry(base, model, add_template),
        provenance=provenance,
        scales=scales,
        must_change=True,
        progress=progress,
    )


def rungs(base: GgufFile, quantization: str, layers: Collection[int]) -> tuple[str | None, ...]:
    """What touched tensors must be at least, from the base's own types up to Q8_0.

    A base of Q8_0 or floats has nothing to climb to, and who asks for a type gets that type.

    Args:
        layers: indices of those that are trained.
    """
    if quantization != "same":
        return (None,)
    tensors = trained_tensors(base, layers)
    ladder: list[str | None] = [None]
    before = [tensor.type for tensor in tensors]
    for rung in ("q6_k", "q8_0"):
        after = [type_after(tensor, quantization, rung) for tensor in tensors]
        if after != before:
            ladder.append(rung)
            before = after
    return tuple(ladder)


def check_quantization(name: str) -> None:
    """Asked before training, too, since a name that is wrong should cost none.

    Raises:
        ExportError: it is unknown.
    """
    known = dict.fromkeys((*QUANTIZATIONS, *WHOLE))
    if name not in known:
        raise ExportError(
            f"The quantization {name!r} is unknown", f"Use one of: {', '.join(known)}."
        )


def template_entry(base: GgufFile, model: OllamaModel | None, add: bool) -> dict[str, Entry]:
    """The chat template that the finished file carries, as a metadata entry.

    Where Ollama makes the prompts by its own means, the file has what its base's has: a template
    more would be one that Ollama may prefer.

    Args:
        add: whether a base that brings no template gets that of its family.
    """
    if not base.get(_TEMPLATE_KEY) and (is_rendered_by_ollama(model) or not add):
        return {}
    template = protect_chat_template(ChatTemplate(base, model).source)
    return {_TEMPLATE_KEY: string_entry(_TEMPLATE_KEY, template)}


def modelfile_of(base: BaseGguf, gguf: GgufFile, stop: str) -> Modelfile:
    """The Modelfile of a tuned model: what its base has in Ollama, with stops, context and cap.

    Args:
        stop: text of the token that ends an answer.
    """
    return tuned_modelfile(
        base.ollama,
        stop=stop,
        context_length=whole(gguf, "context_length"),
        license_text=base.license,
    )
