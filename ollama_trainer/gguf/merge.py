"""The streaming pass: base GGUF + adapter -> GGUF.

Tensors that the adapter does not touch are copied byte for byte; touched ones are rewritten on the
base's own scales, or on those of a file that the base was quantised to. Metadata is carried over as
it stands, except for the entries that the caller replaces. Threads share the work in pieces of
rows; how many of them are in work is bounded, and so is memory, whatever the model's size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ollama_trainer.errors import ExportError, MergedEqualsBase, NotANumber
from ollama_trainer.gguf.adapter import LoraPair
from ollama_trainer.gguf.architectures import architecture_of
from ollama_trainer.gguf.blas import one_thread
from ollama_trainer.gguf.experts import ByTensor, Changes
from ollama_trainer.gguf.feedbacks import DEFAULT_ROUNDING, Feedbacks, RoundingOptions
from ollama_trainer.gguf.file import (
    TYPE_BY_NAME,
    Entry,
    GgufFile,
    TensorInfo,
    TensorReader,
    TensorType,
    header_bytes,
    laid_out,
)
from ollama_trainer.gguf.grids import MERGEABLE
from ollama_trainer.gguf.order import (
    FILE_TYPES,
    commonest_type,
    ordered_metadata,
    ordered_tensors,
)
from ollama_trainer.gguf.pieces import Flusher, Piece, made, settle_allocator
from ollama_trainer.gguf.provenance import Provenance, with_provenance
from ollama_trainer.gguf.statistics import InputStatistics
from ollama_trainer.gguf.tensors import row_order, tensor_names
from ollama_trainer.gguf.touched import Rewriter, Sources, Touched
from ollama_trainer.workspace import atomic_path

#: What touched tensors become: their own type on their own scales, or another type.
QUANTIZATIONS = {
    "same": None,
    "f16": TYPE_BY_NAME["F16"],
    "q8_0": TYPE_BY_NAME["Q8_0"],
    "q6_k": TYPE_BY_NAME["Q6_K"],
}
_COPY_BYTES = 1 << 20
#: Bytes that the pieces in work and the matrices for them may take together.
_WORK_BYTES = 530_000_000
#: A change as large as this is none of a model's weights, and its sums could overflow.
_LARGEST_CHANGE = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What the pass did."""

    #: Tensors that the adapter changes, and those of them that were rounded with compensation.
    n_touched: int
    n_compensated: int
    n_copied: int
    n_bytes: int
    #: Whether the adapter changed any weight.
    changed: bool


def merge(
    base: GgufFile,
    adapter: Mapping[str, LoraPair],
    out: Path,
    *,
    quantization: str = "same",
    at_least: str | None = None,
    statistics: InputStatistics | None = None,
    rounding: RoundingOptions = DEFAULT_ROUNDING,
    seed: int = 1,
    metadata: Mapping[str, Entry] | None = None,
    provenance: Provenance | None = None,
    scales: GgufFile | None = None,
    must_change: bool = False,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> MergeReport:
    """Writes `base` with `adapter` merged into it to `out`, whole or not at all.

    Args:
        base: the file that the adapter was trained on.
        adapter: module name -> change, as `read_adapter` gives it.
        out: the final name.
        quantization: a key of QUANTIZATIONS; `same` keeps type, scales and size of every tensor.
            Where rows are no multiple of 256, `q6_k` means Q8_0.
        at_least: with `same`, the key of a type that touched tensors of fewer bits become.
        statistics: of the layers' inputs; layers that they know are rounded with compensation, all
            others stochastically, or to nearest where they get a new type.
        rounding: how compensated rounding is done.
        seed: of the rounding; the same seed gives the same bytes on the same kind of CPU, however
            many of its cores take part.
        metadata: entries that replace the file's of the same key, or are appended.
        provenance: what the result is made of, to be written into it.
        scales: the same model, quantised. Metadata, types, scales and what the adapter does not
            touch are then those of this file, and `base`, in full precision, gives the weights that
            the change is added to.
        must_change: whether a result that is its base again is an error.
        progress: called with the share of bytes written, 0 to 1.

    Raises:
        ExportError: adapter, base and scales do not fit together, or a type cannot be merged into.
        MergedEqualsBase: the adapter changes no weight, and it must.
    """
    form = scales or base
    changes = ByTensor(base, adapter)
    touched = _match(base, scales, changes, quantization, at_least)
    entries = {**form.metadata, **(metadata or {})}
    if provenance is not None:
        entries = with_provenance(entries, provenance)
    layout = _Layout(form, touched, entries)
    n_workers = os.cpu_count() or 1
    settle_allocator()
    try:
        with ExitStack() as stack:
            stack.enter_context(one_thread())
            unfinished = stack.enter_context(atomic_path(out))
            sources = Sources(stack.enter_context(base.open()), stack.enter_context(form.open()))
            sink = stack.enter_context(unfinished.open("wb"))
            executor = stack.enter_context(ThreadPoolExecutor(n_workers))
            quantised = [tensor.module for tensor in touched.values() if tensor.is_quantised]
            feedbacks = Feedbacks(statistics, adapter, quantised, rounding, executor.map)
            rewriters = _Rewriters(base, changes, sources, feedbacks, seed)
            pieces = layout.pieces(sources, rewriters)
            flusher = stack.enter_context(Flusher(sink))
            for data in made(pieces, executor, n_workers, lambda: _WORK_BYTES - feedbacks.n_bytes):
                sink.write(data)
                flusher.go_on()
                progress(sink.tell() / layout.n_bytes)
            changed = any(tensor.changed for tensor in touched.values())
            if must_change and not changed:
                raise MergedEqualsBase(
                    "The finished model is its base again: the adapter changes no weight",
                    "Train for more steps or at a higher learning rate.",
                )
    except OSError as error:
        raise ExportError(
            f"{out} could not be written: {error.strerror}",
            f"Make room for {layout.n_bytes / 1e6:.0f} MB there, or choose another data directory.",
        ) from error
    return MergeReport(
        n_touched=len(touched),
        n_compensated=feedbacks.n_taken,
        n_copied=len(layout.tensors) - len(touched),
        n_bytes=layout.n_bytes,
        changed=changed,
    )


class _Layout:
    """What stands where in the result: as llama-quantize would write it."""

    def __init__(
        self, form: GgufFile, touched: Mapping[str, Touched], metadata: Mapping[str, Entry]
    ) -> None:
        self._form, self._touched = form, touched
        after = [
            touched[info.name].after if info.name in touched else info for info in form.tensors
        ]
        self.tensors = laid_out(ordered_tensors(after), form.alignment)
        # A file is called by the type of most of its weights.
        before_type, after_type = commonest_type(form.tensors), commonest_type(after)
        file_type = None if before_type == after_type else FILE_TYPES[after_type]
        entries = ordered_metadata(metadata, self.tensors, file_type)
        self._header = header_bytes(entries, self.tensors, form.alignment)
        self.n_bytes = len(self._header) + sum(
            info.n_bytes + self._padding(info) for info in self.tensors
        )

    def _padding(self, info: TensorInfo) -> int:
        return -info.n_bytes % self._form.alignment

    def pieces(self, sources: Sources, rewriters: _Rewriters) -> Iterator[Piece]:
        """The whole file."""
        yield _ready(self._header)
        for info in self.tensors:
            if info.name in self._touched:
                yield from rewriters.pieces(self._touched[info.name])
            else:
                yield from _copied(sources.form, self._form.by_name[info.name])
            if padding := self._padding(info):
                yield _ready(bytes(padding))


def _ready(data: bytes) -> Piece:
    return Piece(lambda: data, len(data))


def _copied(source: TensorReader, info: TensorInfo) -> Iterator[Piece]:
    for start in range(0, info.n_bytes, _COPY_BYTES):
        n_bytes = min(_COPY_BYTES, info.n_bytes - start)
        yield Piece(partial(source.read, info, start, n_bytes), n_bytes)


@dataclass(frozen=True, slots=True)
class _Rewriters:
    """What all touched tensors have in common."""

    base: GgufFile
    changes: Mapping[str, Changes]
    sources: Sources
    feedbacks: Feedbacks
    seed: int

    def pieces(self, tensor: Touched) -> Iterator[Piece]:
        compensation = None
        if tensor.is_quantised:
            if self.feedbacks.needs_room(tensor.module):
                yield Piece(bytes, 0, waits=True)
            compensation = self.feedbacks.take(tensor.module)
        changes = self.changes[tensor.module]
        n_rows = tensor.before.n_rows // len(changes)
        for number, part in enumerate(changes):
            up = np.ascontiguousarray(row_order(self.base, tensor.module)(part.up))
            pair = LoraPair(part.down, up)
            rewriter = Rewriter(
                tensor, pair, self.sources, self.seed, compensation, number * n_rows
            )
            yield from rewriter.pieces()


def _match(
    base: GgufFile,
    scales: GgufFile | None,
    changes: Mapping[str, Changes],
    quantization: str,
    at_least: str | None,
) -> dict[str, Touched]:
    """Tensors that change, by name."""
    architecture_of(base)
    if scales is not None:
        _check_same_model(base, scales)
    names = tensor_names(base)
    touched = {}
    for module, pairs in changes.items():
        name = names.get(module)
        if name is None:
            raise ExportError(
                f"The adapter changes {module}, which {base.path.name} does not have",
                "Merge an adapter into the base that it was trained on.",
            )
        before = base.by_name[name]
        for pair in pairs:
            _check_pair(module, pair, before, len(pairs))
        form = before if scales is None else scales.by_name[name]
        for info in (before, form):
            _check_mergeable(info)
        after = replace(form, type=type_after(form, quantization, at_least))
        on_scales = scales is not None and after.type == form.type
        touched[name] = Touched(
            module=module, before=before, after=after, scales=form if on_scales else None
        )
    return touched


def _check_same_model(base: GgufFile, scales: GgufFile) -> None:
    here, there = ({info.name: info.shape for info in file.tensors} for file in (base, scales))
    for name in here.keys() | there.keys():
        if here.get(name) != there.get(name):
            raise ExportError(
                f"{name} has shape {here.get(name)} in {base.path.name},"
                f" but {there.get(name)} in {scales.path.name}",
                "Quantise the very model that the adapter was trained on.",
            )


def _check_pair(module: str, pair: LoraPair, info: TensorInfo, n_pairs: int) -> None:
    shape = (pair.down.shape[1], pair.up.shape[0])
    if info.shape != (shape if n_pairs == 1 else (*shape, n_pairs)):
        raise ExportError(
            f"The adapter's {module} has shape {shape}, the base's {info.name} {info.shape}",
            "Merge an adapter into the base that it was trained on.",
        )
    # No change is larger than this; of what is not a number, it is none either.
    largest = float(np.abs(pair.down).max()) * float(np.abs(pair.up).max()) * len(pair.down)
    if not largest < _LARGEST_CHANGE:
        raise NotANumber(
            f"The adapter's change of {info.name} is not a finite number",
            "Training diverged: use a lower learning rate.",
        )


def _check_mergeable(info: TensorInfo) -> None:
    if info.type.name not in MERGEABLE:
        raise ExportError(
            f"{info.name} is of the type {info.type.name}, which a LoRA cannot be merged into",
            f"Use a base whose tensors are of {', '.join(sorted(MERGEABLE))}.",
        )


def type_after(info: TensorInfo, quantization: str, at_least: str | None = None) -> TensorType:
    """The type that a touched tensor of the base becomes; arguments as of `merge`.

    Raises:
        ExportError: its rows do not fit the type.
    """
    target = QUANTIZATIONS[quantization] or info.type
    floor = QUANTIZATIONS[at_least] if at_least else None
    if floor is not None and floor.bits_per_weight > target.bits_per_weight:
        target = floor
    if target.name == "Q6_K" and info.row_length % target.block:
        target = TYPE_BY_NAME["Q8_0"]
    if info.row_length % target.block:
        raise ExportError(
            f"{info.name} has rows of {info.row_length} weights, which {target.name} cannot hold",
            "Use the quantization f16, or same.",
        )
    return target
