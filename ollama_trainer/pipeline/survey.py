"""Every model that Ollama has, as a base: what it is, and whether it can be one.

Headers are read, and nothing else: no file is copied, and no digest counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ollama_trainer.bases import ollama
from ollama_trainer.errors import BaseModelError, OllamaUnreachable, TrainerError
from ollama_trainer.gguf.provenance import made_here
from ollama_trainer.ollama import open_api
from ollama_trainer.ollama.host import Endpoint, resolve
from ollama_trainer.ollama.names import is_cloud
from ollama_trainer.ollama.rendering import STAND_IN
from ollama_trainer.pipeline.memory import needed_bytes, parameter_count
from ollama_trainer.pipeline.plan import check_trainable
from ollama_trainer.records import TrainingOptions
from ollama_trainer.reports import LocalBase

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

_MOST_NAMES = 12
_PICTURES = "it is trained on text; pictures and sound stay as they are"


def local_bases(
    ollama_host: str, prefix: str, options: TrainingOptions | None = None
) -> list[LocalBase]:
    """The models that Ollama lists, in the order of their names.

    Args:
        ollama_host: its address, in any form that OLLAMA_HOST may have.
        prefix: what the names of models begin with that this program made.
        options: of the training whose memory is estimated.

    Raises:
        OllamaUnreachable, PublishError: no Ollama answers, or not sensibly.
    """
    endpoint = resolve(ollama_host)
    with open_api(endpoint) as api:
        entries = sorted(api.tags(), key=lambda entry: str(entry.get("name")))
        entries = [one for one in entries if not str(one.get("name")).startswith(STAND_IN)]
        options = options or TrainingOptions()
        return [_judged(api, endpoint, entry, prefix, options) for entry in entries]


def _judged(
    api: OllamaApi,
    endpoint: Endpoint,
    entry: Mapping[str, Any],
    prefix: str,
    options: TrainingOptions,
) -> LocalBase:
    name, details = str(entry.get("name")), entry.get("details") or {}
    told: dict[str, Any] = {
        "name": name,
        "n_bytes": int(entry.get("size") or 0),
        "digest": str(entry.get("digest") or ""),
        "architecture": str(details.get("family") or ""),
        "quantization": str(details.get("quantization_level") or ""),
        "tuned": bool(prefix) and name.rpartition("/")[2].startswith(prefix),
    }
    try:
        told |= _looked_at(api, endpoint, name, options, is_remote=_is_remote(entry))
    except OllamaUnreachable:
        raise
    except TrainerError as error:
        return LocalBase(trainable=False, reason=error.cause, remedy=error.remedy, **told)
    return LocalBase(trainable=True, **told)


def _looked_at(
    api: OllamaApi, endpoint: Endpoint, name: str, options: TrainingOptions, *, is_remote: bool
) -> dict[str, Any]:
    """What is to be said of one that can be trained.

    Raises:
        TrainerError: it cannot.
    """
    if is_remote:
        # To ask what it is like may already leave this machine.
        raise BaseModelError(
            f"{name} runs elsewhere: there are no weights of it here",
            "Choose a base whose file lies on this machine.",
        )
    found = ollama.locate(api, endpoint, name)
    gguf = ollama.header_of(found)
    ollama.with_name(found, lambda: check_trainable(gguf))
    return {
        "architecture": gguf.architecture,
        "quantization": found.shown.quantization,
        "n_parameters": parameter_count(gguf),
        "needs_bytes": needed_bytes(gguf, options),
        "notes": (_PICTURES,) if len(found.shown.files) > 1 else (),
        **({"tuned": True} if made_here(gguf) else {}),
    }


def _is_remote(entry: Mapping[str, Any]) -> bool:
    name = str(entry.get("name"))
    return bool(entry.get("remote_host") or entry.get("remote_model")) or is_cloud(name)


def only_trainable(ollama_host: str, prefix: str) -> LocalBase:
    """The model that a run trains which names none: the only one that Ollama has.

    What this program made itself does not count: to tune it once more, it is named.

    Raises:
        OllamaUnreachable: no Ollama answers.
        BaseModelError: there is none, or more than one.
    """
    try:
        models = local_bases(ollama_host, prefix)
    except OllamaUnreachable as error:
        raise OllamaUnreachable(
            f"No base was chosen, and {error.cause}",
            f"{error.remedy} Or choose a base that needs no Ollama: smollm2 is built in.",
        ) from error
    chosen: dict[str, LocalBase] = {}
    for model in filter(_counts, models):
        # Two names of one model are one.
        chosen.setdefault(model.digest or model.name, model)
    if len(chosen) == 1:
        (one,) = chosen.values()
        return one
    if chosen:
        raise BaseModelError(
            f"No base was chosen, and Ollama has {len(chosen)} models that can be trained: "
            f"{_named([model.name for model in chosen.values()])}",
            _HOW_TO_CHOOSE,
        )
    raise BaseModelError(_none_at_all(models), f"{_HOW_TO_CHOOSE} smollm2 is built in.")


_HOW_TO_CHOOSE = (
    "Choose one: baseModel in the request, PUT /jobs/{jobId}, the setting base, or --base."
    " `ollama-trainer bases` lists them."
)


def _counts(model: LocalBase) -> bool:
    return model.trainable and not model.tuned


def _none_at_all(models: list[LocalBase]) -> str:
    others = [
        f"{model.name} ({'made by this program' if model.trainable else model.reason})"
        for model in models
    ]
    held = f": {_named(others)}" if others else ", since it has no model at all"
    return f"No base was chosen, and Ollama has none that can be trained{held}"


def _named(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
