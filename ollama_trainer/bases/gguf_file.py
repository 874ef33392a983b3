"""A base that is a GGUF file of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ollama_trainer.bases.digests import digest_of
from ollama_trainer.bases.permissions import not_allowed
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.records import BaseGguf


def load(
    name: str,
    path: Path,
    cache: Path | None = None,
    check: Callable[[GgufFile], object] | None = None,
) -> BaseGguf:
    """Checks that `path` is a readable GGUF file.

    Args:
        cache: directory that remembers the file's digest.
        check: asked before the digest is counted.

    Raises:
        BaseModelError: the path is relative, or there is no such file, or it may not be read.
        GgufError: it is not a whole GGUF file.
    """
    try:
        if not path.is_absolute() or not path.is_file():
            raise BaseModelError(
                f"The base {name!r} is not the absolute path of a file", "Check the path."
            )
        path.open("rb").close()
    except PermissionError as error:
        raise not_allowed(name, path) from error
    gguf = read_gguf(path)
    if check is not None:
        check(gguf)
    # Of a model in several files the first one stands for all.
    return BaseGguf(
        name=name,
        gguf=gguf.path,
        digest=digest_of(gguf, cache),
        license=str(gguf.get("general.license", "")),
    )
