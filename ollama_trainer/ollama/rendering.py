"""Prompts rendered by an Ollama itself, for bases with a Go template or a renderer of Ollama's own.

A stand-in is created with all that the tuned model will inherit and with next to no weights (see
stand_in.py), asked with `_debug_render_only`, and deleted at the end. The base is not loaded.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import OllamaUnreachable, PublishError
from ollama_trainer.ollama import open_api
from ollama_trainer.ollama.host import Endpoint
from ollama_trainer.ollama.messages import as_request
from ollama_trainer.ollama.shield import protect_chat_template
from ollama_trainer.ollama.stand_in import CONTEXT, USUAL, Marks, write_stand_in
from ollama_trainer.records import Message, OllamaModel

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

STAND_IN = "ollama-trainer-stand-in"
#: What a killed process left is deleted after so many seconds.
_FORGOTTEN_S = 24 * 3600
#: A prompt of one token is enough to see whether the server renders or answers.
_OPTIONS = {"num_ctx": CONTEXT, "num_batch": 32, "num_gpu": 0, "num_predict": 1}
_HELLO = ({"role": "user", "content": "Hello"},)
_TEXT = ("completion", "tools", "thinking", "insert")


class CannotRender(PublishError):
    """This Ollama does not render prompts, or not those of such a model."""


class Rendering:
    """An Ollama that renders. Made by `open_rendering`."""

    def __init__(self, api: OllamaApi, name: str) -> None:
        self._api, self._name = api, name
        self._known: dict[bytes, str] = {}

    def check(self) -> None:
        """Sees that it renders at all.

        Raises:
            CannotRender, PublishError, OllamaUnreachable: as of `render`.
        """
        self.render(_HELLO)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), think: bool | None = None
    ) -> str:
        """The prompt for a conversation; one that was asked before is not asked again.

        Args:
            messages: as the chat API has them.
            tools: as the chat API has them.
            think: None leaves it to Ollama.

        Raises:
            CannotRender: this Ollama answers instead.
            PublishError: the template refuses the conversation.
            OllamaUnreachable: no Ollama answers any more.
        """
        asked = as_request(messages, tools, think)
        key = hashlib.sha256(json.dumps(asked, sort_keys=False).encode()).digest()
        if key not in self._known:
            text = self._api.render(self._name, asked, _OPTIONS)
            if text is None:
                raise CannotRender(
                    "This Ollama does not tell what prompts it makes", "Update Ollama."
                )
            self._known[key] = text
        return self._known[key]


@contextmanager
def open_rendering(
    endpoint: Endpoint,
    model: OllamaModel,
    *,
    jinja: str,
    family: str,
    marks: Marks = USUAL,
) -> Iterator[Rendering]:
    """A stand-in for `model` in an Ollama.

    Args:
        endpoint: where the Ollama is.
        model: whose template, renderer, parser, system text and messages it has.
        jinja: the chat template of the model's GGUF, which decides, too, how Ollama renders; empty
            for none.
        family: the GGUF's architecture: for some of them Ollama changes conversations.
        marks: of the GGUF's vocabulary, where its chat template makes the prompts.

    Raises:
        CannotRender: this Ollama takes another template than the model's.
        PublishError: it refused.
        OllamaUnreachable: no Ollama answers.
    """
    with open_api(endpoint) as api:
        _delete_forgotten(api)
        name = f"{STAND_IN}:{int(time.time())}-{uuid.uuid4().hex[:12]}"
        try:
            _create(api, name, model, (jinja, marks), family)
            _check(api, name, model)
            yield Rendering(api, name)
        finally:
            with suppress(PublishError):
                api.unload(name)
            with suppress(PublishError):
                api.delete(name)


def _create(
    api: OllamaApi, name: str, model: OllamaModel, template: tuple[str, Marks], family: str
) -> None:
    jinja, marks = template
    with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        gguf = Path(folder) / "model.gguf"
        write_stand_in(gguf, protect_chat_template(jinja), marks)
        digest = f"sha256:{hashlib.sha256(gguf.read_bytes()).hexdigest()}"
        api.upload(gguf, digest, lambda *_: None)
    given: dict[str, Any] = {
        "template": model.template,
        "system": model.system,
        "messages": [dict(message) for message in model.messages],
        "renderer": model.renderer,
        "parser": model.parser,
    }
    body = {
        "model": name,
        "files": {"model.gguf": digest},
        "stream": True,
        "info": {"model_family": family},
        **{key: value for key, value in given.items() if value},
    }
    api.create(body, lambda *_: None)


def _check(api: OllamaApi, name: str, model: OllamaModel) -> None:
    shown = api.show(name)
    if shown is None:
        raise CannotRender("Ollama said success and does not have the model", "See Ollama's log.")
    if model.template and not model.renderer and shown.template != model.template:
        raise CannotRender(
            "This Ollama prefers the chat template of the GGUF to the one that the model was "
            "created with",
            "Create the base again without its TEMPLATE.",
        )
    wanted = set(model.capabilities or ()).intersection(_TEXT)
    missing = wanted.difference(shown.capabilities or wanted)
    if missing:
        raise CannotRender(
            f"A model created with all that {model.model} has lacks: {', '.join(sorted(missing))}",
            "Pull the base again with this version of Ollama.",
        )


def _delete_forgotten(api: OllamaApi) -> None:
    """Deletes the stand-ins of processes that were killed."""
    for listed in api.listed():
        model, _, tag = listed.partition(":")
        made = tag.partition("-")[0]
        if model == STAND_IN and made.isdecimal() and time.time() - int(made) > _FORGOTTEN_S:
            with suppress(PublishError):
                api.delete(listed)


def is_refusal(error: PublishError) -> bool:
    """Whether Ollama's template refused one conversation, and may take others."""
    return not isinstance(error, (CannotRender, OllamaUnreachable)) and not error.retryable
