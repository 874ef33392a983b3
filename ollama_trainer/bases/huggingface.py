"""A base that is a Hugging Face directory: converted once, by llama.cpp's own converter.

The GGUF holds the weights in the precision that they have there, and what a run trains on, renders
and tokenises is that GGUF, as with any other base.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from ollama_trainer.bases import caches
from ollama_trainer.bases.converter import check_plain, convert
from ollama_trainer.bases.digests import sha256_of
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.architectures import ARCHITECTURES
from ollama_trainer.records import BaseGguf

#: Raised when conversion changes, so that older files in the cache are not used.
_LAYOUT = 1
#: What a conversion follows from.
_READ = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
#: `model_type` in configurations that become GGUFs of a supported architecture.
_MODEL_TYPES = frozenset(kind.model_type for kind in ARCHITECTURES.values()) | {
    "mistral", "mixtral", "gemma3",
}  # fmt: skip
_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_LONGEST_HEADER = 100 << 20


def load(name: str, model: Path, cache: Path, title: str = "") -> BaseGguf:
    """Finds or makes the GGUF of a Hugging Face directory.

    Args:
        name: as the caller wrote it.
        model: the directory.
        cache: the directory that holds all conversions.
        title: the model's name in the file; empty: that of its directory.

    Raises:
        BaseModelError: it is no such directory, brings code, or cannot be converted.
        BackendUnavailable: the converter is not installed.
    """
    check_supported(model)
    check_plain(model)
    gguf = cache / f"converted-{_LAYOUT}-{_digest(model, cache)[:32]}.gguf"
    if not gguf.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        convert(model, gguf, precision(model), title)
    caches.mark_used(gguf)
    return BaseGguf(name=name, gguf=gguf, digest=sha256_of(gguf, cache))


def check_supported(model: Path) -> None:
    """Looks at the configuration alone, before anything is fetched or converted.

    Raises:
        BaseModelError: it is missing, or of an architecture that is not supported.
    """
    path = model / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type", "(none)")
    except FileNotFoundError as error:
        raise BaseModelError(
            f"{model} is no Hugging Face directory: it has no config.json", "Check the path."
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise BaseModelError(f"{path} cannot be read: {error}", "Fetch it again.") from error
    if kind not in _MODEL_TYPES:
        raise BaseModelError(
            f"{path} is of the architecture {kind!r:.80}, which is not supported",
            f"Choose a base of one of: {', '.join(sorted(_MODEL_TYPES))}.",
        )


def _digest(model: Path, cache: Path) -> str:
    """SHA-256 of what a conversion follows from, lower-case hex."""
    paths = sorted({path for pattern in _READ for path in model.glob(pattern)})
    lines = [f"{path.name} {sha256_of(path, cache)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def precision(model: Path) -> str:
    """`f32`, `f16` or `bf16`: what most of the weights are kept in.

    Raises:
        BaseModelError: in something else, such as the 8-bit floats of a quantised checkpoint.
    """
    sizes: dict[str, int] = {}
    for path in sorted(model.glob("*.safetensors")):
        for key, tensor in _header(path).items():
            if key != "__metadata__":
                start, stop = tensor["data_offsets"]
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + stop - start
    most = max(sizes, key=lambda kind: sizes[kind], default="nothing")
    if most not in _KINDS:
        raise BaseModelError(
            f"The weights in {model} are of the type {most}",
            f"Choose a checkpoint in {', '.join(_KINDS)}.",
        )
    return _KINDS[most]


def _header(path: Path) -> dict[str, Any]:
    """A safetensors file's header. Source: the format's description by Hugging Face."""
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(handle.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise BaseModelError(f"{path} cannot be read: {error}") from error
    return header
