"""The streaming pass: base GGUF + adapter -> GGUF.

Tensors that the adapter does not touch are copied byte for byte; touched ones are rewritten on the
base's own scales, a chunk of rows at a time. Metadata is carried over as it stands, except for the
entries that the caller replaces. Memory stays bounded by a chunk, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.adapter import LoraPair
from ollama_trainer.gguf.file import (
    TYPE_BY_NAME,
    Entry,
    GgufFile,
    TensorInfo,
    TensorType,
    header_bytes,
    laid_out,
)
from ollama_trainer.gguf.grids import MERGEABLE, as_float_bytes, dequantize, quantize_q8_0
from ollama_trainer.gguf.rounding import add_on_grid, generator_for
from ollama_trainer.gguf.tensors import architecture_of, row_order, tensor_names
from ollama_trainer.workspace import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

#: What touched tensors become: their own type on their own scales, or another type.
QUANTIZATIONS = {"same": None, "f16": TYPE_BY_NAME["F16"], "q8_0": TYPE_BY_NAME["Q8_0"]}
#: Weights that are worked on at once: 64 MB as float32, several of which are alive.
_CHUNK_WEIGHTS = 1 << 22
_COPY_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What the pass did."""

    n_touched: int
    n_copied: int
    n_bytes: int


def merge(
    base: GgufFile,
    adapter: Mapping[str, LoraPair],
    out: Path,
    *,
    quantization: str = "same",
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
        seed: of the rounding; the same seed gives the same bytes on the same kind of CPU.
        metadata: entries that replace the base's of the same key, or are appended.
        progress: called with the share of bytes written, 0 to 1.

    Raises:
        ExportError: the adapter does not fit the base, or a type cannot be merged into.
    """
    target = QUANTIZATIONS[quantization]
    touched = _match(base, adapter, target)
    kinds = {name: target or base.by_name[name].type for name in touched}
    entries = {**base.metadata, **(metadata or {})}
    infos = laid_out(
        (replace(info, type=kinds.get(info.name, info.type)) for info in base.tensors),
        base.alignment,
    )
    header = header_bytes(entries, infos, base.alignment)
    total = len(header) + sum(info.n_bytes + -info.n_bytes % base.alignment for info in infos)
    try:
        with (
            atomic_path(out) as partial,
            base.path.open("rb") as source,
            partial.open("wb") as sink,
        ):
            sink.write(header)
            for before, after in zip(base.tensors, infos, strict=True):
                _write_tensor(base, before, after, touched.get(before.name), seed, source, sink)
                sink.write(b"\0" * (-after.n_bytes % base.alignment))
                progress(sink.tell() / total)
            sink.flush()
            size = sink.tell()
    except OSError as error:
        raise ExportError(
            f"{out} could not be written: {error.strerror}",
            f"Make room for {total / 1e6:.0f} MB there, or choose another data directory.",
        ) from error
    return MergeReport(len(touched), len(infos) - len(touched), size)


@dataclass(frozen=True, slots=True)
class _Change:
    """An adapter's change in the row order of the GGUF."""

    pair: LoraPair

    def rows(self, start: int, stop: int) -> Tensor:
        return self.pair.up[start:stop] @ self.pair.down


def _match(
    base: GgufFile, adapter: Mapping[str, LoraPair], target: TensorType | None
) -> dict[str, _Change]:
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
        if target is not None and info.row_length % target.block:
            raise ExportError(
                f"{name} has rows of {info.row_length} weights, which {target.name} cannot hold",
                "Use the quantization f16, or same.",
            )
        if info.type.name not in MERGEABLE:
            raise ExportError(
                f"{name} is of the type {info.type.name}, which a LoRA cannot be merged into",
                f"Use a base whose tensors are of {', '.join(sorted(MERGEABLE))}.",
            )
        touched[name] = _Change(LoraPair(pair.down, row_order(base, module)(pair.up)))
    return touched


def _write_tensor(
    base: GgufFile,
    before: TensorInfo,
    after: TensorInfo,
    change: _Change | None,
    seed: int,
    source: BinaryIO,
    sink: BinaryIO,
) -> None:
    source.seek(base.data_start + before.offset)
    if change is None:
        _copy(source, sink, before.n_bytes)
        return
    import torch

    generator = generator_for(seed, before.name)
    step = max(1, _CHUNK_WEIGHTS // before.row_length)
    for start in range(0, before.n_rows, step):
        stop = min(before.n_rows, start + step)
        data = bytearray(_read(source, (stop - start) * before.row_bytes))
        raw = torch.frombuffer(data, dtype=torch.uint8).reshape(stop - start, -1)
        delta = change.rows(start, stop)
        if not torch.isfinite(delta).all():
            raise ExportError(
                f"The adapter's change of {before.name} is not a finite number",
                "Training diverged: use a lower learning rate.",
            )
        if after.type == before.type:
            result = add_on_grid(raw, delta, before.type, generator)
        else:
            result = _requantized(dequantize(raw, before.type) + delta, after)
        sink.write(result.numpy().tobytes())


def _requantized(values: Tensor, info: TensorInfo) -> Tensor:
    if info.type.name == "Q8_0":
        return quantize_q8_0(values)
    return as_float_bytes(values, info.type)


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
