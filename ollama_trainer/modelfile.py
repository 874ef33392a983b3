"""The Modelfile, as one object with two faces.

`Modelfile.text` is what `ollama create NAME -f Modelfile` reads; `Modelfile.create_request` is the
body of POST /api/create. Both say the same, because Ollama's command line parses the text into that
request (its parser/parser.go and api/types.go are the source of the rules here).

Not covered on purpose: ADAPTER and `quantize` (newer Ollama refuses both), SYSTEM (it applies only
while a request brings none) and MESSAGE (it prefixes every chat).

The module also protects a chat template from being replaced by Ollama: see `protect_chat_template`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from ollama_trainer.errors import ExportError, PublishError

ParameterValue = bool | int | float | str | tuple[str, ...]

_INT32 = 2**31 - 1
#: Integer parameters with the smallest value that makes sense.
_INTEGERS = {
    "num_ctx": 1,
    "num_predict": 1,
    "num_batch": 1,
    "num_gpu": -1,
    "num_keep": -1,
    "num_thread": 0,
    "main_gpu": 0,
    "repeat_last_n": -1,
    "seed": -1,
    "top_k": 0,
}
#: Real-valued parameters with their bounds, ends included.
_REALS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (0.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}
_SWITCHES = ("use_mmap",)

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.gguf")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: host / namespace / model : tag, as Ollama's types/model/name.go allows them.
_MODEL_NAME = re.compile(
    r"(?:(?:[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}/)?[A-Za-z0-9_][A-Za-z0-9_-]{0,79}/)?"
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelfile:
    """What Ollama must know of a model beside its weights.

    Raises:
        ExportError: a name, type or value that Ollama would reject, or accept and then fail on.
    """

    #: Name of the GGUF file; it lies beside the Modelfile.
    gguf: str = "model.gguf"
    #: Ollama's parameters, each with its own type; `stop` is a tuple of texts.
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    license: str = ""
    #: A Go template. None: Ollama renders with the Jinja template that the GGUF carries.
    template: str | None = None

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.gguf):
            raise ExportError(
                f"{self.gguf!r} cannot be the GGUF's name in a Modelfile",
                "Use a plain file name of letters, digits, '_', '-' and '.' that ends in .gguf.",
            )
        checked = {name: _checked(name, value) for name, value in self.parameters.items()}
        object.__setattr__(self, "parameters", MappingProxyType(checked))
        _check_text("license", self.license)
        if self.template is not None:
            _check_text("template", self.template)

    @property
    def fields(self) -> dict[str, Any]:
        """All of it as JSON can say it; `from_fields` reads it back."""
        return {
            "gguf": self.gguf,
            "parameters": dict(self.parameters),
            "license": self.license,
            "template": self.template,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `fields`, also after a way through JSON, which knows no tuples."""
        parameters = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields["parameters"].items()
        }
        return cls(**{**fields, "parameters": parameters})

    @property
    def text(self) -> str:
        """The Modelfile as a file's text, ending in a newline."""
        lines = [f"FROM ./{self.gguf}"]
        for name, value in self.parameters.items():
            values = value if isinstance(value, tuple) else (value,)
            lines.extend(f"PARAMETER {name} {_written(each)}" for each in values)
        if self.template is not None:
            lines.append(f"TEMPLATE {_quoted(self.template)}")
        if self.license:
            lines.append(f"LICENSE {_quoted(self.license)}")
        return "\n".join(lines) + "\n"

    def create_request(self, model: str, digest: str) -> dict[str, Any]:
        """The body of POST /api/create for the uploaded GGUF.

        Args:
            model: the name to create.
            digest: of the blob, `sha256:` and 64 lower-case hex digits.

        Raises:
            PublishError: Ollama could not take the name or the digest.
        """
        check_model_name(model)
        if not _DIGEST.fullmatch(digest):
            raise PublishError(
                f"{digest!r} is not a blob's digest",
                "It is 'sha256:' and 64 lower-case hex digits.",
            )
        body: dict[str, Any] = {"model": model, "files": {self.gguf: digest}, "stream": True}
        if self.parameters:
            body["parameters"] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.parameters.items()
            }
        if self.template is not None:
            body["template"] = self.template
        if self.license:
            body["license"] = [self.license]
        return body


def modelfile_for(
    *,
    stops: Sequence[str],
    num_ctx: int,
    num_predict: int,
    license_text: str = "",
    gguf: str = "model.gguf",
    more: Mapping[str, ParameterValue] | None = None,
) -> Modelfile:
    """The Modelfile for a GGUF that carries its own chat template.

    Stops, context and cap are always written out: the callers of such a model send no options, and
    one that misses its stop token would otherwise answer for ever.

    Args:
        stops: texts that end an answer, at least one.
        num_ctx: context window, in tokens.
        num_predict: the longest answer, in tokens.
        license_text: form feeds and other characters that Ollama's parser drops become blanks.
        gguf: file name of the GGUF.
        more: further parameters, for instance those of the base model; the ones above win.

    Raises:
        ExportError: a value that Ollama would fail on.
    """
    if not stops:
        raise ExportError(
            "no stop text was given for the Modelfile",
            "Give the chat template's end-of-turn token, for instance '<|im_end|>'.",
        )
    parameters: dict[str, ParameterValue] = dict(more or {})
    parameters |= {"num_ctx": num_ctx, "num_predict": num_predict, "stop": tuple(stops)}
    printable = "".join(c if c.isprintable() or c in "\n\t" else " " for c in license_text)
    return Modelfile(gguf=gguf, parameters=parameters, license=printable.strip())


def check_model_name(name: str) -> str:
    """Returns the model's name unchanged.

    Raises:
        PublishError: Ollama does not take it, or gives it a meaning of its own.
    """
    match = _MODEL_NAME.fullmatch(name)
    if match is None:
        raise PublishError(
            f"{name[:200]!r} is not a name that Ollama accepts",
            "Use name:tag, each of at most 80 letters, digits, '_', '-' and '.'.",
        )
    tag = (match["tag"] or "").lower()
    if tag in ("cloud", "local") or tag.endswith("-cloud"):
        raise PublishError(f"Ollama keeps the tag {tag!r} for itself", "Choose another tag.")
    return name


def _checked(name: str, value: ParameterValue) -> ParameterValue:
    """One parameter's value, a single stop as a tuple; see `Modelfile` for what it raises."""
    is_switch = isinstance(value, bool)
    if name in _SWITCHES:
        if is_switch:
            return value
        raise _bad_parameter(name, value, "It is true or false.")
    if name in _INTEGERS:
        low = _INTEGERS[name]
        if isinstance(value, int) and not is_switch and low <= value <= _INT32:
            return value
        raise _bad_parameter(name, value, f"It is an integer from {low} to {_INT32}.")
    if name in _REALS:
        least, most = _REALS[name]
        if isinstance(value, (int, float)) and not is_switch and least <= value <= most:
            return value
        raise _bad_parameter(name, value, f"It is a number from {least:g} to {most:g}.")
    if name == "stop":
        return _checked_stops(value)
    known = ", ".join(sorted([*_INTEGERS, *_REALS, *_SWITCHES, "stop"]))
    raise ExportError(f"Ollama has no parameter {name!r}", f"It has: {known}.")


def _checked_stops(value: ParameterValue) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, tuple) or not stops:
        raise _bad_parameter("stop", value, "It is one text, or a tuple of texts.")
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise _bad_parameter("stop", value, "Each stop is a text that is not empty.")
        _check_text("stop", stop)
    return stops


def _bad_parameter(name: str, value: object, remedy: str) -> ExportError:
    return ExportError(f"the parameter {name} cannot be {value!r:.80}", remedy)


def _check_text(what: str, text: str) -> None:
    """Refuses what Ollama's Modelfile parser would silently change.

    It drops characters that do not print (joiners, non-breaking spaces, controls), and it ends a
    triple-quoted text at the first line that ends in three quotes.
    """
    for char in text:
        if not (char.isprintable() or char in "\n\r\t"):
            raise ExportError(
                f"the {what} holds the character U+{ord(char):04X}, "
                "which Ollama drops from a Modelfile",
                f"Remove it from the {what}.",
            )
    if any(line.rstrip().endswith('"""') for line in re.split("[\n\r]", text)[:-1]):
        raise ExportError(
            f"a line of the {what} ends in three quotes, where a Modelfile would end it",
            f"Change that line of the {what}.",
        )


def _written(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    """Ollama's grammar knows no escapes: a text with quotes inside needs three around it."""
    return f'"""{text}"""' if '"' in text else f'"{text}"'


#: Ollama takes one of its bundled Go templates, with that one's stops, for any chat template at an
#: edit distance below 100 from the Jinja that it knows for it (its template/template.go). None of
#: those holds a tilde, so 128 of them keep the distance at 128 or more whatever the template is.
_SHIELD = (
    "{# Kept as trained: without this remark Ollama would put a template of its own in this one's "
    "place, with other rules. " + "~" * 128 + " #}"
)


def protect_chat_template(jinja: str) -> str:
    """The template with a Jinja comment in it that keeps Ollama from replacing it.

    Renders to the same text, also with `trim_blocks` and `lstrip_blocks`; doing it twice changes
    nothing. An empty template stays empty, since Ollama has nothing to replace there.
    """
    if not jinja or _SHIELD[2:-2] in jinja:
        return jinja
    body = jinja.lstrip()
    blank = jinja[: len(jinja) - len(body)]
    if not blank:
        return _SHIELD + jinja
    if body.startswith(("{%", "{#")):
        # The comment must treat the blanks before it just as the tag did that stood there.
        mark = body[2] if body[2:3] in ("-", "+") else ""
        return blank + "{#" + mark + _SHIELD[2:] + body
    # `trim_blocks` eats a newline right after a comment, but not after an expression.
    return _SHIELD + "{{ '' }}" + jinja
