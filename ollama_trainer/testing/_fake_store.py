"""What the fake Ollama keeps: blobs on disk, models in memory, and how /api/create makes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ollama_trainer.testing import tiny_gguf
from ollama_trainer.testing.tiny_gguf import BadGguf, GgufInfo

Profile = Literal["0.33", "0.40"]
#: host, namespace, model, tag.
Name = tuple[str, str, str, str]

#: An edit distance below this makes Ollama take a bundled template for a model's own.
_SIMILAR = 100
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_NAME = re.compile(
    r"(?:(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349})/)?(?P<space>[A-Za-z0-9_][A-Za-z0-9_-]{0,79})/)?"
    r"(?P<model>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}))?"
)
_DEFAULTS = ("registry.ollama.ai", "library", "", "latest")
_REFUSED_QUANTIZE = (
    "create-time quantization is only supported for safetensors imports; quantize GGUF models with "
    "llama.cpp tools before importing"
)
_REFUSED_ADAPTERS = "LoRA adapters are no longer supported"
#: What some of the parsers of Ollama's can read off an answer.
_PARSERS = {"qwen3": ("tools", "thinking"), "qwen3-coder": ("tools",)}
#: general.file_type -> name, of the common ones.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 14: "Q4_K_S",
    15: "Q4_K_M", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


class Refusal(Exception):
    """An error that the client sees.

    Args:
        text: of the `error` field.
        status: HTTP status, where it can still be told.
    """

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


@dataclass(frozen=True, slots=True)
class BundledTemplate:
    """A Go template that stands in for chat templates like `jinja`."""

    name: str
    jinja: str
    go: str
    stops: tuple[str, ...]


#: One ChatML-like template in plain words, so that the replacing can be seen without setting it up.
CHATML = BundledTemplate(
    name="chatml",
    jinja=(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    go="{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n",
    stops=("<|im_start|>", "<|im_end|>"),
)


@dataclass(slots=True)
class StoredModel:
    """One model, as a manifest would have it."""

    name: Name
    #: Digest of its GGUF as stored, which is not always the uploaded one.
    blob: str
    gguf: GgufInfo
    parameters: dict[str, Any] = field(default_factory=dict)
    licenses: list[str] = field(default_factory=list)
    template: str | None = None
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    #: What it is said to be of, where that is not its GGUF's architecture.
    family: str = ""
    #: Digests of projectors for pictures.
    projectors: list[str] = field(default_factory=list)
    #: Where it is computed, if not here.
    remote_host: str = ""
    format: str = "gguf"
    modified: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    @property
    def short_name(self) -> str:
        host, space, model, tag = self.name
        parts = [
            part for part, usual in ((host, _DEFAULTS[0]), (space, _DEFAULTS[1])) if part != usual
        ]
        if host != _DEFAULTS[0] and space == _DEFAULTS[1]:
            parts.append(space)
        return "/".join([*parts, f"{model}:{tag}"])

    @property
    def digest(self) -> str:
        """64 hex digits; the same for the same content, whatever the name."""
        content = [
            self.blob, self.parameters, self.licenses, self.template, self.system, self.messages,
            self.adapters, self.renderer, self.parser, self.requires, self.projectors,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": self.format,
            "family": self.family or self.gguf.architecture,
            "families": [self.family or self.gguf.architecture],
            "parameter_size": _human(self.gguf.parameter_count),
            "quantization_level": _FILE_TYPES.get(
                self.gguf.values.get("general.file_type", 0), "unknown"
            ),
        }

    def setting(self, key: str) -> int:
        """One of the file's numbers about its architecture."""
        return int(self.gguf.values.get(f"{self.gguf.architecture}.{key}", 0))

    @property
    def uses_jinja(self) -> bool:
        if self.renderer or self.parser:
            return False
        jinja = _jinja_capabilities(self.gguf.chat_template)
        return bool(self.gguf.chat_template) and (
            self.template is None or len(jinja) > len(_go_capabilities(self.template))
        )

    @property
    def capabilities(self) -> list[str]:
        pooling = f"{self.gguf.architecture}.pooling_type" in self.gguf.values
        own = (
            _jinja_capabilities(self.gguf.chat_template)
            if self.uses_jinja
            else _go_capabilities(self.template or "")
        )
        parsed = [each for each in _PARSERS.get(self.parser, ()) if each not in own]
        vision = ["vision"][: len(self.projectors)]
        return ["embedding" if pooling else "completion", *own, *parsed, *vision]

    @property
    def shown_template(self) -> str:
        return self.gguf.chat_template if self.uses_jinja else self.template or "{{ .Prompt }}"


class Store:
    """Blobs and models of one fake Ollama."""

    def __init__(
        self, profile: Profile, folder: Path, bundled: tuple[BundledTemplate, ...] = (CHATML,)
    ) -> None:
        self.profile = profile
        self.bundled = bundled
        self._folder = folder
        self._models: dict[Name, StoredModel] = {}
        self._layers: set[str] = set()

    def blob_path(self, digest: str) -> Path:
        """Where a blob lies or would lie.

        Raises:
            Refusal: it is no digest.
        """
        if not _DIGEST.fullmatch(digest):
            raise Refusal("invalid digest format", 400)
        return self._folder / digest.replace(":", "-")

    def models(self) -> list[StoredModel]:
        """Newest first, as /api/tags lists them."""
        return sorted(self._models.values(), key=lambda model: model.modified, reverse=True)

    def find(self, name: str) -> StoredModel | None:
        """The model of that name in any case; `:local` and `:cloud` are not read as tags."""
        base = re.sub(r":(local|cloud)$", "", name, flags=re.IGNORECASE)
        parts = parse_name(base)
        return self._models.get(self._existing(parts)) if parts and base == name else None

    def add_without_gguf(self, name: str, *, remote_host: str = "", form: str = "") -> None:
        """Puts a model there that no request makes: in the cloud, or kept as safetensors.

        Args:
            remote_host: where it is computed; empty for a local one.
            form: of its files, `safetensors` for instance.
        """
        parts = parse_name(name)
        if parts is None:
            raise ValueError(f"{name!r} is no name")
        nothing = GgufInfo(3, {}, {}, (), 0)
        blob = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        model = StoredModel(
            name=parts, blob=blob, gguf=nothing, remote_host=remote_host, format=form
        )
        self._put(model)

    def copy(self, source: str, destination: str) -> None:
        parts = {}
        for what, name in (("source", source), ("destination", destination)):
            parsed = parse_name(name)
            if parsed is None:
                raise Refusal(f'{what} "{name}" is invalid', 400)
            parts[what] = self._existing(parsed)
        model = self._models.get(parts["source"])
        if model is None:
            raise Refusal(f'model "{source}" not found', 404)
        self._put(_renamed(model, parts["destination"]))

    def delete(self, name: str) -> None:
        """Deletes the model and the blob that no other model uses."""
        model = self.find(name)
        if model is None:
            raise Refusal(f"model '{name}' not found", 404)
        del self._models[model.name]
        if all(other.blob != model.blob for other in self._models.values()):
            self.blob_path(model.blob).unlink(missing_ok=True)

    def create(self, request: Mapping[str, Any], *, spoils: bool = False) -> Iterator[str]:
        """Makes a model; yields the statuses but `success`.

        Args:
            spoils: whether the last byte of its file becomes another one.

        Raises:
            Refusal: before the first status if the real one checks it that early.
        """
        parts = self._checked(request)
        yield from self._create(request, self._existing(parts))
        if spoils:
            self._spoil(self._models[self._existing(parts)])

    def _checked(self, request: Mapping[str, Any]) -> Name:
        files: dict[str, str] = request.get("files") or {}
        for path, digest in files.items():
            if not _is_local(path):
                raise Refusal("file path must be relative", 400)
            if not digest:
                raise Refusal("invalid digest format", 400)
        parts = parse_name(str(request.get("model") or request.get("name") or ""))
        if parts is None:
            raise Refusal("invalid model name", 400)
        if self.profile == "0.40":
            if request.get("adapters"):
                raise Refusal(_REFUSED_ADAPTERS, 400)
            if request.get("quantize"):
                raise Refusal(_REFUSED_QUANTIZE, 400)
        if not request.get("from") and "files" not in request:
            raise Refusal("neither 'from' or 'files' was specified", 400)
        return parts

    def _create(self, request: Mapping[str, Any], name: Name) -> Iterator[str]:
        if request.get("from"):
            base = self.find(request["from"])
            if base is None:
                yield "pulling manifest"
                raise Refusal("pull model manifest: file does not exist")
            model = _renamed(base, name)
        else:
            digest, *projectors = self._ggufs(request["files"])
            yield "parsing GGUF"
            model = self._from_file(digest, name)
            model.projectors += projectors
        template_status = None if request.get("from") else self._autodetect(model)
        model.adapters += [self._adapter(d) for d in (request.get("adapters") or {}).values()]
        if request.get("quantize"):
            _check_quantize(model)
        if self.profile == "0.33" and not request.get("from"):
            yield from self._rewrite(model)
        yield self._layer(model.blob)
        if template_status:
            yield template_status
        _apply(request, model)
        for content in [*model.licenses, json.dumps(model.parameters, sort_keys=True)]:
            if content != "{}":
                yield self._layer(f"sha256:{hashlib.sha256(content.encode()).hexdigest()}")
        yield "writing manifest"
        self._put(model)

    def _layer(self, digest: str) -> str:
        is_known = digest in self._layers
        self._layers.add(digest)
        return f"{'using existing' if is_known else 'creating new'} layer {digest}"

    def _ggufs(self, files: Mapping[str, str]) -> list[str]:
        """Digests of the files that are GGUFs by their names or their magic: the model's first."""
        found = [
            digest
            for path, digest in files.items()
            if path.endswith(".gguf")
            or (self.blob_path(digest).exists() and tiny_gguf.has_magic(self.blob_path(digest)))
        ]
        if not found:
            raise Refusal("unknown type", 400)
        return sorted(found, key=self._is_projector)

    def _is_projector(self, digest: str) -> bool:
        with suppress(BadGguf, OSError):
            return tiny_gguf.read(self.blob_path(digest)).architecture == "clip"
        return False

    def _from_file(self, digest: str, name: Name) -> StoredModel:
        blob = self.blob_path(digest)
        if not blob.exists():
            raise Refusal(f"open {blob}: no such file or directory")
        try:
            info = tiny_gguf.read(blob)
        except BadGguf as error:
            is_other = "not in GGUF" in str(error)
            raise Refusal(str(error), 400 if is_other else 500) from error
        if info.values.get("general.type") == "adapter" and self.profile == "0.40":
            raise Refusal(_REFUSED_ADAPTERS, 400)
        return StoredModel(name=name, blob=digest, gguf=info)

    def _adapter(self, digest: str) -> str:
        if not self.blob_path(digest).exists():
            raise Refusal(f"open {self.blob_path(digest)}: no such file or directory")
        return digest

    def _autodetect(self, model: StoredModel) -> str | None:
        jinja = model.gguf.chat_template
        for known in self.bundled:
            if jinja and edit_distance(jinja, known.jinja) < _SIMILAR:
                model.template = known.go
                model.parameters["stop"] = list(known.stops)
                return f"using autodetected template {known.name}"
        return None

    def _rewrite(self, model: StoredModel) -> Iterator[str]:
        if not model.gguf.architecture:
            raise Refusal(
                "failed to validate GGUF with llama-quantize without compatibility patches: "
                "exit status 1"
            )
        yield "verifying conversion"
        scratch = self._folder / "rewritten"
        tiny_gguf.rewrite_sorted(self.blob_path(model.blob), model.gguf, scratch)
        with scratch.open("rb") as handle:
            model.blob = "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()
        scratch.replace(self.blob_path(model.blob))
        model.gguf = tiny_gguf.read(self.blob_path(model.blob))

    def _spoil(self, model: StoredModel) -> None:
        data = bytearray(self.blob_path(model.blob).read_bytes())
        data[-1] ^= 0xFF
        model.blob = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blob_path(model.blob).write_bytes(data)

    def _existing(self, name: Name) -> Name:
        """The name in the case in which its parts are known already."""
        for known in self._models:
            pairs = zip(known, name, strict=True)
            a, b, c, d = (old if old.lower() == new.lower() else new for old, new in pairs)
            name = (a, b, c, d)
        return name

    def _put(self, model: StoredModel) -> None:
        self._models[model.name] = model


def parse_name(name: str) -> Name | None:
    """host, namespace, model and tag; None when it is no name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    host, space, model, tag = match.group("host", "space", "model", "tag")
    return host or _DEFAULTS[0], space or _DEFAULTS[1], model, tag or _DEFAULTS[3]


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance in characters."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            change = previous[j - 1] + (left != right)
            current.append(min(previous[j] + 1, current[j - 1] + 1, change))
        previous = current
    return previous[-1]


def _apply(request: Mapping[str, Any], model: StoredModel) -> None:
    template = request.get("template")
    if template:
        if template.count("{{") != template.count("}}"):
            raise Refusal("template error: template: :1: unclosed action", 400)
        model.template = template
    model.system = request.get("system") or model.system
    license_ = request.get("license") or []
    model.licenses = model.licenses + ([license_] if isinstance(license_, str) else list(license_))
    model.parameters = {**model.parameters, **(request.get("parameters") or {})}
    model.messages = request.get("messages") or model.messages
    model.family = (request.get("info") or {}).get("model_family") or model.family
    for key in ("renderer", "parser", "requires"):
        setattr(model, key, request.get(key) or getattr(model, key))


def _check_quantize(model: StoredModel) -> None:
    if model.details["quantization_level"] not in ("F16", "BF16", "F32"):
        raise Refusal("quantization is only supported for F16, BF16 and F32 models")


def _renamed(model: StoredModel, name: Name) -> StoredModel:
    return replace(
        model,
        name=name,
        parameters=dict(model.parameters),
        licenses=list(model.licenses),
        messages=list(model.messages),
        adapters=list(model.adapters),
        projectors=list(model.projectors),
        modified=datetime.now(UTC).isoformat(),
    )


def _jinja_capabilities(jinja: str) -> list[str]:
    tools = "tools" in jinja or "tool_call" in jinja
    thinking = "<think>" in jinja and "</think>" in jinja
    return ["tools"] * tools + ["thinking"] * thinking


def _go_capabilities(template: str) -> list[str]:
    words = ((".Tools", "tools"), (".Suffix", "insert"), (".Thinking", "thinking"))
    return [capability for word, capability in words if word in template]


def _is_local(path: str) -> bool:
    parts = path.split("/")
    return all(part not in ("", ".", "..") for part in parts)


def _human(count: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.2f}{letter}"
    return str(count)
