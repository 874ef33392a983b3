"""The models in Ollama that this program made: versions, one for each run, and aliases of them.

Their own files tell (gguf/provenance.py), so that no database is needed, and none can be wrong. A
model is a version if its name is the one that its file says. A file's words alone are not enough:
whoever builds on a version (`FROM` in a Modelfile) or copies it has them, too, and that model is
theirs. An alias is the name with the tag `latest` beside its version, as long as both have one
manifest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ollama_trainer.gguf.provenance import Provenance, parent_named_by, told_by
from ollama_trainer.names import alias_of
from ollama_trainer.ollama.names import full_name, is_cloud
from ollama_trainer.ollama.shown import blob_digest, read_modelfile

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

#: How long a model may take to leave Ollama's memory, in seconds: no answer is cut off.
UNLOAD_S = 10.0
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A name in Ollama, and what stands behind it."""

    #: As Ollama writes it.
    name: str
    #: Of its manifest, lower-case hex: the same for two names of one model.
    digest: str
    #: Of all that Ollama keeps for it.
    n_bytes: int
    #: When it got this name.
    named_at: datetime
    #: Digest of its weights, lower-case hex; empty where nobody knows.
    weights: str = ""
    #: What its file says; None where this program did not make that.
    told: Provenance | None = None
    #: What its file calls its base.
    parent: str = ""

    @property
    def is_version(self) -> bool:
        return self.told is not None and self.told.model == full_name(self.name)


def look(api: OllamaApi) -> list[Held]:
    """Every name in Ollama, but those of models that run elsewhere.

    Raises:
        OllamaUnreachable, PublishError: as of `OllamaApi`.
    """
    found = (_looked_at(api, entry) for entry in api.tags() if not _is_remote(entry))
    return [held for held in found if held is not None]


def held_as(api: OllamaApi, name: str) -> Held | None:
    """What stands behind one name, in any case and with or without its tag; None for nothing."""
    wanted = full_name(name)
    for entry in api.tags():
        if full_name(str(entry.get("name"))) == wanted and not _is_remote(entry):
            return _looked_at(api, entry)
    return None


def version_behind(api: OllamaApi, alias: Held) -> Held | None:
    """The version that a name is the alias of; None where it is no alias."""
    if alias.told is None or alias.told.model is None:
        return None
    version = held_as(api, alias.told.model)
    return version if version is not None and is_alias(alias, version) else None


def is_alias(held: Held, version: Held) -> bool:
    """Whether a name is the alias of that version."""
    name = full_name(version.name)
    is_beside = full_name(held.name) == alias_of(name) != name
    return version.is_version and is_beside and held.digest == version.digest


def unload(api: OllamaApi, held: Held, most_s: float = UNLOAD_S) -> bool:
    """Frees the memory that a model takes; an answer that it is giving comes to its end.

    Returns:
        Whether it is out of memory.
    """
    if held.digest not in api.loaded_digests():
        return True
    api.unload(held.name)
    end = time.monotonic() + most_s
    while held.digest in api.loaded_digests():
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE_S)
    return True


def _looked_at(api: OllamaApi, entry: Mapping[str, Any]) -> Held | None:
    name = str(entry.get("name"))
    shown = api.described(name)
    if shown is None:  # somebody has just deleted it
        return None
    info = shown.get("model_info") or {}
    return Held(
        name=name,
        digest=str(entry.get("digest") or ""),
        n_bytes=int(entry.get("size") or 0),
        named_at=_time(str(entry.get("modified_at"))),
        weights=_weights(shown),
        told=told_by(info),
        parent=parent_named_by(info),
    )


def _weights(shown: Mapping[str, Any]) -> str:
    """Ollama calls files by their digests, and tells where they lie."""
    for command, value in read_modelfile(str(shown.get("modelfile") or "")):
        if command == "FROM" and (digest := blob_digest(value)):
            return digest
    return ""


def _time(text: str) -> datetime:
    """A time as Go writes it; what cannot be read is taken for very old."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC)


def _is_remote(entry: Mapping[str, Any]) -> bool:
    name = str(entry.get("name"))
    return bool(entry.get("remote_host") or entry.get("remote_model")) or is_cloud(name)
