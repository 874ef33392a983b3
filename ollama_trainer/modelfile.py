"""The Modelfile, as one object with two faces.

`Modelfile.text` is what `ollama create NAME -f Modelfile` reads; `Modelfile.create_request` is the
body of POST /api/create. Both say the same, because Ollama's command line parses the text into that
request (its parser/parser.go and api/types.go are the source of the rules here).

Some texts that a base has cannot be said in a Modelfile: its grammar drops characters that do not
print (joiners in emoji, non-breaking spaces) and ends a text at a line that ends in three quotes.
Refusing them would keep a base from being tuned for a character in its licence, and changing them
would change the model. So the request has them as they are, which is what is published; the text
leaves them out and says so, and `unsayable` tells whoever hands out the text alone.

Not covered on purpose: ADAPTER and `quantize`, which newer Ollama refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from ollama_trainer.errors import ExportError, PublishError
from ollama_trainer.ollama.names import MODEL_NAME
from ollama_trainer.records import OllamaModel

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
    "draft_num_predict": 0,
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
#: Names of renderers and parsers; Ollama has a fixed list, which grows with its versions.
_CODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
#: As Ollama's command line takes it, without the `v` that it may begin with.
_VERSION = re.compile(r"\d+(?:\.\d+){0,2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")
_ROLES = ("system", "user", "assistant")
#: Default context, and the most that a cap on answers is taken from, both in tokens. A larger
#: context costs memory that nobody asked for.
_NUM_CTX = 4096
_MOST_CTX_FOR_CAP = 16384
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


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
    licenses: tuple[str, ...] = ()
    #: A Go template. None: Ollama renders with the Jinja template that the GGUF carries.
    template: str | None = None
    system: str = ""
    #: Messages that begin every chat: role and content.
    messages: tuple[Mapping[str, str], ...] = ()
    #: Names of Ollama's own code that renders prompts and reads answers.
    renderer: str = ""
    parser: str = ""
    #: The oldest version of Ollama that can run it.
    requires: str = ""

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.gguf):
            raise ExportError(
                f"{self.gguf!r} cannot be the GGUF's name in a Modelfile",
                "Use a plain file name of letters, digits, '_', '-' and '.' that ends in .gguf.",
            )
        checked = {name: _checked(name, value) for name, value in self.parameters.items()}
        object.__setattr__(self, "parameters", MappingProxyType(checked))
        for what in ("renderer", "parser"):
            name = getattr(self, what)
            if name and not _CODE_NAME.fullmatch(name):
                raise ExportError(f"{name!r:.80} cannot be the name of a {what} of Ollama's")
        if self.requires and not _VERSION.fullmatch(self.requires):
            raise ExportError(f"{self.requires!r:.80} cannot be a version of Ollama")
        for text in (text for _, text in self._texts()):
            _check_encodable(text)

    @property
    def fields(self) -> dict[str, Any]:
        """All of it as JSON can say it; `from_fields` reads it back."""
        return {
            "gguf": self.gguf,
            "parameters": dict(self.parameters),
            "licenses": list(self.licenses),
            "template": self.template,
            "system": self.system,
            "messages": [dict(message) for message in self.messages],
            "renderer": self.renderer,
            "parser": self.parser,
            "requires": self.requires,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `fields`, also after a way through JSON, which knows no tuples."""
        given = dict(fields)
        # Runs made before there could be several.
        licence = given.pop("license", "")
        given["licenses"] = tuple(given.get("licenses", [licence] if licence else []))
        given["messages"] = tuple(given.get("messages", ()))
        given["parameters"] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given["parameters"].items()
        }
        return cls(**given)

    @property
    def text(self) -> str:
        """The Modelfile as a file's text, ending in a newline."""
        lines = [f"FROM ./{self.gguf}"]
        words = (("RENDERER", self.renderer), ("PARSER", self.parser), ("REQUIRES", self.requires))
        lines += [f"{instruction} {word}" for instruction, word in words if word]
        lines += [
            f"PARAMETER {name} {_written(value)}"
            for name, value in self.parameters.items()
            if not isinstance(value, tuple)
        ]
        for instruction, text in self._texts():
            why = _why_unsayable(instruction, text)
            line = f"{instruction} {_quoted(text)}"
            lines.append(line if why is None else f"# {instruction} is left out here: {why}")
        return "\n".join(lines) + "\n"

    @property
    def unsayable(self) -> tuple[str, ...]:
        """What the text has to leave out: an instruction and the reason each."""
        reasons = (
            (instruction, _why_unsayable(instruction, text)) for instruction, text in self._texts()
        )
        return tuple(f"{instruction}: {why}" for instruction, why in reasons if why is not None)

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
        given = {
            "parameters": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.parameters.items()
            },
            "template": self.template,
            "system": self.system,
            "messages": [dict(message) for message in self.messages],
            "renderer": self.renderer,
            "parser": self.parser,
            "requires": self.requires,
            "license": list(self.licenses),
        }
        return body | {name: value for name, value in given.items() if value}

    def _texts(self) -> Iterator[tuple[str, str]]:
        """The instructions whose argument is a free text, with it."""
        for name, value in self.parameters.items():
            if isinstance(value, tuple):
                yield from ((f"PARAMETER {name}", each) for each in value)
        if self.template:
            yield "TEMPLATE", self.template
        if self.system:
            yield "SYSTEM", self.system
        for message in self.messages:
            yield f"MESSAGE {message['role']}", message["content"]
        for licence in self.licenses:
            # A licence reads the same with blanks for what does not print.
            yield "LICENSE", "".join(char if _prints(char) else " " for char in licence)


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
        license_text: a licence's text or name.
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
    licenses = (license_text.strip(),) if license_text.strip() else ()
    return Modelfile(gguf=gguf, parameters=parameters, licenses=licenses)


def tuned_modelfile(
    base: OllamaModel | None, *, stop: str, context_length: int | None, license_text: str
) -> Modelfile:
    """The Modelfile of a tuned model: what its base has in Ollama, and what callers rely on.

    Args:
        base: what the base has there; None where it is not from Ollama.
        stop: text of the token that ends an answer; it joins the base's stops.
        context_length: what the model was made for, in tokens; None where nobody knows.
        license_text: used where Ollama has no licence of the base.

    Raises:
        ExportError: a name, type or value that Ollama would fail on.
    """
    base = base or OllamaModel(model="")
    own = {
        name: _checked(name, value)
        for name, value in base.parameters.items()
        if _refusal(name, value) is None
    }
    num_ctx = own.get("num_ctx", min(context_length or _NUM_CTX, _NUM_CTX))
    stops = own.get("stop", ())
    parameters: dict[str, ParameterValue] = {
        "num_predict": max(1, min(int(str(num_ctx)), _MOST_CTX_FOR_CAP) // 2),
        **own,
        "num_ctx": num_ctx,
        "stop": tuple(dict.fromkeys([*(stops if isinstance(stops, tuple) else ()), stop])),
    }
    licence = license_text.strip()
    return Modelfile(
        parameters=parameters,
        licenses=base.licenses or ((licence,) if licence else ()),
        template=base.template or None,
        system=base.system,
        messages=tuple(
            {"role": message["role"], "content": message["content"]} for message in base.messages
        ),
        renderer=base.renderer,
        parser=base.parser,
        requires=base.requires,
    )


def not_inherited(base: OllamaModel | None) -> tuple[str, ...]:
    """The base's parameters that a tuned model does not get, each with the reason."""
    refusals = [] if base is None else [_refusal(*each) for each in base.parameters.items()]
    return tuple(refusal for refusal in refusals if refusal is not None)


def check_model_name(name: str) -> str:
    """Returns the model's name unchanged.

    Raises:
        PublishError: Ollama does not take it, or gives it a meaning of its own.
    """
    match = MODEL_NAME.fullmatch(name)
    if match is None:
        raise PublishError(
            f"{name[:200]!r} is not a name that Ollama accepts",
            "Use name:tag, each of at most 80 letters, digits, '_', '-' and '.'.",
        )
    tag = (match["tag"] or "").lower()
    if tag in ("cloud", "local") or tag.endswith("-cloud"):
        raise PublishError(f"Ollama keeps the tag {tag!r} for itself", "Choose another tag.")
    return name


def _refusal(name: str, value: ParameterValue) -> str | None:
    """Why a parameter cannot be set, if it cannot."""
    try:
        _checked(name, value)
    except ExportError as error:
        return str(error)
    return None


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
        _check_encodable(stop)
    return stops


def _bad_parameter(name: str, value: object, remedy: str) -> ExportError:
    return ExportError(f"the parameter {name} cannot be {value!r:.80}", remedy)


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ExportError(
            f"a text for Ollama holds U+{ord(text[error.start]):04X}, half a character",
            "Remove it from what the base has in Ollama.",
        ) from error


def _prints(char: str) -> bool:
    """Whether Ollama's parser keeps the character."""
    return char.isprintable() or char in "\n\r\t"


def _why_unsayable(instruction: str, text: str) -> str | None:
    """What Ollama's Modelfile parser would silently change in an instruction's text.

    It drops characters that do not print (joiners, non-breaking spaces, controls), and it ends a
    triple-quoted text at the first line that ends in three quotes.
    """
    role = instruction.removeprefix("MESSAGE ")
    if role != instruction and role not in _ROLES:
        return f"a Modelfile does not know the role {role!r}"
    for char in text:
        if not _prints(char):
            return f"it holds U+{ord(char):04X}, which Ollama drops from a Modelfile"
    if any(line.rstrip().endswith('"""') for line in re.split("[\n\r]", text)[:-1]):
        return "a line of it ends in three quotes, where a Modelfile would end it"
    return None


def _written(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _quoted(text: str) -> str:
    """Ollama's grammar knows no escapes: a text with quotes inside needs three around it."""
    return f'"""{text}"""' if '"' in text else f'"{text}"'
