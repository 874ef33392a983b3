"""The text that a value stands for, and the value that a text stands for: decoded exactly once."""

from __future__ import annotations

import json
from typing import Any

import msgspec

#: What the first character of a JSON text may be; Python's own reader takes NaN and Infinity, too.
_BEGINNINGS = tuple('"{[-0123456789tfnNI')
_SPACES = " \t\n\r"
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode
_encode_strictly = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode


def parse(text: str | bytes) -> Any:
    """The value of a JSON text, as Python's own reader takes it, only sooner.

    Raises:
        ValueError, RecursionError: it is none, or is nested too deeply.
    """
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # Lone surrogates and NaN are read by the slower one alone; and it says what is wrong.
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)


def decode_once(value: Any) -> str:
    """The text that a value stands for which may be JSON inside JSON.

    A string that is JSON is decoded, once; one that is none is the text itself. A lone surrogate,
    which JSON can spell and UTF-8 cannot, becomes U+FFFD.

    Raises:
        ValueError, RecursionError: as of `canonical`.
    """
    if not isinstance(value, str):
        return canonical(value)
    try:
        # Nearly every text takes this way; it reads no NaN, which would become null.
        decoded = _decode(value)
        return decoded if isinstance(decoded, str) else _encode(decoded).decode()
    except (ValueError, RecursionError, OverflowError):
        return _decode_slowly(value)


def _decode_slowly(text: str) -> str:
    try:
        begins = text.lstrip(_SPACES)[:1] in _BEGINNINGS
        return canonical(json.loads(text)) if begins else encodable(text)
    except (ValueError, RecursionError):
        return encodable(text)


def canonical(value: Any) -> str:
    """A string as it stands; anything else as JSON, keys in order and without spaces.

    Raises:
        ValueError, RecursionError: it holds NaN or an infinity, which JSON does not have, or is
            nested too deeply.
    """
    if isinstance(value, str):
        return encodable(value)
    # Refuses what the other one would write as null.
    text = encodable(_encode_strictly(value))
    try:
        # Read again, as keys with a lone surrogate are others now and may stand elsewhere.
        return _encode(_decode(text)).decode()
    except (msgspec.DecodeError, OverflowError):
        return text


def encodable(text: str) -> str:
    """The text with U+FFFD for each lone surrogate."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
