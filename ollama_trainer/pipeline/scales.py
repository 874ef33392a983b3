"""A base in another quantisation: made by llama.cpp's own quantiser, once for each base and type.

A merge then keeps the scales of that file, as it keeps those of a base that was quantised already:
what is rounded is the sum of the base's own weights and the adapter's change, so that nothing is
rounded twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ollama_trainer.bases import caches
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.tensors import trained_tensors
from ollama_trainer.llama import quantize_file

#: Raised when the files change, so that older ones in a cache are not used.
_LAYOUT = 1
#: Quantisations of a whole file -> llama.cpp's name of them.
WHOLE = {
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
    "q4_0": "MOSTLY_Q4_0",
}
#: Of those, the ones that may also mean the touched tensors alone: finer than most bases.
_FINE = ("q8_0", "q6_k")
_FLOATS = ("F32", "F16", "BF16")


def changes_whole_file(base: GgufFile, quantization: str) -> bool:
    """Whether every tensor gets another type, or at most those that the adapter touches.

    In a base of floats all are quantised. In one that is quantised already, a finer type for the
    touched tensors keeps what was learned, and would make nothing of the others but larger ones.
    """
    return quantization in WHOLE and (quantization not in _FINE or _is_of_floats(base))


def scales_of(
    base: GgufFile,
    quantization: str,
    cache: Path,
    digest: str,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> GgufFile | None:
    """The base in that quantisation, if it is one of the whole file.

    Args:
        cache: directory for such files.
        digest: SHA-256 of the base.
        progress: called at the beginning and the end: llama.cpp tells nothing between.

    Raises:
        ExportError: llama.cpp cannot quantise the base.
    """
    if not changes_whole_file(base, quantization):
        return None
    path = cache / f"scales-{_LAYOUT}-{digest[:32]}-{quantization}.gguf"
    if not path.is_file():
        progress(0.0)
        cache.mkdir(parents=True, exist_ok=True)
        quantize_file(base.path, path, WHOLE[quantization])
        progress(1.0)
    caches.mark_used(path)
    return read_gguf(path)


def _is_of_floats(base: GgufFile) -> bool:
    return all(tensor.type.name in _FLOATS for tensor in trained_tensors(base))
