"""Secrets that the name beside them tells: `"password":"x"`, `API_KEY=x`, "my password is x"."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator

from ollama_trainer.secrets import values
from ollama_trainer.secrets.found import Look, Rule, Secret
from ollama_trainer.secrets.objects import (
    SPACE,
    Name,
    Trust,
    if_secret,
    inside,
    is_secret,
    value_before,
    value_behind,
)
from ollama_trainer.secrets.prose import password_in_prose

# What may stand behind a word without another meaning for the whole name.
_SUFFIX = (
    r"(?:[_-]?(?:value|text|plain(?:text)?|old|new|current|confirm(?:ation)?|repeat|again|raw|b64"
    r"|base64|encoded|prod(?:uction)?|dev|test|stag(?:e|ing)|live|main|primary|secondary|backup|default"
    r"|admin|root|user|db|database|secreta?|hash|ref|ids?|\d{1,4})(?![a-z])){0,2}"
)
_TYPE = r"(?:str(?:ing)?|String|bytes|Optional\[str\]|str\s?\|\s?None|Secret(?:Str)?)"
# From the end of a word to the start of its value.
_TAIL = (
    rf"(?P<suffix>{_SUFFIX})(?P<close>(?:\\{{0,1023}}[\"'`])?)\]?\)?[?!]?(?:"
    rf"\s{{0,4}}:\s{{0,4}}{_TYPE}\s{{0,4}}=\s{{0,4}}"
    r"|(?P<space>\s{0,8})(?P<sep>=>|:=|=(?![=~])|:(?![:/])|%3[dD])\s{0,8}"
    r"|(?P<pair>[\]'\"\\]{0,64}\s{0,8},\s{0,8}\\{0,1023}[\"'`]"
    r"(?:value|val|text|content|default|plaintext)\\{0,1023}[\"'`]\s{0,8}:\s{0,8})"
    r"|(?P<html>(?<=[\"'])\s[^<>]{0,160}?\bvalue\s?=\s?)"
    r"|(?P<xml>(?<=[A-Za-z])>)"
    # The name is itself a value: what it names stands elsewhere in the object.
    rf"|(?P<apart>(?<=[\"'`])(?={SPACE}[,}}]))"
    r")"
)
_NAME_MARKS = string.ascii_letters + string.digits + "_.$-"
_LINE_START = re.compile(r"(?:^|\n)[ \t]{0,32}(?:export |set |ENV |\$env:|- )?$")
_CODE = re.compile(r"(?:[A-Za-z_$][\w$]*)(?:\??\.[A-Za-z_$][\w$]*)+\W{0,2}|[A-Za-z_$][\w$]*$")
_XML = re.compile(r"[^<>]{1,4096}+(?=</)")
_MARKS = ".,;:!?"


def _tail(rest: str) -> re.Pattern[str]:
    return re.compile(f"(?:{rest}){_TAIL}", re.IGNORECASE)


def _field(rest: str, name_of: Callable[[str, str], Name | None]) -> Look:
    """Looks behind a word for a value.

    Args:
        rest: how the word goes on behind its trigger.
        name_of: called with what stands before the trigger and behind the word, in lower case.
    """
    tail = _tail(rest)

    def look(text: str, start: int, end: int) -> Iterable[Secret]:
        found = tail.match(text, end)
        if found is None:
            return ()
        before = _before(text, start)
        name = name_of(before.lower(), found["suffix"].lower().strip("_-"))
        if name is None:
            return ()
        return _secrets(text, start - len(before), found, name)

    return look


def _before(text: str, start: int) -> str:
    """The part of the name before the trigger, without what an escape puts there."""
    window = text[max(0, start - 48) : start]
    before = window[len(window.rstrip(_NAME_MARKS)) :]
    at = start - len(before)
    if before[:1] in ("n", "r", "t") and text[at - 1 : at] == "\\":
        before = before[1:]
    return before


def _secrets(text: str, start: int, found: re.Match[str], name: Name) -> Iterator[Secret]:
    if found["xml"] is not None:
        at = found.end()
        xml = _XML.match(text, at) if text[start - 1 : start] == "<" else None
        if xml and is_secret(xml[0], name):
            yield Secret(kind=name.kind, start=at, end=xml.end())
    elif found["apart"] is not None:
        behind = value_behind(text, found.end(), found["close"])
        if behind is not None:
            yield from _value(text, start, behind, found, name)
        before = value_before(text, start, found["close"])
        if before is not None:
            yield from if_secret(text, before, name)
    else:
        yield from _value(text, start, found.end(), found, name)


def _value(text: str, start: int, at: int, found: re.Match[str], name: Name) -> Iterator[Secret]:
    """What is secret in the value at `at`, whose name starts at `start`."""
    value = values.quoted(text, at)
    if value is not None:
        # Behind `"Password: "` the quote closes: what follows is not the value.
        if found["close"] or text[value.start : value.start + 1] not in tuple("),;}]+"):
            yield from if_secret(text, value, name)
    elif text.startswith(("[", "{"), at):
        if found["close"]:
            yield from inside(text, at, name)
    else:
        yield from _unquoted(text, start, at, found, name)


def _unquoted(text: str, start: int, at: int, found: re.Match[str], name: Name) -> Iterator[Secret]:
    close = found["close"]
    if close and name.kind == "password":
        digits = values.number(text, at)
        if digits is not None:
            yield Secret(kind=name.kind, start=at, end=digits.end, quote=close)
            return
    first = _LINE_START.search(text, max(0, start - 48), start) is not None
    is_setting = first and found["sep"] == "=" and not found["space"]
    value = values.bare(text, at, whole_line=is_setting and text[at - 1] == "=")
    if value is None or (close and found["sep"] == ":"):
        return
    word = text[value.start : value.end]
    if not is_setting:
        word = word.rstrip(_MARKS)
    if _is_bare_secret(text, word, value.end, (found["sep"], found["space"], first), name):
        yield Secret(kind=name.kind, start=at, end=at + len(word))


def _is_bare_secret(
    text: str, word: str, end: int, how: tuple[str | None, str | None, bool], name: Name
) -> bool:
    sep, space, first = how
    if not is_secret(word, name):
        return False
    if values.is_passwordish(word, 6) and text[end : end + 1] not in ("(", "["):
        return _CODE.fullmatch(word) is None or "." not in word
    tight = sep == "=" and not space
    if not tight and not (first and sep == ":"):
        return False
    # A single word: in code it is a variable, in settings it is the value.
    rest = text[end : end + 2]
    alone = not rest.strip(" \r\n") or rest[0] in "&;\n\r\t \\\"'"
    if tight:
        return alone and "." not in word and len(word) >= 4
    return alone and text[end : end + 1] in ("", "\n", "\r", "\\") and len(word) >= 4


def _password(before: str, suffix: str) -> Name | None:
    if suffix in ("id", "ids") or before.endswith(
        (".is", "has", "show", "hide", "forgot", "reset")
    ):
        return None
    return Name("password", Trust.ANY)


_KEY_OWNER = re.compile(
    r"(?:^|[^a-z]|[a-z])(api|private|secret|access|encryption|signing|master|vault|account|shared"
    r"|auth|subscription|ssh|deploy|consumer|jwt|hmac|aes|storage|recovery|license"
    r"|decryption)[_.\- ]?$"
)
_KEY_OF = re.compile(
    r"(?:client|app|session|service|server|admin|webhook|write|read|host|root|project|crypt|cipher"
    r"|openai|anthropic|stripe|aws|google|azure|brave|openrouter|groq|mistral|cohere|serp|tavily"
    r"|gemini|deepl|maps|sendgrid|twilio|mailgun|github|gitlab|algolia|datadog|sentry)[_.\- ]?$"
)


def _key(before: str, suffix: str) -> Name | None:
    owner = _KEY_OWNER.search(before)
    if owner is None:
        return Name("api-key", Trust.RANDOM) if _KEY_OF.search(before) else None
    kind = "api-key" if owner[1] == "api" else "secret-key"
    loose = owner[1] in ("account", "shared", "license", "storage", "recovery")
    if loose or suffix in ("id", "ids") or before == "access":
        return Name(kind, Trust.RANDOM)
    return Name(kind, Trust.RANDOM if "ref" in suffix else Trust.ANY)


_NO_TOKEN = re.compile(
    r"(?:(?:next|page|continuation|sync|cursor|mask|stop|special|image|prompt|completion|input|output"
    r"|total|start|design)|(?:^|[^a-z])(?:eos|bos|pad|unk|sep|cls|max|min|end|num|n|has|is|first|last))"
    r"[_.\- ]?$"
)
_TOKEN_OWNER = re.compile(
    r"(?:access|refresh|auth|bot|bearer|session|api|secret|personal|private|csrf|xsrf|jwt|oauth2?"
    r"|gateway|webhook|vault|deploy|github|gitlab|slack|telegram|npm|hf|subscription|user|device"
    r"|registration|security|verify|verification|service|admin|client)[_.\- ]?$"
)


def _token(before: str, suffix: str) -> Name | None:
    if _NO_TOKEN.search(before):
        return None
    strong = _TOKEN_OWNER.search(before) and not suffix.startswith("id")
    return Name("token", Trust.ANY if strong else Trust.RANDOM)


def _secret(before: str, suffix: str) -> Name | None:
    if suffix in ("id", "ids") or before.endswith(("is", "has", ".")):
        return None
    return Name("secret", Trust.RANDOM if "ref" in suffix else Trust.ANY)


def _credential(_before: str, suffix: str) -> Name | None:
    return Name("credential", Trust.RANDOM if "ref" in suffix else Trust.ANY)


def _connection(_before: str, suffix: str) -> Name | None:
    return Name("connection-string", Trust.RANDOM if "ref" in suffix else Trust.LIKELY)


def _always(kind: str, trust: Trust) -> Callable[[str, str], Name | None]:
    return lambda _before, _suffix: Name(kind, trust)


def _short(before: str, _suffix: str) -> Name | None:
    """`pass` alone or behind a mark: it is the end of other words too."""
    if before.endswith(("motde", "mot_de_", "mot-de-")):
        return Name("password", Trust.ANY)
    if before and before[-1] not in "_-." and not before.endswith(("db", "user", "smtp")):
        return None
    return Name("password", Trust.ANY)


_TITLE = re.compile(r"[A-Za-z][a-z-]+")
_AUTHORIZATION = re.compile(
    r"""\\{0,1023}["'`]?\]?\s{0,4}[:=,]\s{0,4}\\{0,1023}["'`]?"""
    r"(?P<scheme>(?:bearer|basic|token|bot|apikey|api-key|negotiate|splunk|hmac)\s{1,4})?"
    r"(?P<value>[\w.~+/=:-]{8,4096}+)",
    re.IGNORECASE | re.ASCII,
)


def _authorization(text: str, _start: int, end: int) -> Iterable[Secret]:
    found = _AUTHORIZATION.match(text, end)
    if found is None or values.is_placeholder(found["value"]):
        return ()
    # Behind a scheme, only a word like "Authentication" is none.
    told = found["scheme"] and not _TITLE.fullmatch(found["value"])
    if not told and not values.looks_random(found["value"], 8):
        return ()
    return (Secret(kind="authorization", start=found.start("value"), end=found.end("value")),)


_COOKIE = re.compile(
    r"""(?:_?header|s)?\\{0,1023}["'`]?\s{0,4}(?:[:=]|(?<=cookie) )\s{0,4}\\{0,1023}["'`]?""", re.I
)
_CRUMB = re.compile(r"""([\w.%-]{1,64})=([^\s;,"'`\\]{0,4096}+)(?:;\s?|$|(?=[\s"'`\\]))""")
_CRUMB_NAME = re.compile(
    r"sess|sid\b|sid$|auth|token|jwt|vault|csrf|xsrf|remember|login|secret", re.I
)


def _cookie(text: str, _start: int, end: int) -> Iterable[Secret]:
    header = _COOKIE.match(text, end)
    return _crumbs(text, _start, header.end()) if header else ()


def _crumbs(text: str, _start: int, position: int) -> Iterator[Secret]:
    """Values of cookies that open a session, or that look like it."""
    while (crumb := _CRUMB.match(text, position)) is not None:
        least = 8 if _CRUMB_NAME.search(crumb[1]) else 24
        if values.looks_random(crumb[2], least) and not values.is_placeholder(crumb[2]):
            yield Secret(kind="cookie", start=crumb.start(2), end=crumb.end(2))
        position = crumb.end()


def _curl_cookie(text: str, start: int, end: int) -> Iterable[Secret]:
    return _crumbs(text, start, end + text.startswith(("'", '"'), end))


def _either(*looks: Look) -> Look:
    """What the first rule finds that finds anything."""

    def look(text: str, start: int, end: int) -> Iterable[Secret]:
        for one in looks:
            found = list(one(text, start, end))
            if found:
                return found
        return ()

    return look


_FRENCH_FIELD = _field("e", _always("password", Trust.ANY))
_PWD = _field("", _password)
_IN_FRENCH = password_in_prose("e")


def _french(text: str, start: int, end: int) -> Iterable[Secret]:
    """Behind "mot de " only: "passe" alone is a verb."""
    if not text.startswith("e", end) or text[max(0, start - 7) : start].lower() != "mot de ":
        return ()
    if found := list(_FRENCH_FIELD(text, start, end)):
        return found
    return _IN_FRENCH(text, start, end)


_FILLS = re.compile(
    r"""(?:fill|type|set_?\w{0,16}|send_?keys)\(\s{0,4}\\{0,8}["'][^"']{0,30}$""", re.I
)
_FILLED = re.compile(r"""[\w'\]=-]{0,16}\\{0,8}["']\s{0,4},\s{0,4}(?=\\{0,8}["'])""")


def _filled(text: str, start: int, end: int) -> Iterable[Secret]:
    """What is typed into a page's field: `fill("#password", "x")`."""
    found = _FILLED.match(text, end)
    if found is None or not _FILLS.search(text, max(0, start - 60), start):
        return ()
    value = values.quoted(text, found.end())
    return if_secret(text, value, Name("password", Trust.ANY)) if value else ()


_STORED = re.compile(
    r"""key\\{0,1023}["']\s{0,4}:\s{0,4}\\{0,1023}["'][^"'\\]{0,80}\\{0,1023}["']\s{0,4},\s{0,4}"""
    r"""\\{0,1023}["']value\\{0,1023}["']\s{0,4}:\s{0,4}""",
    re.IGNORECASE,
)


def _stored(text: str, _start: int, end: int) -> Iterable[Secret]:
    """An entry of a vault: `"credentialKey":"shop","value":"x"`."""
    found = _STORED.match(text, end)
    value = values.quoted(text, found.end()) if found else None
    return if_secret(text, value, Name("credential", Trust.ANY)) if value else ()


def _working_directory_or_password(text: str, start: int, end: int) -> Iterator[Secret]:
    """`pwd` names both."""
    for secret in _PWD(text, start, end):
        if not text.startswith(("/", "~", "C:"), secret.start):
            yield secret


def _password_word(rest: str) -> Look:
    return _either(_field(rest, _password), password_in_prose(rest))


_PASSWORD_WORD = _either(_password_word(r"w(?:or[dt]s?|d|ö?rter)|phrase|code"), _filled)
_PASS_ALONE = _either(_field("e?", _short), _french)


def _pass(text: str, start: int, end: int) -> Iterable[Secret]:
    """ "password", "Passwort", "passphrase", "mot de passe" and, by itself, "pass"."""
    longer = text.startswith(("w", "W", "p", "P", "c", "C"), end)
    return (_PASSWORD_WORD if longer else _PASS_ALONE)(text, start, end)


RULES: tuple[Rule, ...] = (
    Rule(("pass",), _pass),
    Rule(("kennwort", "contrase"), _password_word("ñas?|nas?|")),
    Rule(("parole",), _field("", _always("password", Trust.RANDOM))),
    Rule(("pwd",), _working_directory_or_password),
    Rule(("clave",), _field("s?", _always("password", Trust.RANDOM))),
    Rule(("key",), _field("s?", _key)),
    Rule(("token",), _field("", _token)),
    Rule(("secret",), _field("s?|[aeo]s?", _secret)),
    Rule(("credential",), _either(_field("s?(?:_?response)?", _credential), _stored)),
    Rule(
        ("connectionstring", "connection_string"),
        _field("", _connection),
    ),
    Rule(("sessionid", "session_id", "sessid"), _field("", _always("session", Trust.RANDOM))),
    Rule(("authorization",), _authorization),
    Rule(("cookie",), _cookie),
    Rule((" -b ",), _curl_cookie),
)
