"""What /api/show says of a model, read.

Its fields are used where there are fields. The text of its Modelfile is read for what has none:
where the files lie, where one license ends and the next one begins, and in some versions renderer
and parser. That text is no Modelfile that could be read back (quotes are put around some values and
left as they are inside of them), but it is written by one rule, which is followed here backwards.
Source: server/routes.go (GetModelInfo), server/images.go (String) and parser/parser.go (quote).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ollama_trainer.errors import BaseModelError

#: A parameter's value; `stop` is always a tuple.
Parameter = bool | int | float | str | tuple[str, ...]

#: How Ollama calls the files of its store, at the end of their paths on whatever system it runs.
_BLOB = re.compile(r"(?:^|[/\\])sha256[-:]([0-9a-f]{64})\Z")
_COMMANDS = (
    "FROM", "ADAPTER", "DRAFT", "TEMPLATE", "SYSTEM", "RENDERER", "PARSER", "REQUIRES",
    "PARAMETER", "LICENSE", "MESSAGE",
)  # fmt: skip
#: What stands before a value: the command, and a parameter's name or a message's role.
_COMMAND = re.compile(rf"(?:(PARAMETER|MESSAGE) \S*|({'|'.join(_COMMANDS)})) ")
#: Where a value in three quotes ends: before the next command, or the end of the text.
_END_OF_LONG = re.compile(rf'"""\n(?=(?:{"|".join(_COMMANDS)}) |\Z)')
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)")
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A model as Ollama tells of it."""

    #: Where its GGUF lies on the server's machine, then the GGUFs of projectors.
    files: tuple[str, ...]
    #: Files of adapters that are put on it when it is loaded.
    adapters: tuple[str, ...]
    #: `gguf` or `safetensors`; empty where it lies elsewhere.
    format: str
    #: The host that computes it in the place of this one; empty for local models.
    remote_host: str
    #: Type of most of its weights, in Ollama's words.
    quantization: str
    #: How many parameters it has, in Ollama's words: `4.3B` for instance.
    parameters_said: str
    #: What is in use: a Go template, or the Jinja template of the GGUF.
    template: str
    system: str
    parameters: Mapping[str, Parameter]
    licenses: tuple[str, ...]
    renderer: str
    parser: str
    requires: str
    #: None: it is too old to tell.
    capabilities: tuple[str, ...] | None
    messages: tuple[Mapping[str, str], ...]
    #: Keys of the GGUF with their values; long lists are None.
    model_info: Mapping[str, Any]


def read_shown(shown: Mapping[str, Any]) -> Shown:
    """Reads the answer of /api/show.

    Raises:
        BaseModelError: a parameter is written in a form that nobody knows yet.
    """
    commands = list(read_modelfile(_text(shown, "modelfile")))
    details = shown.get("details") or {}
    capabilities = shown.get("capabilities")
    return Shown(
        files=_all(commands, "FROM"),
        adapters=_all(commands, "ADAPTER"),
        format=_text(details, "format"),
        remote_host=_text(shown, "remote_host") or _text(shown, "remote_model"),
        quantization=_text(details, "quantization_level"),
        parameters_said=_text(details, "parameter_size"),
        template=_text(shown, "template"),
        system=_text(shown, "system"),
        parameters=read_parameters(_text(shown, "parameters")),
        licenses=_licenses(commands, _text(shown, "license")),
        renderer=_text(shown, "renderer") or "".join(_all(commands, "RENDERER")[:1]),
        parser=_text(shown, "parser") or "".join(_all(commands, "PARSER")[:1]),
        requires=_text(shown, "requires"),
        capabilities=None if capabilities is None else tuple(map(str, capabilities)),
        messages=tuple(
            {"role": _text(message, "role"), "content": _text(message, "content")}
            for message in shown.get("messages") or ()
        ),
        model_info=shown.get("model_info") or {},
    )


def blob_digest(path: str) -> str:
    """SHA-256 of a file of Ollama's store, by its name, lower-case hex; empty for other files."""
    named = _BLOB.search(path)
    return named[1] if named else ""


def read_modelfile(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a shown Modelfile, in their order, with their values.

    Lines that belong to no command (comments at its head) are passed over.
    """
    place = 0
    while place < len(text):
        command = _COMMAND.match(text, place)
        if command is None:
            place = _end_of_line(text, place) + 1
            continue
        value, place = _value(text, command.end())
        yield command[1] or command[2], value


def _value(text: str, start: int) -> tuple[str, int]:
    """The value that begins at `start`, and where the next line begins.

    Quotes stand around values with line breaks or with blanks at their ends: three of them where a
    quote stands inside.
    """
    if text.startswith('"""', start) and (end := _END_OF_LONG.search(text, start + 3)):
        return text[start + 3 : end.start()], end.end()
    if text.startswith('"', start):
        close = text.find('"', start + 1)
        inner = text[start + 1 : close]
        needs_quotes = "\n" in inner or inner != inner.strip(" ")
        if close > start and needs_quotes and text[close + 1 : close + 2] in ("\n", ""):
            return inner, close + 2
    end_of_line = _end_of_line(text, start)
    return text[start:end_of_line], end_of_line + 1


def read_parameters(text: str) -> dict[str, Parameter]:
    """The parameters, which stand one a line as Go writes their values.

    Raises:
        BaseModelError: a value is written in a form that nobody knows yet.
    """
    parameters: dict[str, Parameter] = {}
    stops: list[str] = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        name, _, written = line.partition(" ")
        value = _parameter(name, written.strip(" "))
        if name == "stop":
            stops.append(str(value))
        elif name in parameters:
            before = parameters[name]
            earlier = before if isinstance(before, tuple) else (str(before),)
            parameters[name] = (*earlier, str(value))
        else:
            parameters[name] = value
    return parameters | ({"stop": tuple(stops)} if stops else {})


def _parameter(name: str, written: str) -> bool | int | float | str:
    if written in ("true", "false"):
        return written == "true"
    if _NUMBER.fullmatch(written):
        number = float(written)
        # From 1,000,000 on Go writes whole numbers with an exponent, too.
        return int(number) if number.is_integer() else number
    if len(written) >= 2 and written[0] == written[-1] == '"':
        return _ESCAPE.sub(_unescaped, written[1:-1])
    raise BaseModelError(
        f"Ollama tells the parameter {name!r:.80} as {written!r:.80}, which is not understood",
        "Create the model without that parameter (ollama create), and choose that one.",
    )


def _unescaped(escape: re.Match[str]) -> str:
    what = escape[1]
    if len(what) == 1:
        return _LETTERS.get(what, what)
    code = int(what[1:], 16)
    # A byte above 0x7f stands alone only where the text is not UTF-8.
    return chr(0xDC00 + code) if what[0] == "x" and code > 0x7F else chr(code)


def _licenses(commands: list[tuple[str, str]], joined: str) -> tuple[str, ...]:
    apart = _all(commands, "LICENSE")
    if "\n".join(apart) == joined:
        return apart
    return (joined,) if joined else ()


def _all(commands: list[tuple[str, str]], name: str) -> tuple[str, ...]:
    return tuple(value for command, value in commands if command == name)


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""
