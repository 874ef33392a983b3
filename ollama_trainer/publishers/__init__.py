"""Where a finished model goes. One file for each way of publishing.

A module of this package whose name does not begin with an underscore is a publisher: it defines
`create(options: PublisherOptions) -> Publisher`, and its name is what the setting says.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from ollama_trainer.errors import PublishError
from ollama_trainer.modelfile import Modelfile
from ollama_trainer.records import ExpectedPrompt, GoldenChat, PublishedModel

#: What a publisher's report begins with where something could not be checked.
NOT_CHECKED = "not checked: "
#: And where something beside the model itself could not be done.
NOT_DONE = "not done: "
#: Called with the fraction done, 0 to 1, and what is being done.
Report = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherOptions:
    """What publishers may need to know; each takes what concerns it."""

    #: Ollama's address in any form that OLLAMA_HOST may have; empty for the default.
    ollama_host: str = ""
    #: What the published model is asked, to see that it answers.
    question: str = "Hello!"
    #: Threads for the trial answer of an Ollama on this machine; None leaves the choice to it.
    num_thread: int | None = None
    #: Tells the names for trial of a model's attempts apart.
    attempt: int = 1
    #: Called with "trial" before anything is left behind, and with "name" before the model gets its
    #: name. What it raises ends the publishing.
    confirm: Callable[[str], None] = lambda _step: None
    #: Conversations with the prompts that the model was trained to be asked with.
    prompts: tuple[ExpectedPrompt, ...] = ()
    #: What the model's base can do, in Ollama's words.
    capabilities: tuple[str, ...] = ()
    #: Chats whose answers are known.
    golden: tuple[GoldenChat, ...] = ()
    #: Its base's name in Ollama, and the SHA-256 of its base's file; empty where it is not there.
    base_model: str = ""
    base_digest: str = ""


class Publisher(Protocol):
    """A way of publishing."""

    def publish(
        self, gguf: Path, modelfile: Modelfile, model_name: str, report: Report
    ) -> PublishedModel:
        """Publishes one finished model.

        Args:
            gguf: the finished file, named as the Modelfile says; its Modelfile lies beside it.
            model_name: what to call the model, as `names.model_name` makes it.

        Raises:
            PublishError: nothing was left under `model_name`; the GGUF is untouched.
        """

    def withdraw(self, model_name: str, *, named: bool) -> None:
        """Takes back what publishing left; nothing happens where nothing is left.

        Args:
            named: the model may have got its name, which is then this trainer's to remove.

        Raises:
            PublishError: it may still be there.
        """


def names() -> tuple[str, ...]:
    """The publishers that there are, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def get(name: str, options: PublisherOptions) -> Publisher:
    """The publisher of that name.

    Raises:
        PublishError: no such publisher, a package it needs is missing, or its options are wrong.
    """
    if name not in names():
        raise PublishError(
            f"there is no publisher {name!r}", f"Choose one of: {', '.join(names())}."
        )
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise PublishError(
            f"the publisher {name!r} cannot be used: {error}",
            "Install what it needs: pip install 'ollama-trainer[train]'.",
        ) from error
    create = cast(Callable[[PublisherOptions], Publisher], module.create)
    return create(options)
