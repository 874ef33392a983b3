"""Talking to an Ollama: for the bases that it holds, and for what is published into it.

host.py        OLLAMA_HOST, read as Ollama reads it
names.py       the names of models
access.py      its key and certificate, and what a proxy before it refuses
api.py         the calls, with limits and remedies; needs the packages httpx and ollama
shown.py       what /api/show says of a model, read
messages.py    conversations and tools as Ollama hands them to templates
rendering.py   prompts rendered by an Ollama
stand_in.py    the model of some kilobytes that is asked for them
shield.py      keeps a chat template from being replaced
versions.py    the models that this program made, told by their files, and their aliases
renderers.py   renderers that Ollama chooses by a model's name, called by their own
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ollama_trainer.errors import PublishError
from ollama_trainer.ollama.host import Endpoint

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import Limits, OllamaApi


def open_api(endpoint: Endpoint, limits: Limits | None = None) -> OllamaApi:
    """A connection to that Ollama, to be used as a context manager.

    Imported late: `ollama` reads OLLAMA_HOST while it is imported, and stumbles over a bad one.

    Raises:
        PublishError: the packages that it needs are missing, or OLLAMA_HOST is no address.
    """
    try:
        from ollama_trainer.ollama import api
    except ImportError as error:
        raise PublishError(
            f"Ollama cannot be talked to: {error}",
            "Install what it needs: pip install 'ollama-trainer[train]'.",
        ) from error
    except ValueError as error:
        raise PublishError(
            f"the environment variable OLLAMA_HOST is no address: {error}",
            "Write it as host, host:port or http(s)://host:port.",
        ) from error
    return api.OllamaApi(endpoint, limits or api.Limits())
