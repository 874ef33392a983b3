"""A base that is a GGUF file of the user's own."""

from __future__ import annotations

from pathlib import Path

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.gguf.provenance import digest_of
from ollama_trainer.records import BaseGguf


def load(name: str, path: Path) -> BaseGguf:
    """Checks that `path` is a readable GGUF file.

    Raises:
        BaseModelError: the path is relative, or there is no such file.
        GgufError: it is not a whole GGUF file.
    """
    if not path.is_absolute() or not path.is_file():
        raise BaseModelError(
            f"The base {name!r} is not the absolute path of a file", "Check the path."
        )
    gguf = read_gguf(path)
    # Of a model in several files the first one stands for all.
    return BaseGguf(
        name=name,
        gguf=gguf.path,
        digest=digest_of(gguf),
        license=str(gguf.get("general.license", "")),
    )
