"""Whether two GGUFs say the same, whatever the order in which they say it."""

from __future__ import annotations

from ollama_trainer.gguf.file import GgufFile, TensorInfo, TensorReader

#: Written anew by llama-quantize, also where it only copies; they describe, and nothing reads them.
_DESCRIPTIVE = {"general.file_type", "general.quantization_version", "general.alignment"}
_READ_BYTES = 1 << 22


def first_difference(one: GgufFile, other: GgufFile) -> str | None:
    """What the second file has otherwise, in words; None where both are the same model.

    Raises:
        GgufError: one of them cannot be read.
    """
    for key in sorted((one.metadata.keys() | other.metadata.keys()) - _DESCRIPTIVE):
        if one.metadata.get(key) != other.metadata.get(key):
            return f"its metadata {key!r} {_how(key in one.metadata, key in other.metadata)}"
    for name in sorted(one.by_name.keys() | other.by_name.keys()):
        if name not in one.by_name or name not in other.by_name:
            return f"its tensor {name!r} {_how(name in one.by_name, name in other.by_name)}"
    with one.open() as left, other.open() as right:
        for tensor in one.tensors:
            if not _is_same(left, tensor, right, other.by_name[tensor.name]):
                return f"its tensor {tensor.name!r} differs"
    return None


def _how(in_one: bool, in_other: bool) -> str:
    if in_one and in_other:
        return "differs"
    return "is missing" if in_one else "was added"


def _shape(tensor: TensorInfo) -> tuple[int, ...]:
    """Without ones at its end, which llama-quantize leaves out."""
    shape = tensor.shape
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _is_same(left: TensorReader, one: TensorInfo, right: TensorReader, other: TensorInfo) -> bool:
    if (_shape(one), one.type) != (_shape(other), other.type):
        return False
    pieces = range(0, one.n_bytes, _READ_BYTES)
    return all(
        left.read(one, start, min(_READ_BYTES, one.n_bytes - start))
        == right.read(other, start, min(_READ_BYTES, one.n_bytes - start))
        for start in pieces
    )
