"""What was found, and what finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A stretch of a text that is to be hidden.

    `quote` stands on both sides of what replaces it: a bare number in JSON becomes a string.
    """

    kind: str
    start: int
    end: int
    quote: str = ""


# Called with the text and where a trigger of the rule starts and ends.
Look: TypeAlias = Callable[[str, int, int], Iterable[Secret]]


@dataclass(frozen=True, slots=True)
class Rule:
    """Looks only where one of its triggers, which are in lower case, stands in the text."""

    triggers: tuple[str, ...]
    look: Look
