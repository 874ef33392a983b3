"""Where a base model comes from: a name, as people write it -> a GGUF file on disk.

builtin.py      smollm2, from an installed package
gguf_file.py    gguf:/path/to/file.gguf
dequantized.py  that file as a Hugging Face directory, which training backends read
"""

from __future__ import annotations

from pathlib import Path

from ollama_trainer.bases import builtin, gguf_file
from ollama_trainer.errors import BaseModelError
from ollama_trainer.records import BaseGguf

GGUF_PREFIX = "gguf:"


def resolve_base(name: str) -> BaseGguf:
    """Finds the GGUF file of a base.

    Args:
        name: `smollm2`, or `gguf:` and the absolute path of a file.

    Raises:
        BaseModelError: there is no such base, or its file is not what it must be.
    """
    if name.startswith(GGUF_PREFIX):
        return gguf_file.load(name, Path(name.removeprefix(GGUF_PREFIX)))
    if name in builtin.BUILTIN:
        return builtin.load(name)
    raise BaseModelError(
        f"The base {name!r} is unknown",
        f"Use {', '.join(builtin.BUILTIN)}, or {GGUF_PREFIX}/absolute/path/of/a/file.gguf.",
    )
