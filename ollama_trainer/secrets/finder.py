"""Looks for every kind of secret at once.

Nearly all texts hold none, and one search for all triggers tells that in a microsecond or two.
Only where a trigger stands, the rules that it belongs to look closer, within bounds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ahocorasick_rs

from ollama_trainer.secrets import fields, tokens
from ollama_trainer.secrets.found import Look, Secret

# Texts are searched in pieces of this many characters: the hits of one are held at a time.
PIECE = 1 << 16
LONGEST_TRIGGER = 32
MOST_ROUNDS = 8


class SecretFinder:
    """Finds secrets and hides them; may be used by several threads."""

    def __init__(self, *, emails: bool = False) -> None:
        """
        Args:
            emails: hides e-mail addresses too.
        """
        self._emails = emails
        looks: dict[str, list[Look]] = {}
        for rule in (*tokens.RULES, *fields.RULES):
            for trigger in rule.triggers:
                looks.setdefault(trigger, []).append(rule.look)
        self._looks = [tuple(found) for found in looks.values()]
        how: dict[str, Any] = {
            "matchkind": ahocorasick_rs.MatchKind.LeftmostLongest,
            "implementation": ahocorasick_rs.Implementation.DFA,
        }
        self._search_text = ahocorasick_rs.AhoCorasick(list(looks), **how).find_matches_as_indexes
        self._search_ascii = ahocorasick_rs.BytesAhoCorasick(
            [trigger.encode() for trigger in looks], **how
        ).find_matches_as_indexes

    def find(self, text: str) -> list[Secret]:
        """The secrets of a text, in order and without overlaps."""
        found: list[Secret] = []
        for piece in range(0, len(text), PIECE):
            hits = self._search(text[piece : piece + PIECE + LONGEST_TRIGGER])
            if hits:
                found += self._at(text, piece, hits, found[-1].end if found else 0)
        # The rare letter first: looking for two takes twenty times as long.
        if "K" in text and "SK" in text:
            found += tokens.twilio_keys(text)
        if "@" in text:
            found.extend(tokens.url_passwords(text))
            if self._emails:
                found.extend(tokens.emails(text))
        return _without_overlaps(found) if found else found

    def _search(self, text: str) -> list[tuple[int, int, int]]:
        """The triggers in a text: which one, from where, to where."""
        if text.isascii():
            # A letter is a byte then, and bytes are searched in two thirds of the time.
            return self._search_ascii(text.encode().lower())
        return self._search_text(_lower(text))

    def _at(
        self, text: str, piece: int, hits: list[tuple[int, int, int]], done: int
    ) -> list[Secret]:
        """What the rules find at the hits in one piece; nothing is looked for inside a secret."""
        found: list[Secret] = []
        for which, start, end in hits:
            if start >= PIECE:
                break
            if start + piece < done:
                continue
            for look in self._looks[which]:
                for secret in look(text, start + piece, end + piece):
                    if _is_in_placeholder(text, start + piece):
                        break
                    found.append(secret)
                    done = max(done, secret.end)
        return found

    def redact(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The text with placeholders for its secrets, and their kinds in order.

        A text without secrets is returned as the same object.
        """
        found = self.find(text)
        if not found:
            return text, ()
        kinds: dict[str, None] = {}
        # What stood beside a secret may read differently beside a placeholder.
        for _ in range(MOST_ROUNDS):
            text = _replace(text, found)
            kinds.update((secret.kind, None) for secret in found)
            found = self.find(text)
            if not found:
                break
        return text, tuple(kinds)


def _replace(text: str, found: list[Secret]) -> str:
    parts: list[str] = []
    position = 0
    for secret in found:
        parts.append(text[position : secret.start])
        parts.append(f"{secret.quote}[REDACTED:{secret.kind}]{secret.quote}")
        position = secret.end
    parts.append(text[position:])
    return "".join(parts)


def _lower(text: str) -> str:
    """In lower case, of the same length: one letter would become two."""
    lower = text.lower()
    return lower if len(lower) == len(text) else text.replace("\u0130", "i").lower()


def _without_overlaps(found: list[Secret]) -> list[Secret]:
    """In order; what overlaps becomes one, named as what starts first."""
    found.sort(key=lambda secret: (secret.start, -secret.end))
    apart: list[Secret] = []
    for secret in found:
        if secret.start >= secret.end:
            continue
        if apart and secret.start < apart[-1].end:
            apart[-1] = replace(apart[-1], end=max(secret.end, apart[-1].end))
        else:
            apart.append(secret)
    return apart


def _is_in_placeholder(text: str, at: int) -> bool:
    """Whether the trigger is the name of a kind in a placeholder, which names no field."""
    opening = text.rfind("[REDACTED:", max(0, at - 32), at)
    return opening >= 0 and text.find("]", opening, at) < 0
