"""The job's alias in Ollama: `<model>:latest` stands for the version that was published last.

It is moved by a copy, of a manifest, once the version has its name. What the alias stood for is
unloaded before, since Ollama would keep it in memory with no name left that frees it. Whoever put
another model there keeps it. A run is complete with its version's name: an alias that could not be
moved is told, and fails nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ollama_trainer.errors import PublishError
from ollama_trainer.names import alias_of
from ollama_trainer.ollama.versions import (
    Held,
    held_as,
    is_alias,
    look,
    unload,
    version_behind,
)
from ollama_trainer.publishers import NOT_DONE, Report

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

#: Of a publishing, when its last step begins.
_NEARLY = 0.99


def move(api: OllamaApi, name: str, report: Report) -> None:
    """Makes the alias of a version stand for it; what keeps it from that is reported.

    Args:
        name: of the version, as Ollama lists it.
    """
    alias = alias_of(name)
    if alias == name:
        return
    try:
        why_not = _move(api, name, alias, report)
    except PublishError as error:
        why_not = str(error)
    if why_not is not None:
        report(_NEARLY, f"{NOT_DONE}the alias {alias} was not moved to {name}: {why_not}")


def _move(api: OllamaApi, name: str, alias: str, report: Report) -> str | None:
    """Returns why the alias stays where it is, if it does."""
    version = held_as(api, name)
    if version is None or not version.is_version:
        return "its file does not say that it was made for this name, as those of runs do"
    before = held_as(api, alias)
    if before is not None and before.digest == version.digest:
        return None
    earlier: Held | None = None
    if before is not None:
        earlier = version_behind(api, before)
        if earlier is None:
            return (
                "it holds a model that is no version made by this program, or one whose own name "
                f"is gone. Remove it if nobody needs it (ollama rm {alias}), then publish again"
            )
        if not unload(api, before):
            report(_NEARLY, f"{earlier.name} leaves memory when its answer is given")
    _copy(api, name, alias, version.digest)
    if earlier is not None:
        # A call by the alias may have loaded it once more just before.
        unload(api, earlier, 0.0)
    report(_NEARLY, f"{alias} stands for it")
    return None


def take_back(api: OllamaApi, name: str) -> None:
    """Makes the alias of a version that is about to be deleted stand for the newest other one of
    the job; where there is none, it goes.

    Args:
        name: of the version.

    Raises:
        OllamaUnreachable, PublishError: the alias may still stand for it.
    """
    names = look(api)
    doomed = [held for held in names if held.name.lower() == name]
    aliases = [held for held in names if any(is_alias(held, version) for version in doomed)]
    for alias in aliases:
        others = [held for held in names if _is_beside(held, doomed[0])]
        unload(api, alias)
        if others:
            newest = max(others, key=lambda held: held.named_at)
            _copy(api, newest.name, alias.name, newest.digest)
        else:
            api.delete(alias.name)


def _is_beside(held: Held, version: Held) -> bool:
    """Whether it is another version of the same job."""
    same = alias_of(held.name.lower()) == alias_of(version.name.lower())
    return held.is_version and same and held.digest != version.digest


def _copy(api: OllamaApi, source: str, alias: str, digest: str) -> None:
    """Raises:
    PublishError: the alias does not stand for the model with that digest.
    """
    try:
        api.copy(source, alias)
    except PublishError:
        # The answer may have been lost, not the copy.
        if api.listed().get(alias.lower(), ("", ""))[1] != digest:
            raise
        return
    if api.listed().get(alias.lower(), ("", ""))[1] != digest:
        raise PublishError(
            f"Ollama does not list {alias} as {source} after it made the copy", "See Ollama's log."
        )
