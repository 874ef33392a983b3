"""A base that was pulled into Ollama: the very file that it serves, found by its name.

    name ─► /api/show ─► what it is and where its GGUF lies ─► readable here ─► digest as it says

The file is only ever read. Its name in Ollama's store is its digest, so that what is found there is
known to be what Ollama serves, however the way to it was described. Manifests are never read: they
are Ollama's own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ollama_trainer.bases.digests import sha256_of
from ollama_trainer.bases.permissions import not_allowed, our_user
from ollama_trainer.errors import BaseModelError, PublishError, TrainerError
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.ollama import open_api
from ollama_trainer.ollama.host import Endpoint, resolve
from ollama_trainer.ollama.names import MODEL_NAME, full_name, is_cloud
from ollama_trainer.ollama.renderers import settled_renderer
from ollama_trainer.ollama.shown import Shown, blob_digest, read_shown
from ollama_trainer.records import BaseGguf, OllamaModel

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

_Read = TypeVar("_Read")
#: Called with a base's header before anything large is read or written; raises what is wrong.
Check = Callable[[GgufFile], object]

_JINJA = "tokenizer.chat_template"
#: What Ollama shows of a model without a template.
_NO_TEMPLATE = "{{ .Prompt }}"
_MOST_NAMES = 12
_ELSEWHERE = "Choose a base whose file lies on this machine."


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A model of Ollama's whose file is here; nothing but its first bytes was read."""

    #: Ollama's canonical name.
    model: str
    gguf: Path
    #: Lower-case hex, by the file's name.
    digest: str
    shown: Shown


def load(
    name: str, ollama_host: str, cache: Path | None = None, check: Check | None = None
) -> BaseGguf:
    """Finds the file of a model in Ollama, and all that the model is beside it.

    Args:
        name: as the caller wrote it, `ollama:` left off.
        ollama_host: the server's address, in any form that OLLAMA_HOST may have.
        cache: directory that remembers the file's digest.
        check: asked before the digest is counted.

    Raises:
        OllamaUnreachable: no Ollama answers.
        BaseModelError: there is no such model, it cannot be a base, or its file cannot be read.
        GgufError: its file is damaged.
    """
    try:
        endpoint = resolve(ollama_host)
        with open_api(endpoint) as api:
            found = locate(api, endpoint, name)
            version = api.check_version() if found.shown.renderer else ""
    except PublishError as error:
        if error.retryable:
            raise
        # What publishing calls its own errors is no word for a base.
        raise BaseModelError(error.cause, error.remedy) from error
    gguf = header_of(found)
    if check is not None:
        with_name(found, lambda: check(gguf))
    if sha256_of(found.gguf, cache) != found.digest:
        raise BaseModelError(
            f"{found.gguf} is not what its name says, so that {found.model} is damaged",
            f"Look after the disk, then fetch it again (ollama pull {found.model}).",
        )
    return BaseGguf(
        name=name,
        gguf=found.gguf,
        digest=found.digest,
        license="\n\n".join(found.shown.licenses) or str(gguf.get("general.license", "")),
        ollama=inherited(found, gguf, version),
    )


def locate(api: OllamaApi, endpoint: Endpoint, name: str) -> Located:
    """Finds a model's file, if it can be a base as far as that is seen without reading it.

    Raises:
        OllamaUnreachable, PublishError: as of `OllamaApi`.
        BaseModelError: there is no such model, it cannot be a base, or its file cannot be read.
    """
    if not MODEL_NAME.fullmatch(name):
        raise BaseModelError(f"{name!r:.200} is no name that Ollama knows", "Check its spelling.")
    if is_cloud(name):
        # To ask what it is would already leave this machine.
        raise BaseModelError(
            f"{name} runs in Ollama's cloud: there are no weights of it here", _ELSEWHERE
        )
    described = api.described(name)
    if described is None:
        raise _no_such(api, endpoint, name)
    shown = read_shown(described)
    model = api.listed().get(full_name(name), (full_name(name), ""))[0]
    check_kind(model, shown)
    path, digest = _blob(model, shown.files[0] if shown.files else "")
    _check_readable(model, path, endpoint)
    return Located(model=model, gguf=path, digest=digest, shown=shown)


def check_kind(model: str, shown: Shown) -> None:
    """Refuses what can be no base, whatever its file holds.

    Raises:
        BaseModelError: it is such a model.
    """
    if shown.remote_host:
        raise BaseModelError(
            f"{model} runs at {shown.remote_host}: there are no weights of it here", _ELSEWHERE
        )
    if shown.format != "gguf":
        raise BaseModelError(
            f"Ollama keeps {model} as {shown.format or 'something unknown'}, not as a GGUF",
            "Choose one that it keeps as a GGUF, or the original on Hugging Face (hf:org/name).",
        )
    capabilities = shown.capabilities
    if capabilities is not None and "completion" not in capabilities:
        does = ", ".join(capabilities) or "nothing"
        raise BaseModelError(
            f"{model} writes no text: what it can do is {does}", "Choose a base that writes text."
        )
    if any(key.endswith("pooling_type") for key in shown.model_info):
        raise BaseModelError(
            f"{model} makes embeddings and writes no text", "Choose a base that writes text."
        )
    if shown.adapters:
        raise BaseModelError(
            f"{model} has an adapter beside its weights, which a training would not see",
            "Choose the model that it was made from.",
        )


def inherited(found: Located, gguf: GgufFile, version: str) -> OllamaModel:
    """What the model has beside its weights.

    Args:
        version: Ollama's.
    """
    shown = found.shown
    own = shown.template in (_NO_TEMPLATE, gguf.get(_JINJA))
    return OllamaModel(
        model=found.model,
        template="" if own else shown.template,
        system=shown.system,
        parameters=shown.parameters,
        licenses=shown.licenses,
        renderer=settled_renderer(shown.renderer, found.model, shown.parameters_said, version),
        parser=shown.parser,
        requires=shown.requires,
        capabilities=shown.capabilities,
        messages=shown.messages,
        projectors=tuple(map(Path, shown.files[1:])),
    )


def header_of(found: Located) -> GgufFile:
    """The header of its file.

    Raises:
        GgufError: it is damaged, or of a kind that cannot be read.
    """
    return with_name(found, lambda: read_gguf(found.gguf))


def with_name(found: Located, read: Callable[[], _Read]) -> _Read:
    """What `read` returns; in what it raises stands the model's name for its file's, which only
    says a digest.
    """
    try:
        return read()
    except TrainerError as error:
        cause = error.cause.replace(str(found.gguf), found.model)
        raise type(error)(cause.replace(found.gguf.name, found.model), error.remedy) from error


def _no_such(api: OllamaApi, endpoint: Endpoint, name: str) -> BaseModelError:
    names = sorted(shown for shown, _ in api.listed().values())
    more = ", …" if len(names) > _MOST_NAMES else ""
    held = f" It has {', '.join(names[:_MOST_NAMES])}{more}." if names else " It has none at all."
    return BaseModelError(
        f"Ollama at {endpoint.url} has no model {full_name(name)}",
        f"Pull it (ollama pull {name}), or choose another base.{held}",
    )


def _blob(model: str, text: str) -> tuple[Path, str]:
    """Path and digest of a file in Ollama's store."""
    path = Path(text)
    digest = blob_digest(path.name)
    if not digest or not path.is_absolute():
        raise BaseModelError(
            f"Ollama says that {model} lies at {text!r:.200}, which is no file of its store",
            "Choose another base, or name the file itself: gguf:/absolute/path.gguf.",
        )
    return path, digest


def _check_readable(model: str, path: Path, endpoint: Endpoint) -> None:
    try:
        with path.open("rb") as handle:
            handle.read(1)
    except PermissionError as error:
        raise not_allowed(model, path) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_here(model, path, endpoint) from error
    except OSError as error:
        raise BaseModelError(
            f"The file of {model}, {path}, cannot be read: {error.strerror or error}",
            "Look after the disk.",
        ) from error


def _not_here(model: str, path: Path, endpoint: Endpoint) -> BaseModelError:
    where = (
        "that Ollama seems to run in a container, or as another system's"
        if endpoint.loopback
        else f"that Ollama is the one at {endpoint.url}"
    )
    return BaseModelError(
        f"The file of {model}, {path}, is not on this machine as the user {our_user()} sees it: "
        f"{where}",
        "Run the trainer where that file is (in a container: with Ollama's volume at the same "
        "path), or fetch the GGUF to this machine and use gguf:/absolute/path.gguf.",
    )
