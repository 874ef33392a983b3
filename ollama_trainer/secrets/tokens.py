"""Secrets that tell by their own form what they are: tokens, key blocks, logins in URLs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ollama_trainer.secrets.found import Look, Rule, Secret
from ollama_trainer.secrets.values import is_placeholder, looks_random

# A letter before a token makes it part of a word, unless the letter belongs to an escape.
LEFT = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=\\u[0-9a-fA-F]{4})|(?<=%[0-9A-Fa-f]{2}))"
NO_MORE = r"(?![A-Za-z0-9])"
# Longer than any token; keeps every search linear.
LONG = 4096

# Kind, triggers, and the form from the trigger on. Case counts.
FORMS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "aws-access-key",
        ("akia", "asia"),
        rf"A[KS]IA[A-Z2-7]{{16}}{NO_MORE}",
    ),
    (
        "github-token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
        r"gh[pousr]_[A-Za-z0-9]{36,255}+",
    ),
    ("github-token", ("github_pat_",), r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59,255}+"),
    (
        "gitlab-token",
        ("glpat-", "glrt-"),
        r"gl(?:pat|rt)-[\w.-]{20,300}+",
    ),
    ("slack-token", ("xox",), r"xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,400}+"),
    (
        "webhook",
        ("hooks.slack.com",),
        r"hooks\.slack\.com\\?/(?:services|workflows|triggers)\\?/[A-Za-z0-9_/\\+-]{20,200}+",
    ),
    ("webhook", ("api/webhooks/",), r"api/webhooks/\d{15,22}/[\w-]{50,100}+"),
    ("stripe-key", ("whsec_",), r"whsec_[A-Za-z0-9+/=]{24,100}+"),
    ("anthropic-key", ("sk-",), r"sk-ant-[\w-]{24,300}+"),
    (
        "openai-key",
        ("sk-",),
        r"sk-(?:(?:proj|svcacct|admin|service|None|or-v1|lf)-[\w-]{20,400}+|[A-Za-z0-9]{32,100}+)",
    ),
    ("google-key", ("aiza",), rf"AIza[\w-]{{35}}{NO_MORE}"),
    ("google-oauth", ("ya29.",), r"ya29\.[\w.-]{20,2048}+"),
    ("google-oauth", ("gocspx-",), r"GOCSPX-[\w-]{24,64}+"),
    ("google-oauth", ("1//0",), r"1//0[\w-]{40,250}+"),
    ("huggingface-token", ("hf_",), r"hf_[A-Za-z0-9]{30,64}+"),
    ("npm-token", ("npm_",), rf"npm_[A-Za-z0-9]{{36}}{NO_MORE}"),
    ("pypi-token", ("pypi-",), r"pypi-[\w-]{60,2048}+"),
    ("sendgrid-key", ("sg.",), r"SG\.[\w-]{16,32}\.[\w-]{32,64}+"),
    ("mailgun-key", ("key",), rf"key-[0-9a-f]{{32}}{NO_MORE}"),
    (
        "jwt",
        ("eyj",),
        rf"eyJ[\w-]{{10,{LONG}}}+\.[\w-]{{10,{LONG}}}+(?:\.[\w-]{{0,{LONG}}}+){{0,3}}",
    ),
    (
        "shopify-token",
        ("shpat_",),
        r"shpat_[0-9a-fA-F]{32,64}+",
    ),
    ("digitalocean-token", ("dop_v1_",), r"dop_v1_[0-9a-f]{64}"),
    ("docker-token", ("dckr_pat_",), r"dckr_pat_[\w-]{20,64}+"),
    ("grafana-token", ("glsa_",), r"glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}"),
    ("vault-token", ("hvs.",), r"hvs\.[\w-]{24,300}+"),
    ("atlassian-token", ("atatt3",), r"ATATT3[\w=-]{50,300}+"),
    ("api-key", ("gsk_",), r"gsk_[A-Za-z0-9]{40,64}+"),
    ("api-key", ("nvapi-",), r"nvapi-[\w-]{40,80}+"),
    ("api-key", ("tvly-",), r"tvly-[A-Za-z0-9-]{20,64}+"),
    ("api-key", ("xai-",), r"xai-[A-Za-z0-9]{60,100}+"),
    ("api-key", ("pplx-",), r"pplx-[A-Za-z0-9]{40,64}+"),
    ("age-key", ("secret",), r"(?<=AGE-)SECRET-KEY-1[0-9A-Z]{58}"),
    ("azure-sas", ("sig=",), r"(?<=[?&;])sig=([A-Za-z0-9%+/]{40,80}+=?)"),
)


def _form(kind: str, pattern: str, back: int = 0) -> Look:
    """Matches the form, which begins `back` characters before its trigger."""
    regex = re.compile(LEFT + pattern, re.ASCII)
    group = 1 if regex.groups else 0

    def look(text: str, start: int, _end: int) -> Iterable[Secret]:
        found = regex.match(text, max(0, start - back))
        if found is None:
            return ()
        return (Secret(kind=kind, start=found.start(group), end=found.end(group)),)

    return look


_TELEGRAM = re.compile(r"AA[\w-]{32,35}+", re.ASCII)
_DIGITS = re.compile(r"(?<!\d)\d{8,10}$")


def _telegram(text: str, start: int, _end: int) -> Iterable[Secret]:
    """The bot's number stands before the trigger."""
    found = _TELEGRAM.match(text, start + 1)
    digits = _DIGITS.search(text, max(0, start - 11), start) if found else None
    if found is None or digits is None:
        return ()
    return (Secret(kind="telegram-token", start=digits.start(), end=found.end()),)


_DISCORD = re.compile(rf"{LEFT}[MNO][A-Za-z0-9]{{22,28}}+\.[\w-]{{6}}\.[\w-]{{27,45}}+", re.ASCII)


def _discord(text: str, _start: int, end: int) -> Iterable[Secret]:
    """Without a mark of its own: looked for only behind the word."""
    # Up to the next such word only: many of them would be searched through many times.
    following = text.find("iscord", end, end + 300)
    found = _DISCORD.search(text, end, following if following > 0 else end + 300)
    return (Secret(kind="discord-token", start=found.start(), end=found.end()),) if found else ()


_BLOCK = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?P<body>"
    # Lines of base64 and of "Name: value", parted by line ends that may be escaped.
    r"(?:[A-Z][A-Za-z-]{1,30}: [^\n\\\"]{0,100}+|[A-Za-z0-9+/=]{1,200}+|\s++|\\{1,64}+[nrt/])"
    r"{0,4000}+)"
    r"(?:-----END [A-Z0-9 ]{1,64}-----)?"
)


def _block(text: str, start: int, _end: int) -> Iterable[Secret]:
    """A private key as a whole, also where its end was cut off."""
    found = _BLOCK.match(text, start)
    if found is None or len(found["body"].strip()) < 16:
        return ()
    end = (
        found.start("body") + len(found["body"].rstrip())
        if found["body"] and not found[0].endswith("-")
        else found.end()
    )
    return (Secret(kind="private-key", start=start, end=end),)


_BEARER = re.compile(rf"bearer\s{{1,4}}([\w.~+/=-]{{16,{LONG}}}+)", re.IGNORECASE | re.ASCII)


def _bearer(text: str, start: int, _end: int) -> Iterable[Secret]:
    found = _BEARER.match(text, start)
    if found is None or is_placeholder(found[1]) or not looks_random(found[1], 16):
        return ()
    return (Secret(kind="authorization", start=found.start(1), end=found.end(1)),)


_CURL = re.compile(r"""(?:-u|--user)[ =]["']?[^\s"':$<]{1,64}:([^\s"'\\]{1,128})""")
_SQL = re.compile(r"""identified by\s{1,4}(?:password\s{1,4})?'([^'\\]{1,128})'""", re.IGNORECASE)


def _login(regex: re.Pattern[str]) -> Look:
    def look(text: str, start: int, _end: int) -> Iterable[Secret]:
        found = regex.match(text, start)
        if found is None or is_placeholder(found[1]):
            return ()
        return (Secret(kind="password", start=found.start(1), end=found.end(1)),)

    return look


RULES: tuple[Rule, ...] = (
    *(Rule(triggers, _form(kind, form)) for kind, triggers, form in FORMS),
    Rule(
        ("k_live_", "k_test_"), _form("stripe-key", r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,250}+", 1)
    ),
    Rule((":aa",), _telegram),
    Rule(("discord",), _discord),
    Rule(("-----begin ",), _block),
    Rule(("bearer ",), _bearer),
    Rule(("-u ", "--user "), _login(_CURL)),
    Rule(("identified by",), _login(_SQL)),
)

_URL = re.compile(r""":(?:\\{0,8}/){2}[^\s"'`\\/<>@:?#]{0,128}:([^\s"'`\\/<>?#]{1,256})@""")


def url_passwords(text: str) -> Iterator[Secret]:
    """The password in `scheme://user:password@host`."""
    for found in _URL.finditer(text):
        if not is_placeholder(found[1]):
            yield Secret(kind="password", start=found.start(1), end=found.end(1))


_TWILIO = re.compile(rf"{LEFT}SK[0-9a-f]{{32}}{NO_MORE}")


def twilio_keys(text: str) -> Iterator[Secret]:
    """Without a trigger in lower case: `sk` is in too many words."""
    for found in _TWILIO.finditer(text):
        yield Secret(kind="twilio-key", start=found.start(), end=found.end())


_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}+@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])", re.ASCII
)


def emails(text: str) -> Iterator[Secret]:
    """E-mail addresses; git's user at a host is none."""
    for found in _EMAIL.finditer(text):
        if not (found[0].startswith("git@") and text.startswith(":", found.end())):
            yield Secret(kind="email", start=found.start(), end=found.end())
