"""Secrets in lists and objects: what stands under a telling key, or beside a telling name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from ollama_trainer.secrets import values
from ollama_trainer.secrets.found import Secret
from ollama_trainer.secrets.values import Value


class Trust(Enum):
    """How far a name alone tells that its value is secret."""

    ANY = "whatever the value looks like"
    LIKELY = "unless it is an ordinary word"
    RANDOM = "only if it looks random"


@dataclass(frozen=True, slots=True)
class Name:
    """What a field's name says about its value."""

    kind: str
    trust: Trust


_WORD = re.compile(r"[^\W\d_]+[.!?]?")


def is_secret(value: str, name: Name) -> bool:
    """Whether the value of a field of this name is one to hide."""
    if values.is_placeholder(value) or value.startswith("-----BEGIN"):
        return False
    if name.trust is Trust.ANY:
        return True
    if name.trust is Trust.LIKELY:
        return _WORD.fullmatch(value) is None and " " not in value and len(value) >= 6
    return values.looks_random(value, 12)


def if_secret(text: str, value: Value, name: Name) -> Iterator[Secret]:
    """The value, if it is one to hide."""
    if is_secret(text[value.start : value.end], name):
        yield Secret(kind=name.kind, start=value.start, end=value.end)


class _Hide(Enum):
    """What is hidden in one list or object."""

    ALL = "all but what only tells about the secret"
    VALUES = "what is the value itself: in a schema, in an entry of a list"
    NONE = "nothing: it is about other fields"


# Beside a secret these say what it is for, or in a schema how it has to look.
_TELLING_TEXT = """\
type name id email mail url uri host hostname region username user login port database
provider scheme kind label description title format key credentialkey save created
pattern help hint tooltip placeholder required $ref $id $schema $comment $anchor minlength
maxlength contentencoding contentmediatype errormessage deprecationmessage markdowndescription
"""
_TELLING = frozenset(_TELLING_TEXT.split())
_ABOUT = ("x-", "ui:")
_VALUE_KEYS = frozenset(("value", "default", "const", "example", "examples", "enum"))
_OTHER_FIELDS = frozenset(("properties", "patternproperties", "$defs", "definitions"))

# White space, which in a text within JSON may be escaped.
SPACE = r"(?:\s|\\{1,1023}+[nrt]){0,64}+"
_KEY = re.compile(
    rf"""{SPACE}(?:\\{{0,1023}}["']([^"'\\]{{0,64}})\\{{0,1023}}["']\s{{0,8}}:\s{{0,8}})?"""
)
_CLOSE = re.compile(rf"{SPACE}[\]}}]")
_NEXT = re.compile(rf"{SPACE},")
_DEEPEST = 6
# An entry that is not hidden may hold lists itself, which are walked through on their own, maybe
# through the rest of this one too: only so many are passed, so that time stays linear.
_OPENS = re.compile(r"[:=>dD]\s{0,8}[\[{]")
_MOST_OPENED = 16


def inside(text: str, at: int, name: Name) -> Iterator[Secret]:
    """The secrets in the list or object at `at`, to its end."""
    if name.trust is not Trust.ANY and text[at] == "[":
        return
    opened = 0
    for key, hide, value in _entries(text, at, name):
        if _is_hidden(hide, key) and is_secret(text[value.start : value.end], name):
            yield Secret(kind=name.kind, start=value.start, end=value.end)
        elif _OPENS.search(text, value.start, value.end):
            opened += 1
            if opened == _MOST_OPENED:
                return


def _is_hidden(hide: _Hide, key: str) -> bool:
    if hide is _Hide.ALL:
        return key not in _TELLING and not key.startswith(_ABOUT)
    return hide is _Hide.VALUES and key in _VALUE_KEYS


def _entries(text: str, at: int, name: Name) -> Iterator[tuple[str, _Hide, Value]]:
    """The quoted texts in a list or object: under which key, in which of its parts."""
    around = [_Hide.ALL if name.trust is Trust.ANY else _Hide.VALUES]
    position = at + 1
    while True:
        entry = _KEY.match(text, position)
        if entry is None:
            return
        key, position = (entry[1] or "").lower(), entry.end()
        if text.startswith(("[", "{"), position):
            if len(around) == _DEEPEST:
                return
            around.append(_in_part(around[-1], key, text[position]))
            position += 1
            if _CLOSE.match(text, position) is None:
                continue
        else:
            value = values.quoted(text, position)
            if value is not None:
                yield key, around[-1], value
            end = _end(text, position, value)
            if end is None:
                return
            position = end
        following = _next_entry(text, position, around)
        if following is None:
            return
        position = following


def _end(text: str, at: int, value: Value | None) -> int | None:
    """Where an entry ends, with its quote; `None` where it does not end as it began."""
    if value is not None:
        whole = text.startswith(value.quote, value.end)
        return value.end + len(value.quote) if whole else None
    bare = values.bare(text, at, whole_line=False)
    return bare.end if bare else None


def _next_entry(text: str, at: int, around: list[_Hide]) -> int | None:
    """Where the entry behind `at` starts; what closes before is left, and at last the whole."""
    while (closed := _CLOSE.match(text, at)) is not None:
        around.pop()
        if not around:
            return None
        at = closed.end()
    following = _NEXT.match(text, at)
    return following.end() if following else None


def _in_part(hide: _Hide, key: str, bracket: str) -> _Hide:
    if hide is _Hide.NONE or key in _OTHER_FIELDS:
        return _Hide.NONE
    if key in _VALUE_KEYS or (bracket == "[" and not key):
        return _Hide.ALL if key else hide
    return _Hide.VALUES


_MEMBER = re.compile(
    rf"""{SPACE},{SPACE}(?P<quote>\\{{0,1023}}["'`])(?P<key>[^"'`\\]{{0,64}})(?P=quote)"""
    r"\s{0,8}:\s{0,8}"
)
# Numbers and the like, and lists without objects in them.
_SCALAR = re.compile(r"[\w.+-]{1,40}+|\[[^\[\]{}]{0,200}\]|\{\}")
_SIGN = re.compile(r"\s{0,8}:\s{0,8}")
_VALUE_NAMES = frozenset(("value", "val", "plaintext", "default", "defaultvalue", "default_value"))
_NAMING_TEXT = "name key id label field title type kind variable param parameter"
_NAMING = frozenset(_NAMING_TEXT.split())
_FARTHEST = 400
_MOST_MEMBERS = 12
_MOST_TRIED = 3


def value_behind(text: str, at: int, quote: str) -> int | None:
    """Where the value starts that belongs to a name, which ends at `at`, of the same object.

    Args:
        quote: how the name is quoted, and therefore the rest of the object.
    """
    for key, start in _members(text, at, quote):
        if key in _VALUE_NAMES:
            return start
    return None


def _members(text: str, position: int, quote: str) -> Iterator[tuple[str, int]]:
    """The next keys of an object, and where what they hold starts."""
    limit = position + _FARTHEST
    for _ in range(_MOST_MEMBERS):
        member = _MEMBER.match(text, position, limit)
        if member is None or member["quote"] != quote:
            return
        yield member["key"].lower(), member.end()
        after = _after(text, member.end(), quote)
        if after is None:
            return
        position = after


def _after(text: str, at: int, quote: str) -> int | None:
    """Where a value ends that is skipped; `None` where it does not end as one of the object."""
    value = values.quoted(text, at, longest=_FARTHEST)
    if value is None:
        scalar = _SCALAR.match(text, at)
        return scalar.end() if scalar else None
    return _end(text, at, value) if value.quote == quote else None


def value_before(text: str, start: int, quote: str) -> Value | None:
    """The value that stands before its name, which is at `start`, in the same object."""
    first, at = max(0, start - _FARTHEST), start
    for _ in range(_MOST_TRIED):
        at = text.rfind("alue", first, at)
        if at < 0:
            return None
        value = _value_of(text, at + 4, quote)
        if value is not None and _is_named(text, value, start):
            return value
    return None


def _value_of(text: str, at: int, quote: str) -> Value | None:
    """What the key "value" holds that ends at `at`."""
    opening = at - 5 - len(quote)
    if text[max(0, opening) : at - 4] not in (quote + "v", quote + "V"):
        return None
    sign = _SIGN.match(text, at + len(quote)) if text.startswith(quote, at) else None
    if sign is None or text[opening - 1 : opening] == "\\":
        return None
    value = values.quoted(text, sign.end(), longest=_FARTHEST)
    if value is None or value.quote != quote or not text.startswith(quote, value.end):
        return None
    return value


def _is_named(text: str, value: Value, start: int) -> bool:
    for key, at in _members(text, value.end + len(value.quote), value.quote):
        if at > start:
            return False
        named = values.quoted(text, at, longest=_FARTHEST)
        if named is not None and named.start <= start < named.end:
            return key in _NAMING
    return False
