"""Where a value ends, and whether it is one: placeholders and code are no secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A longer value is hidden up to here: no search may run on and on.
LONGEST = 1 << 16

_WORDS_TEXT = """\
null none nil undefined nan true false yes no on off na string str int integer number bool
boolean object array list dict any bytes text char varchar void unknown never required
optional empty unset missing invalid valid expired wrong incorrect changeme changeit todo
tbd secret password passwort passwd token key apikey api-key api_key redacted hidden masked
removed placeholder example dummy default sample include omit same-origin bearer basic
digest oauth oauth2 jwt current-password new-password ok error failed success enabled
disabled anonymous default-token self this confidential obligatoire pflichtfeld erforderlich
requerido uuid hash enum email plain prompt env environment file vault keychain keyring auto
"""
_WORDS = frozenset(_WORDS_TEXT.split())
_MARKED_UP = re.compile(
    r"""(?:
      n/a | [*•●·_?~…-]+ | [.\#=]{2,} | [xX]{3,}.{0,8}        # masks
    | <.*> | \$?\{.*\} | \$?\(.*\) | \[.*\] | &lt;.*&gt;     # to be filled in
    | \$ | \$(?:[A-Z_][A-Z0-9_]*|[a-z_]+) | %[A-Za-z_]+% | \#\{.* | :[a-z_]+
    )""",
    re.VERBOSE | re.DOTALL,
)
_VARIABLE = re.compile(
    r"[A-Z][A-Z0-9_]*_(?:KEY|TOKEN|SECRET|PASSWORD|PASS|PWD|CREDENTIALS?)(?:_[A-Z0-9]+)?"
)
_MASKING = frozenset("n*•●·.xX#_?=~…-<$%{:[(&")
_PHRASE = re.compile(
    r"""(?:
      (?:your|insert|enter|replace|put|change)[\s_-].*
    | .*(?:key|token|secret|password|value)[\s_-](?:goes[\s_-])?here
    | (?:process\.env|os\.environ|os\.getenv|getenv|import\.meta|env[.(:]|secrets?\.|vars\.).*
    )\s*""",
    re.VERBOSE | re.DOTALL,
)
_DIGIT = re.compile(r"\d")
_LETTER = re.compile(r"[^\W\d_]")
_CHANGE = re.compile(r"[a-z][A-Z]")
_MARKED = re.compile(r"\w+[!#$%^*+€§?&~]\S*\w")
_OPENING = re.compile(r"""(?:[fFrRbBuU]{1,2}(?=["']))?(\\{0,1023})(["'`])""")
# Names in lower case with a number at most: of a file, a bucket, an entry.
_NAMED = re.compile(r"[A-Za-z]?[a-z]*(?:[-_./:][A-Za-z]?[a-z]*)*[-_./:]?\d{0,4}")
_BARE = re.compile(r"""[^\s"'`<>,;&(){}\[\]|\\=]{1,512}+={0,3}+""")
_LINE = re.compile(r"""(?:[^\s"'`\\&]|&(?![\w.-]{1,40}=)){1,512}+""")
_NUMBER = re.compile(r"-?\d[\d.eE+-]*+(?=\s{0,64}(?:[,}\]\\]|$))")


@dataclass(frozen=True, slots=True)
class Value:
    """A value in a text; `quote` is how it is quoted there, empty where it stands bare."""

    start: int
    end: int
    quote: str


def is_placeholder(value: str) -> bool:
    """Whether a value only holds the place of one, or says that there is none."""
    head = value[:200].strip()
    if not head or (head[0] in _MASKING and _MARKED_UP.fullmatch(head)):
        return True
    if _VARIABLE.fullmatch(head):
        return True
    lower = head.lower()
    return lower.rstrip(".!?:") in _WORDS or _PHRASE.fullmatch(lower) is not None


def looks_random(value: str, least: int) -> bool:
    """Whether a value of at least `least` characters mixes letters and digits like a token."""
    if len(value) < least or any(mark in value for mark in " \t\n<>"):
        return False
    head = value[:200]
    if _NAMED.fullmatch(head):
        return False
    if _DIGIT.search(head):
        return _LETTER.search(head) is not None
    # Without a digit, the case has to change often.
    return len(value) >= 20 and len(_CHANGE.findall(head)) >= 4


def is_passwordish(value: str, least: int) -> bool:
    """Whether a word in prose can hardly be anything but a password."""
    if len(value) < least:
        return False
    if any(map(str.isdigit, value)):
        return any(map(str.isalpha, value)) or len(value) >= 6
    return _MARKED.fullmatch(value) is not None


def quoted(text: str, start: int, *, longest: int = LONGEST) -> Value | None:
    """The quoted value that starts at `start`; its quotes may be escaped any number of times."""
    opening = _OPENING.match(text, start)
    if opening is None:
        return None
    end = closing(text, opening.end(), len(opening[1]), opening[2], longest)
    return Value(opening.end(), end, opening[1] + opening[2])


def closing(text: str, start: int, escapes: int, quote: str, longest: int) -> int:
    """Where a value ends whose quotes have so many backslashes before them.

    A quote inside the value has more of them, and a backslash at its end is written as so many
    that the remainder tells. Fewer mean that the string around the value ends.
    """
    limit = min(len(text), start + longest)
    is_json = text[:1] in ("{", "[", '"')
    position = start
    while True:
        at = _next_quote(text, position, limit, quote, is_json)
        if at < 0:
            return _cut_off(text, start, limit)
        before = at
        while before > start and text[before - 1] == "\\":
            before -= 1
        run = at - before
        if text[at] != quote:
            if run == 0:
                return at
        elif run < escapes or run % (2 * escapes + 2) == escapes:
            return max(start, at - min(run, escapes))
        position = at + 1


def _next_quote(text: str, position: int, limit: int, quote: str, is_json: bool) -> int:
    at = text.find(quote, position, limit)
    if quote != '"' and is_json:
        # Nothing hides beyond the end of the JSON string that the value stands in.
        outer = text.find('"', position, limit if at < 0 else at)
        return at if outer < 0 else outer
    return at


def _cut_off(text: str, start: int, limit: int) -> int:
    """A value without its closing quote ends with the line."""
    line = text.find("\n", start, limit)
    return limit if line < 0 else line


def bare(text: str, start: int, *, whole_line: bool) -> Value | None:
    """The unquoted value at `start`; in files of settings also with commas and the like."""
    found = (_LINE if whole_line else _BARE).match(text, start)
    return Value(start, found.end(), "") if found else None


def number(text: str, start: int) -> Value | None:
    """The number at `start`, where a JSON value ends after it."""
    found = _NUMBER.match(text, start)
    return Value(start, found.end(), "") if found else None
