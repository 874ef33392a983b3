"""A base that is a GGUF file of the user's own."""

from __future__ import annotations

from pathlib import Path

from ollama_trainer.bases.builtin import sha256_of
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import read_gguf
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
    license_name = str(read_gguf(path).get("general.license", ""))
    return BaseGguf(name=name, gguf=path, digest=sha256_of(path), license=license_name)
