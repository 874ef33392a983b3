"""What a finished model was made of, as metadata entries: who finds the file can tell.

The GGUF specification has keys for a model's parents, and none for digests, adapters, runs and
rounding: those stand below `general.ollama_trainer`. There is no time of day among them, so that
the same base, adapter and seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_trainer import __version__
from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.adapter import WEIGHTS_NAME
from ollama_trainer.gguf.file import Entry, GgufFile, string_entry, uint32_entry
from ollama_trainer.manifests import file_sha256

_OWN = "general.ollama_trainer."
_PARENTS = "general.base_model."
#: What the specification has for a model and, in the same words, for its parents.
_OF_A_PARENT = ("name", "author", "version", "organization", "url", "doi", "uuid", "repo_url")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a model was made of. What is None is not known, and left out."""

    #: As `bases.digests.digest_of` and `adapter_digest` give them: SHA-256, lower-case hex.
    base_digest: str | None = None
    adapter_digest: str | None = None
    run_id: str | None = None
    job_id: str | None = None
    #: The name that the model gets in Ollama, in full and in lower case.
    model: str | None = None
    #: How weights came onto the grid, `compensated` or `stochastic`, and the seed of its chance.
    rounding: str | None = None
    seed: int | None = None
    tool_version: str = __version__


def with_provenance(metadata: Mapping[str, Entry], provenance: Provenance) -> dict[str, Entry]:
    """The entries of a base, followed by those that say what became of it.

    The base's own provenance, if it was made by this program, makes way. Its parents' names stay as
    they are; if it names none, it becomes the parent.
    """
    entries = {key: entry for key, entry in metadata.items() if not key.startswith(_OWN)}
    if not any(key.startswith(_PARENTS) for key in entries):
        entries |= _as_parent(metadata)
    told = {
        "version": provenance.tool_version,
        "base.digest": _prefixed(provenance.base_digest),
        "adapter.digest": _prefixed(provenance.adapter_digest),
        "run": provenance.run_id,
        "job": None if provenance.job_id is None else in_a_line(provenance.job_id),
        "model": provenance.model,
        "rounding": provenance.rounding,
    }
    for name, value in told.items():
        if value is not None:
            entries[_OWN + name] = string_entry(_OWN + name, value)
    if provenance.seed is not None:
        entries[f"{_OWN}seed"] = uint32_entry(f"{_OWN}seed", provenance.seed)
    return entries


def made_here(gguf: GgufFile) -> bool:
    """Whether this program made the file."""
    return any(key.startswith(_OWN) for key in gguf.metadata)


def told_by(metadata: Mapping[str, Any]) -> Provenance | None:
    """What a file says of itself; None where this program did not make it.

    Args:
        metadata: key -> value, as a GGUF or Ollama's /api/show has them; what is no text or number
            there is taken for missing.
    """
    own = {k.removeprefix(_OWN): v for k, v in metadata.items() if k.startswith(_OWN)}
    if not own:
        return None
    texts = {key: value for key, value in own.items() if isinstance(value, str)}
    seed = own.get("seed")
    return Provenance(
        base_digest=_bare(texts.get("base.digest")),
        adapter_digest=_bare(texts.get("adapter.digest")),
        run_id=texts.get("run"),
        job_id=texts.get("job"),
        model=texts.get("model"),
        rounding=texts.get("rounding"),
        seed=seed if isinstance(seed, int) else None,
        tool_version=texts.get("version", ""),
    )


def in_a_line(text: str) -> str:
    """A text of a caller's as files and terminals take it: what does not print is escaped, and so
    are backslashes, so that two texts stay two.

    Some versions of Ollama copy files by a program that ends texts at a zero byte.
    """
    return "".join(
        char if char.isprintable() and char != "\\" else repr(char)[1:-1] for char in text
    )


def parent_named_by(metadata: Mapping[str, Any]) -> str:
    """The first parent's name, if it has one."""
    name = metadata.get(f"{_PARENTS}0.name")
    return name if isinstance(name, str) else ""


def _as_parent(base: Mapping[str, Entry]) -> dict[str, Entry]:
    """What a model says of itself, in the words in which its children say it of their parent."""
    said = {
        name: base[f"general.{name}"].value for name in _OF_A_PARENT if f"general.{name}" in base
    }
    told = {f"{_PARENTS}0.{name}": value for name, value in said.items() if isinstance(value, str)}
    if not told:
        return {}
    count = f"{_PARENTS}count"
    return {count: uint32_entry(count, 1)} | {
        key: string_entry(key, value) for key, value in told.items()
    }


def _prefixed(digest: str | None) -> str | None:
    return None if digest is None else f"sha256:{digest}"


def _bare(digest: str | None) -> str | None:
    return None if digest is None else digest.removeprefix("sha256:")


def adapter_digest(directory: Path) -> str:
    """SHA-256 of an adapter's weights file, as lower-case hex.

    Its configuration is left out: it names the directory in which its base happened to lie.

    Raises:
        ExportError: the file cannot be read.
    """
    path = directory / WEIGHTS_NAME
    try:
        return file_sha256(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
