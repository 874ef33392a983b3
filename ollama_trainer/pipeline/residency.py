"""Room for a training beside the models that an Ollama on this machine holds in memory.

Ollama keeps a model for minutes after its last answer, and a training may need what that takes.
Nothing happens while memory suffices, or where it would not suffice even without them. Otherwise
they stay, are asked to leave, or are waited for, as the setting `ollama_memory` says. Ollama lets
an answer that is being written end before its model goes (its sched.go, `expireRunner`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ollama_trainer.backends import Backend, FreeMemory, Recipe
from ollama_trainer.errors import MemoryHeld, OllamaUnreachable, PublishError
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.ollama import open_api
from ollama_trainer.ollama.host import resolve
from ollama_trainer.pipeline.memory import needed_bytes
from ollama_trainer.records import BaseGguf, RunSpec

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

log = logging.getLogger(__name__)

Mode = Literal["share", "unload", "wait"]
Action = Literal["train", "train anyway", "unload", "wait"]
Note = Callable[[str, Mapping[str, Any]], None]

#: How long models that were asked to leave may go on answering, in seconds.
_LEAVE_S = 60.0
#: How long memory may take to be free once its model is gone, in seconds.
_FREED_S = 5.0
_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What a training needs, and what stands in its way; all in bytes."""

    needed: int
    free: int
    #: Model in Ollama -> what it holds where the training would be.
    held: Mapping[str, int]

    @property
    def in_words(self) -> str:
        models = ", ".join(self.held) or "no model"
        return (
            f"the training needs about {_gigabytes(self.needed)}, {_gigabytes(self.free)} are free,"
            f" and Ollama holds {_gigabytes(sum(self.held.values()))} ({models})"
        )

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "needed_bytes": self.needed, "free_bytes": self.free, "ollama_bytes": dict(self.held)
        }  # fmt: skip


def decide(memory: Shortage, mode: Mode) -> Action:
    """What to do before a training. `train anyway`: memory may not suffice."""
    if memory.free >= memory.needed:
        return "train"
    # The estimate is rough, and half the batch may still fit: nobody is disturbed for nothing.
    would_help = memory.free + sum(memory.held.values()) >= memory.needed
    if mode == "share" or not would_help:
        return "train anyway"
    return mode


def make_room(spec: RunSpec, base: BaseGguf, recipe: Recipe, backend: Backend, note: Note) -> None:
    """Sees that the memory of the device that trains suffices, as far as Ollama holds it.

    Raises:
        MemoryHeld: Ollama holds it still; the run can be tried again later.
        BackendUnavailable: the backend's packages are not installed.
    """
    options = spec.training.model_copy(update={"batch_size": recipe.batch_size})
    needed = needed_bytes(read_gguf(base.gguf), options)
    make_room_for(
        needed, spec.ollama_host, spec.ollama_memory,
        lambda: backend.free_memory(spec.cache_dir), note,
    )  # fmt: skip


def make_room_for(
    needed: int, host: str, mode: Mode, measure: Callable[[], FreeMemory], note: Note
) -> None:
    """The same for so many bytes.

    Args:
        host: Ollama's address; one on another machine is left alone.
        measure: tells what is free now.

    Raises:
        MemoryHeld: as of `make_room`.
    """
    free = measure()
    if free.n_bytes >= needed:
        return
    try:
        endpoint = resolve(host)
        if endpoint.loopback:
            with open_api(endpoint) as api:
                _settle(api, mode, needed, measure, note)
    except OllamaUnreachable:
        # Where no Ollama runs, none holds anything.
        return
    except PublishError as error:
        note(f"Ollama cannot be asked what memory it holds: {error.cause}", {})


def _settle(
    api: OllamaApi, mode: Mode, needed: int, measure: Callable[[], FreeMemory], note: Note
) -> None:
    memory = _look(api, needed, measure())
    action = decide(memory, mode)
    if action == "wait":
        raise _held(memory, "ollama_memory = unload has them unloaded when they answer nobody")
    if action == "unload":
        note(f"models are unloaded from Ollama: {memory.in_words}", memory.figures)
        memory = _unload(api, memory, measure)
    if memory.free < memory.needed:
        note(f"memory may be short: {memory.in_words}", memory.figures)


def _unload(api: OllamaApi, memory: Shortage, measure: Callable[[], FreeMemory]) -> Shortage:
    """Has the models leave; returns what is free then.

    Raises:
        MemoryHeld: one is still answering, or came back, and memory is short because of it.
    """
    for model in memory.held:
        _ask_to_leave(api, model)
    end = time.monotonic() + _LEAVE_S
    while (now := _look(api, memory.needed, measure())).held:
        if now.free >= now.needed:
            return now
        if time.monotonic() > end:
            raise _held(now, "They were asked to leave, and somebody still uses them")
        time.sleep(_PAUSE_S)
    end = time.monotonic() + _FREED_S
    while now.free < now.needed and time.monotonic() < end:
        time.sleep(_PAUSE_S)
        now = _look(api, memory.needed, measure())
    return now


def _ask_to_leave(api: OllamaApi, model: str) -> None:
    try:
        api.unload(model)
    except OllamaUnreachable:
        raise
    except PublishError as error:
        # Its name may be gone while its weights are not; whether it leaves is seen anyway.
        log.info("%s", error)


def _look(api: OllamaApi, needed: int, free: FreeMemory) -> Shortage:
    held = {
        name: in_gpus if free.on_gpu else _in_memory(whole, in_gpus)
        for name, (whole, in_gpus) in api.held_bytes().items()
    }
    held = {name: n_bytes for name, n_bytes in held.items() if n_bytes > 0}
    return Shortage(needed=needed, free=free.n_bytes, held=held)


def _in_memory(whole: int, in_gpus: int) -> int:
    # A Mac's GPU has no memory of its own.
    return whole if sys.platform == "darwin" else whole - in_gpus


def _held(memory: Shortage, more: str) -> MemoryHeld:
    stop = " and ".join(f"`ollama stop {model}`" for model in memory.held)
    return MemoryHeld(
        f"Memory is short: {memory.in_words}",
        f"{more}; {stop} does it by hand, and with ollama_memory = share it is tried anyway.",
    )


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
