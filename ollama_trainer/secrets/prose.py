"""Passwords that people tell in plain sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ollama_trainer.secrets.found import Look, Secret
from ollama_trainer.secrets.values import is_passwordish, is_placeholder

_MARKS = ".,;:!?)"
_SAYS = (
    r"\s{1,3}(?:"
    r"(?P<verb>is|was|ist|war|lautet|est|es|era|will be)\s{0,2}:?\s{0,3}"
    r"|(?P<about>(?:for|of|to|für|von|pour|de|para|del)\s[^:\n\"'\\]{1,60}?(?::|\sis|\sist|\sest|\ses)\s{1,3})"
    r"|)"
    r"(?P<open>(?:\\{0,1023}[\"'`]|[„“«‚‘])?)(?P<word>[^\s\"'`<>\\“”»„]{4,128}+)(?P<close>\\{0,1023}[\"'`“”»’]?)"
)
_OWN = re.compile(
    r"\b(?:my|our|mein|unser|mon|notre|mi|nuestra)\s{1,3}(?:[\w-]{1,20}\s{1,2}){0,2}$", re.I
)
_USED = re.compile(
    r"\b(?:use|using|with|enter|mit|avec|con)\s{1,2}(?:(?:the|this|dem|le|la)\s)?$", re.I
)
# What is said about passwords rather than told as one.
_SAID = re.compile(
    r"(?:wrong|right|correct|incorrect[oa]?|incorrecte|invalid|valid|expired|required|needed|weak|strong"
    r"|short|long|safe|secure|secret|simple|complex|empty|blank|lost|gone|known|unknown|here|there|this"
    r"|that|what|which|where|always|never|still|also|only|just|very|really|probably|definitely|being"
    r"|about|from|with|without|your|mine|same|falsch|richtig|nicht|abgelaufen|unbekannt|leer|weg|sehr"
    r"|noch|kein|keine|eine|einfach|sicher|unsicher|geheim|zurückgesetzt|trop|très|toujours|faux|oublié"
    r"|perdu|vide|incorrecta|correcta|muy|demasiado|todavía|siempre|case-\w+|password|passwort"
    r"|\w+(?:ed|ing|able|ible|ive|ten|tten|ert|iert|ado|ada|ido|ida|ée|né)|it'?s|they|them|okay|fine"
    r"|good|great|bad|broken|stolen|hidden|taken|written|easy|hard|new|old|too|not)",
    re.I,
)
_NAMES_OF_METHODS = re.compile(
    r"(?:sha|md|utf|base|aes|rsa|pbkdf|oauth|ntlm|bcrypt|argon|blake|crc|2fa|mfa|web|http|v)-?\d*.{0,6}"
    r"|\d{1,4}(?:[./:-]\d{1,4})*(?:st|nd|rd|th|px|ms|s|m|h|gb|mb|kb|x|%)?|[a-z]{1,3}\d{1,2}|\[.*|e\d+\]?"
    r"|\d+-\w+",
    re.I,
)


def password_in_prose(rest: str) -> Look:
    """Looks behind a word for "password"; `rest` is how it goes on behind its trigger."""
    sentence = re.compile(f"(?:{rest}){_SAYS}", re.IGNORECASE)

    def look(text: str, start: int, end: int) -> Iterable[Secret]:
        found = sentence.match(text, end)
        if found is None:
            return ()
        word = found["word"].rstrip(_MARKS)
        if not _is_told(text, start, found, word):
            return ()
        at = found.start("word")
        return (Secret(kind="password", start=at, end=at + len(word)),)

    return look


def _is_told(text: str, start: int, found: re.Match[str], word: str) -> bool:
    if is_placeholder(word) or _NAMES_OF_METHODS.fullmatch(word):
        return False
    if found["open"]:
        # In quotes even a plain word is one, if they hold this one word.
        told = (
            found["verb"]
            or is_passwordish(word, 6)
            or _USED.search(text, max(0, start - 30), start)
        )
        return bool(found["close"]) and bool(told)
    if is_passwordish(word, 5 if found["verb"] or found["about"] else 6):
        return bool(found["verb"] or found["about"]) or any(map(str.isalpha, word))
    command = text[max(0, start - 2) : start] == "--"
    if command:
        return not word.startswith(("-", "$", "%", "@"))
    own = found["verb"] and _OWN.search(text, max(0, start - 60), start)
    return (
        bool(own) and len(word) >= 5 and _SAID.fullmatch(word) is None and _ends(text, found, word)
    )


def _ends(text: str, found: re.Match[str], word: str) -> bool:
    """Whether the sentence pauses behind the word: "my password is dragon, thanks"."""
    at = found.start("word") + len(word)
    return at == len(text) or text[at] in ".,;!\n\\\"'"
