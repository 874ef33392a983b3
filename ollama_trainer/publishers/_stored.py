"""Whether what Ollama stored is what was made.

Some versions write every file anew when a model is created, so that its digest may be another one.
Then the two files are compared, where the stored one can be read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import BaseModelError, GgufError, PublishError, StoredDiffers
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.gguf.same import first_difference
from ollama_trainer.ollama.shown import blob_digest, read_shown

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi


def check_stored(api: OllamaApi, model: str, gguf: Path, digest: str) -> bool:
    """Compares the file of a model in Ollama with the one that it was made of.

    Args:
        digest: of `gguf`, `sha256:` and hex.

    Returns:
        False where that cannot be told: it was written anew, and cannot be read here.

    Raises:
        StoredDiffers: Ollama has something else.
        OllamaUnreachable, PublishError: as of `OllamaApi`.
    """
    described = api.described(model)
    if described is None:
        raise PublishError(f"Ollama does not have the model {model} any more", "Publish again.")
    stored = stored_file(described)
    blob = blob_digest(str(stored))
    if stored is None or not blob:
        return False
    if f"sha256:{blob}" == digest:
        return True
    try:
        difference = first_difference(read_gguf(gguf), read_gguf(stored))
    except (OSError, GgufError):
        # In another user's folder, in a container or on another machine.
        return False
    if difference is not None:
        raise StoredDiffers(
            f"Ollama has stored something else than it was given: {difference}",
            "The GGUF is kept. Look after the disk where Ollama keeps its models, then publish"
            " again; if it stays so, report it with Ollama's version.",
        )
    return True


def stored_file(described: Mapping[str, Any]) -> Path | None:
    """Where a model's GGUF lies on the server's machine; None where Ollama does not tell.

    Args:
        described: the answer of /api/show.
    """
    try:
        files = read_shown(described).files
    except BaseModelError:
        return None
    return Path(files[0]) if files else None
