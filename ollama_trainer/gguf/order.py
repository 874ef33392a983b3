"""The order in which llama-quantize writes keys and tensors.

Some versions of Ollama pass every uploaded GGUF through `llama-quantize … COPY`. A file that
already is what this writes comes out byte for byte, and keeps the digest that it was uploaded by.

Source: llama-quant.cpp, llama-model-loader.cpp and gguf.cpp of llama.cpp b10488. A copy has

- GGUF version 3, and the keys in their order, without those of split files; the version of the
  quantisation and the file type are set anew, and so come last;
- texts up to their first zero byte, as C reads them;
- the tensors that belong to no block, in the order of their names as bytes; then block after
  block, each in the order of the names;
- no dimension of 1 at the end of a shape, but for the first;
- tensors one after another, each padded to 32 bytes, the last one too.

A model of another alignment has no valid copy: tensors are laid out by 32, and the key that says
otherwise is kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ollama_trainer.errors import GgufError
from ollama_trainer.gguf.file import Entry, TensorInfo, uint32_entry
from ollama_trainer.gguf.splits import SPLIT_KEYS
from ollama_trainer.gguf.values import as_c_reads, shown

FILE_TYPE = "general.file_type"
_QUANTIZATION_VERSION = "general.quantization_version"
#: Of the blocks' layouts (GGML_QNT_VERSION); the same for as long as there are GGUF files.
_VERSION = 2
#: What a file is called whose tensors are mostly of a type (enum llama_ftype).
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip
#: As C's scanf reads a number.
_BLOCK = re.compile(r"blk\.[ \t-\r]*([+-]?\d{1,9})", re.ASCII)


def ordered_metadata(
    metadata: Mapping[str, Entry],
    tensors: Iterable[TensorInfo],
    file_type: int | None = None,
) -> dict[str, Entry]:
    """The entries as llama-quantize writes them.

    Args:
        tensors: of the file that is to be written.
        file_type: what that file is called, one of FILE_TYPES' numbers; if not given, what the
            metadata say, or else what llama.cpp guesses.

    Raises:
        GgufError: the file type that the metadata say is no number.
    """
    if file_type is None:
        file_type = _file_type(metadata, tensors)
    own = (*SPLIT_KEYS, _QUANTIZATION_VERSION, FILE_TYPE)
    entries = {
        key: Entry.of(as_c_reads(entry.raw)) for key, entry in metadata.items() if key not in own
    }
    entries[_QUANTIZATION_VERSION] = uint32_entry(_QUANTIZATION_VERSION, _VERSION)
    entries[FILE_TYPE] = uint32_entry(FILE_TYPE, file_type)
    return entries


def ordered_tensors(tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    """The tensors in llama-quantize's order, with shapes as it writes them; offsets stay."""
    in_order = sorted(tensors, key=lambda tensor: (_block(tensor.name), tensor.name.encode()))
    return tuple(replace(tensor, shape=_shortened(tensor.shape)) for tensor in in_order)


def commonest_type(tensors: Iterable[TensorInfo]) -> str:
    """The type that most of the weights are of."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.type.name] += tensor.row_length * tensor.n_rows
    return max(counts, key=lambda name: counts[name], default="F32")


def _block(name: str) -> int:
    number = _BLOCK.match(name)
    return int(number[1]) if number else -1


def _shortened(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _file_type(metadata: Mapping[str, Entry], tensors: Iterable[TensorInfo]) -> int:
    if FILE_TYPE not in metadata:
        return _guessed(tensors)
    value = metadata[FILE_TYPE].value
    if not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise GgufError(
            f"{FILE_TYPE} is {shown(value)}, which is no number of a file type",
            "Fetch or make the file again.",
        )
    return value


def _guessed(tensors: Iterable[TensorInfo]) -> int:
    """The name of the commonest type; of two, that of which the last tensor comes first."""
    counts: Counter[str] = Counter()
    commonest, most = "F32", 0
    for tensor in ordered_tensors(tensors):
        kind = tensor.type.name
        counts[kind] += 1
        if counts[kind] > most:
            commonest, most = kind, counts[kind]
    return FILE_TYPES.get(commonest, FILE_TYPES["F32"])
