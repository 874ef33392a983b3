"""A model that is finished and judged, and all that its publisher has to know of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from ollama_trainer.modelfile import Modelfile, not_inherited
from ollama_trainer.pipeline.dataset import PreparedData
from ollama_trainer.publishers import PublisherOptions
from ollama_trainer.records import BaseGguf, ExpectedPrompt, Fidelity, GoldenChat


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedModel:
    """What is published: model.gguf in the run directory, and how to ask it."""

    modelfile: Modelfile
    question: str
    fidelity: Fidelity
    #: What it must be asked with.
    prompts: tuple[ExpectedPrompt, ...]
    #: What its base can do in Ollama; empty where nobody knows.
    capabilities: tuple[str, ...]
    #: What it is tried with where it is served.
    golden: tuple[GoldenChat, ...]
    #: Its base's name in Ollama, and the SHA-256 of its base's file; empty where it is not there.
    base_model: str
    base_digest: str

    @classmethod
    def of(
        cls,
        base: BaseGguf,
        data: PreparedData,
        modelfile: Modelfile,
        found: Fidelity,
        golden: tuple[GoldenChat, ...],
    ) -> Self:
        """The model that a run has just made."""
        capabilities = base.ollama.capabilities if base.ollama is not None else None
        return cls(
            modelfile=modelfile,
            question=data.question,
            fidelity=found,
            prompts=data.prompts,
            capabilities=capabilities or (),
            golden=golden,
            base_model=base.ollama.model if base.ollama is not None else "",
            base_digest=base.digest if base.ollama is not None else "",
        )

    @property
    def fields(self) -> dict[str, Any]:
        """All of it as JSON can say it; `from_fields` reads it back."""
        return {
            "modelfile": self.modelfile.fields,
            "question": self.question,
            "fidelity": self.fidelity.model_dump(mode="json"),
            "prompts": [prompt.model_dump(mode="json") for prompt in self.prompts],
            "capabilities": list(self.capabilities),
            "golden": [chat.model_dump(mode="json") for chat in self.golden],
            "base_model": self.base_model,
            "base_digest": self.base_digest,
        }

    @classmethod
    def from_fields(cls, told: Mapping[str, Any]) -> Self:
        """The inverse of `fields`; what runs of earlier versions did not know is empty."""
        return cls(
            modelfile=Modelfile.from_fields(told["modelfile"]),
            question=told["question"],
            fidelity=Fidelity.model_validate_json(json.dumps(told["fidelity"])),
            prompts=tuple(map(ExpectedPrompt.model_validate, told.get("prompts", ()))),
            capabilities=tuple(told.get("capabilities", ())),
            golden=tuple(map(GoldenChat.model_validate, told.get("golden", ()))),
            base_model=told.get("base_model", ""),
            base_digest=told.get("base_digest", ""),
        )


def left_out(base: BaseGguf, modelfile: Modelfile) -> dict[str, tuple[str, ...]]:
    """What a tuned model does not get of its base, and what its Modelfile cannot say, with whys."""
    found = {"parameters": not_inherited(base.ollama), "Modelfile": modelfile.unsayable}
    return {what: whys for what, whys in found.items() if whys}


def publisher_options(
    model: FinishedModel | None, ollama_host: str, attempt: int, confirm: Callable[[str], None]
) -> PublisherOptions:
    """What publishers may need to know of a model, or where there is none yet.

    Args:
        ollama_host: of the run.
        attempt, confirm: as of `PublisherOptions`.
    """
    options = PublisherOptions(
        ollama_host=ollama_host, num_thread=os.cpu_count(), attempt=attempt, confirm=confirm
    )
    if model is None:
        return options
    return replace(
        options,
        question=model.question,
        prompts=model.prompts,
        capabilities=model.capabilities,
        golden=model.golden,
        base_model=model.base_model,
        base_digest=model.base_digest,
    )
