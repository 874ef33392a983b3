"""Where a base model comes from: a name, as people write it -> a GGUF file on disk.

builtin.py        smollm2, from an installed package
gguf_file.py      gguf:/path/to/file.gguf
huggingface.py    hf:/path/to/a/directory, converted once by llama.cpp's own converter
converter.py      that converter
dequantized.py    the GGUF as a Hugging Face directory, which training backends read
configuration.py  its hyperparameters as transformers' configuration
caches.py         how long what is made of bases is kept
"""

from __future__ import annotations

from pathlib import Path

from ollama_trainer.bases import builtin, gguf_file, huggingface
from ollama_trainer.errors import BaseModelError
from ollama_trainer.records import BaseGguf

GGUF_PREFIX = "gguf:"
HF_PREFIX = "hf:"


def resolve_base(name: str, cache: Path | None = None) -> BaseGguf:
    """Finds the GGUF file of a base.

    Args:
        name: `smollm2`, `gguf:` and the absolute path of a file, or `hf:` and the absolute path of
            a directory.
        cache: directory for what is made of a base; several runs share it. Only bases of the first
            two kinds can do without.

    Raises:
        BaseModelError: there is no such base, or its file is not what it must be.
        BackendUnavailable: what makes its GGUF is not installed.
    """
    if name.startswith(GGUF_PREFIX):
        return gguf_file.load(name, Path(name.removeprefix(GGUF_PREFIX)))
    if name.startswith(HF_PREFIX):
        path = Path(name.removeprefix(HF_PREFIX))
        if not path.is_absolute() or not path.is_dir():
            raise BaseModelError(
                f"The base {name!r} is not the absolute path of a directory", "Check the path."
            )
        if cache is None:
            raise ValueError(f"the base {name!r} needs a cache")
        return huggingface.load(name, path, cache)
    if name in builtin.BUILTIN:
        return builtin.load(name)
    raise BaseModelError(
        f"The base {name!r} is unknown",
        f"Use {', '.join(builtin.BUILTIN)}, {GGUF_PREFIX}/absolute/path/of/a/file.gguf, or"
        f" {HF_PREFIX}/absolute/path/of/a/directory.",
    )
