"""The streaming pass: base GGUF + adapter -> GGUF.

Tensors that the adapter does not touch are copied byte for byte; touched ones are rewritten on the
base's own scales, a chunk of rows at a time. Metadata is carried over as it stands, except for the
entries that the caller replaces. Memory stays bounded by a chunk, whatever the model's size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ollama_trainer.errors import ExportError, NotANumber
from ollama_trainer.gguf.adapter import LoraPair
from ollama_trainer.gguf.compensation import Feedback, feedback_of
from ollama_trainer.gguf.file import (
    TYPE_BY_NAME,
    Entry,
    GgufFile,
    TensorInfo,
    TensorType,
    header_bytes,
    laid_out,
)
from ollama_trainer.gguf.grids import MERGEABLE, as_float_bytes, dequantize
from ollama_trainer.gguf.quantize import QUANTIZERS
from ollama_trainer.gguf.rounding import Compensation, add_on_grid, generator_for
from ollama_trainer.gguf.statistics import InputStatistics
from ollama_trainer.gguf.tensors import architecture_of, row_order, tensor_names
from ollama_trainer.workspace import atomic_path

if TYPE_CHECKING:
    from torch import Generator, Tensor

#: What touched tensors become: their own type on their own scales, or another type.
QUANTIZATIONS = {
    "same": None,
    "f16": TYPE_BY_NAME["F16"],
    "q8_0": TYPE_BY_NAME["Q8_0"],
    "q6_k": TYPE_BY_NAME["Q6_K"],
}
#: Weights that are worked on at once: 64 MB as float32, several of which are alive.
_CHUNK_WEIGHTS = 1 << 22
_COPY_BYTES = 1 << 24
#: Inputs from which on a GPU is faster: it waits for each column as long as a CPU, and only the
#: work within a column is quicker.
_WIDE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingOptions:
    """How compensated rounding is done; docs/explanation/nothing-lost.md has the measurements."""

    #: Share of the mean diagonal that is added to the diagonal of the second moments.
    damping: float = 0.01
    #: Share of the rounding that is left to chance.
    dither: float = 0.6
    #: How much the directions that the adapter reads count, beside the mean diagonal.
    protection: float = 5.0


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
    rounding: RoundingOptions = RoundingOptions(),
    seed: int = 1,
    metadata: Mapping[str, Entry] | None = None,
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
            others stochastically.
        rounding: how compensated rounding is done.
        seed: of the rounding; the same seed gives the same bytes on the same kind of CPU.
        metadata: entries that replace the base's of the same key, or are appended.
        progress: called with the share of bytes written, 0 to 1.

    Raises:
        ExportError: the adapter does not fit the base, or a type cannot be merged into.
    """
    touched = _match(base, adapter, quantization, at_least)
    entries = {**base.metadata, **(metadata or {})}
    infos = laid_out(
        (touched[info.name].after if info.name in touched else info for info in base.tensors),
        base.alignment,
    )
    header = header_bytes(entries, infos, base.alignment)
    total = len(header) + sum(info.n_bytes + -info.n_bytes % base.alignment for info in infos)
    feedbacks = _Feedbacks(statistics, adapter, rounding)
    changed = False
    try:
        with (
            atomic_path(out) as partial,
            base.path.open("rb") as source,
            partial.open("wb") as sink,
        ):
            sink.write(header)
            for before in base.tensors:
                source.seek(base.data_start + before.offset)
                tensor = touched.get(before.name)
                if tensor is None:
                    _copy(source, sink, before.n_bytes)
                else:
                    compensation = feedbacks.take(tensor.module)
                    changed |= _write_touched(tensor, compensation, seed, source, sink)
                sink.write(b"\0" * (-sink.tell() % base.alignment))
                progress(sink.tell() / total)
            sink.flush()
            size = sink.tell()
    except OSError as error:
        raise ExportError(
            f"{out} could not be written: {error.strerror}",
            f"Make room for {total / 1e6:.0f} MB there, or choose another data directory.",
        ) from error
    return MergeReport(
        n_touched=len(touched),
        n_compensated=feedbacks.n_taken,
        n_copied=len(infos) - len(touched),
        n_bytes=size,
        changed=changed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Touched:
    """A tensor with an adapter's change, in the row order of the GGUF."""

    module: str
    before: TensorInfo
    #: Name, shape and type that it will have.
    after: TensorInfo
    pair: LoraPair

    def delta(self, start: int, stop: int) -> Tensor:
        import torch

        delta = self.pair.up[start:stop] @ self.pair.down
        if not torch.isfinite(delta).all():
            raise NotANumber(
                f"The adapter's change of {self.before.name} is not a finite number",
                "Training diverged: use a lower learning rate.",
            )
        return delta


class _Feedbacks:
    """Compensation for each module, kept only as long as layers with the same input are to come."""

    def __init__(
        self,
        statistics: InputStatistics | None,
        adapter: Mapping[str, LoraPair],
        rounding: RoundingOptions,
    ) -> None:
        self._statistics, self._adapter, self._rounding = statistics, adapter, rounding
        inputs = statistics.inputs if statistics is not None else {}
        self._input_of = {module: inputs[module] for module in adapter if module in inputs}
        self._to_come = Counter(self._input_of.values())
        self._kept: dict[str, Feedback] = {}
        self.n_taken = 0

    def take(self, module: str) -> Compensation | None:
        """The compensation of a module; each module takes it once."""
        import torch

        name = self._input_of.get(module)
        if name is None or self._statistics is None:
            return None
        if name not in self._kept:
            moment = self._statistics.second_moment(name)
            _protect(moment, self._pairs(name), self._rounding.protection)
            wide = len(moment) >= _WIDE and torch.cuda.is_available()
            moment = moment.to("cuda" if wide else "cpu")
            self._kept[name] = feedback_of(moment, self._rounding.damping)
        feedback = self._kept[name]
        self._to_come[name] -= 1
        if not self._to_come[name]:
            del self._kept[name]
        self.n_taken += 1
        return Compensation(feedback, self._rounding.dither)

    def _pairs(self, name: str) -> list[LoraPair]:
        return [self._adapter[module] for module, own in self._input_of.items() if own == name]


def _protect(moment: Tensor, pairs: Sequence[LoraPair], protection: float) -> None:
    """Adds the directions that the adapter reads to the second moments, in place.

    The moments know the inputs of the rows that were trained on. Other questions have other inputs,
    and what the adapter does with those lies in the few directions that it reads at all: D'D of its
    change D, scaled so that each of them counts `protection` times the mean diagonal.
    """
    mean = moment.diagonal().mean()
    ranks = sum(len(pair.down) for pair in pairs)
    for pair in pairs:
        reads = pair.down.T @ (pair.up.T @ pair.up) @ pair.down
        total = reads.diagonal().sum()
        if total > 0:
            moment.add_(reads, alpha=float(protection * mean * ranks / total))


def _match(
    base: GgufFile,
    adapter: Mapping[str, LoraPair],
    quantization: str,
    at_least: str | None,
) -> dict[str, _Touched]:
    architecture_of(base)
    names = tensor_names(base)
    touched = {}
    for module, pair in adapter.items():
        name = names.get(module)
        if name is None:
            raise ExportError(
                f"The adapter changes {module}, which {base.path.name} does not have",
                "Merge an adapter into the base that it was trained on.",
            )
        info = base.by_name[name]
        shape = (pair.down.shape[1], pair.up.shape[0])
        if info.shape != shape:
            raise ExportError(
                f"The adapter's {module} has shape {shape}, the base's {name} {info.shape}",
                "Merge an adapter into the base that it was trained on.",
            )
        if info.type.name not in MERGEABLE:
            raise ExportError(
                f"{name} is of the type {info.type.name}, which a LoRA cannot be merged into",
                f"Use a base whose tensors are of {', '.join(sorted(MERGEABLE))}.",
            )
        touched[name] = _Touched(
            module=module,
            before=info,
            after=replace(info, type=type_after(info, quantization, at_least)),
            pair=LoraPair(pair.down, row_order(base, module)(pair.up)),
        )
    return touched


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


def _write_touched(
    tensor: _Touched,
    compensation: Compensation | None,
    seed: int,
    source: BinaryIO,
    sink: BinaryIO,
) -> bool:
    """Writes a touched tensor; returns whether the adapter changed any weight of it."""
    import torch

    before, after = tensor.before, tensor.after
    generator = generator_for(seed, before.name)
    changed = False
    step = max(1, _CHUNK_WEIGHTS // before.row_length)
    for start in range(0, before.n_rows, step):
        stop = min(before.n_rows, start + step)
        data = bytearray(_read(source, (stop - start) * before.row_bytes))
        raw = torch.frombuffer(data, dtype=torch.uint8).reshape(stop - start, -1)
        delta = tensor.delta(start, stop)
        if after.type == before.type:
            result = add_on_grid(raw, delta, before.type, generator, compensation)
            changed = changed or not torch.equal(result, raw)
        else:
            changed = changed or bool(delta.any())
            wished = dequantize(raw, before.type) + delta
            result = _on_new_grid(wished, after.type, generator, compensation)
        sink.write(result.numpy().tobytes())
    return changed


def _on_new_grid(
    wished: Tensor, kind: TensorType, generator: Generator, compensation: Compensation | None
) -> Tensor:
    """Bytes of another type, with scales of their own; rounded to nearest, errors made good.

    No weight lies on the new grid to begin with, so rounding to nearest loses no change there.
    """
    if kind.name not in QUANTIZERS:
        return as_float_bytes(wished, kind)
    raw = QUANTIZERS[kind.name](wished)
    if compensation is None:
        return raw
    error = wished - dequantize(raw, kind)
    return add_on_grid(raw, error, kind, generator, replace(compensation, dither=0.0))


def _copy(source: BinaryIO, sink: BinaryIO, n_bytes: int) -> None:
    while n_bytes:
        data = _read(source, min(n_bytes, _COPY_BYTES))
        sink.write(data)
        n_bytes -= len(data)


def _read(source: BinaryIO, n_bytes: int) -> bytes:
    data = source.read(n_bytes)
    if len(data) != n_bytes:
        raise ExportError(
            f"{source.name} ended while it was read",
            "Leave the base alone while a run uses it, and start the run again.",
        )
    return data
