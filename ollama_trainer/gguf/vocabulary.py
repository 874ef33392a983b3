"""The tokens of a GGUF, checked: headers come from anywhere."""

from __future__ import annotations

from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile

_PREFIX = "tokenizer.ggml."


def tokens(gguf: GgufFile) -> list[str]:
    """The texts of all tokens, in the order of their ids; none where the file has no vocabulary.

    Raises:
        BaseModelError: they are no texts.
    """
    value = gguf.get(f"{_PREFIX}tokens", [])
    if not isinstance(value, list) or not all(isinstance(token, str) for token in value):
        raise BaseModelError(f"{gguf.path.name} has tokens that are no texts", "Fetch it again.")
    return value


def token_id(gguf: GgufFile, name: str) -> int | None:
    """The id of a special token.

    Args:
        name: `bos`, `eos`, `padding`, `unknown`, …

    Raises:
        BaseModelError: there is no token of that id.
    """
    value = gguf.get(f"{_PREFIX}{name}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < len(tokens(gguf)):
        raise BaseModelError(
            f"{gguf.path.name} says that its {name} token is {value!r:.80}, and has no such token",
            "Fetch it again.",
        )
    return value
