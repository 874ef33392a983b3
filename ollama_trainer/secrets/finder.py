"""Looks for every kind of secret at once.

Nearly all texts hold none, and one search for all triggers tells that in a microsecond or two.
Only where a trigger stands, the rules that it belongs to look closer, within bounds.
"""

from __future__ import annotations

import re
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any

import ahocorasick_rs

from ollama_trainer.secrets import fields, tokens
from ollama_trainer.secrets.found import Look, Secret

# Texts are searched in pieces of this many characters: the hits of one are held at a time.
PIECE = 1 << 16
LONGEST_TRIGGER = 32
MOST_ROUNDS = 8
# No kind is longer; tokens in small letters are.
_PLACEHOLDER = re.compile(r"\[REDACTED:[a-z0-9-]{1,24}\]")


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
        ahead: list[tuple[int, int]] = []
        for piece in range(0, len(text), PIECE):
            hits = self._search(text[piece : piece + PIECE + LONGEST_TRIGGER])
            if hits:
                found += self._at(text, piece, hits, ahead)
        # The rare letter first: looking for two takes twenty times as long.
        if "K" in text and "SK" in text:
            found += tokens.twilio_keys(text)
        if "@" in text:
            found.extend(tokens.url_passwords(text))
            if self._emails:
                found.extend(tokens.emails(text))
        return _without_overlaps(found) if found else found

    def suspects(self, text: str) -> bool:
        """Whether a look at the text is worth its time.

        If not, `find` finds nothing in the text, nor in its parts where "\\n\\n" joins two.
        """
        if "@" in text or ("K" in text and "SK" in text):
            return True
        if len(text) <= PIECE:
            return bool(self._search(text))
        return any(
            self._search(text[piece : piece + PIECE + LONGEST_TRIGGER])
            for piece in range(0, len(text), PIECE)
        )

    def _search(self, text: str) -> list[tuple[int, int, int]]:
        """The triggers in a text: which one, from where, to where."""
        if text.isascii():
            # A letter is a byte then, and bytes are searched in two thirds of the time.
            return self._search_ascii(text.encode().lower())
        return self._search_text(_lower(text))

    def _at(
        self,
        text: str,
        piece: int,
        hits: list[tuple[int, int, int]],
        ahead: list[tuple[int, int]],
    ) -> list[Secret]:
        """What the rules find at the hits in one piece; nothing is looked for inside a secret.

        Args:
            ahead: a heap of where the secrets start and end that the hits have not passed yet.
        """
        found: list[Secret] = []
        done = 0
        for which, start, end in hits:
            if start >= PIECE:
                break
            start, end = start + piece, end + piece
            while ahead and ahead[0][0] <= start:
                done = max(done, heappop(ahead)[1])
            if start < done:
                continue
            for look in self._looks[which]:
                for secret in look(text, start, end):
                    if _is_in_placeholder(text, start):
                        break
                    found.append(secret)
                    heappush(ahead, (secret.start, secret.end))
        if done:
            heappush(ahead, (0, done))
        return found

    def redact(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The text with placeholders for its secrets, and the kind of each of them in order.

        A text without secrets is returned as the same object.
        """
        found = self.find(text)
        if not found:
            return text, ()
        places: list[tuple[int, str]] = []
        # What stood beside a secret may read differently beside a placeholder.
        for _ in range(MOST_ROUNDS):
            text, places = _replace(text, found, places)
            found = self.find(text)
            if not found:
                break
        return text, tuple(kind for _, kind in places)


def _replace(
    text: str, found: list[Secret], places: list[tuple[int, str]]
) -> tuple[str, list[tuple[int, str]]]:
    """Puts placeholders for what was found.

    Args:
        places: where earlier placeholders start, and their kinds.

    Returns:
        The new text, and where in it placeholders start; one within a secret is gone.
    """
    parts: list[str] = []
    moved: list[tuple[int, str]] = []
    position = length = earlier = 0
    for secret in [*found, None]:
        start = secret.start if secret else len(text)
        while earlier < len(places) and places[earlier][0] < (secret.end if secret else start):
            at, kind = places[earlier]
            if at < start:
                moved.append((at - position + length, kind))
            earlier += 1
        parts.append(text[position:start])
        length += start - position
        if secret:
            moved.append((length, secret.kind))
            parts.append(f"{secret.quote}[REDACTED:{secret.kind}]{secret.quote}")
            length += len(parts[-1])
            position = secret.end
    return "".join(parts), moved


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
    found = _PLACEHOLDER.match(text, opening) if opening >= 0 else None
    return found is not None and at < found.end()
