"""GGUF files that say that a run made them, and publishing them, for tests of names in Ollama."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ollama_trainer import publishers
from ollama_trainer.gguf.provenance import in_a_line
from ollama_trainer.modelfile import modelfile_for
from ollama_trainer.names import model_name
from ollama_trainer.publishers import Publisher, PublisherOptions
from ollama_trainer.testing import tiny_gguf
from tests.servable import write_servable

from .conftest import Server

MODELFILE = modelfile_for(stops=["<|im_end|>"], num_ctx=512, num_predict=4)
_OWN = "general.ollama_trainer."


def written(path: Path, source: Path, told: Mapping[str, str], *, unsorted: bool = False) -> Path:
    """A copy of a GGUF that tells more of itself.

    Args:
        told: key below `general.ollama_trainer`, with `__` for a dot -> value.
        unsorted: whether its keys are in an order in which Ollama would not write them.
    """
    info = tiny_gguf.read(source)
    for key, value in told.items():
        info = tiny_gguf.with_value(info, _OWN + key.replace("__", "."), value)
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny_gguf.rewrite_sorted(source, info, path)
    if unsorted:
        data = path.read_bytes()
        entries = [info.entries[key] for key in sorted(info.entries)]
        ordered, turned = b"".join(entries), b"".join(reversed(entries))
        assert data.count(ordered) == 1
        path.write_bytes(data.replace(ordered, turned))
    return path


class Runs:
    """Runs that are finished, each with a model of its own.

    Args:
        folder: where their files lie.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        #: A model of some kilobytes that every kind of server takes, and that nobody made.
        self.source = write_servable(folder / "source.gguf", template=server.files.jinja)
        #: What the last publishing reported.
        self.notes: list[str] = []

    def name(self, job: str, run: str) -> str:
        return model_name(self.server.prefix, job, run)

    def gguf(self, job: str, run: str, **told: str) -> Path:
        """The file of a run's model; of the same one each time."""
        own = {"version": "1", "run": run, "job": in_a_line(job), "model": self.name(job, run)}
        path = self.folder / run / "model.gguf"
        return path if path.exists() else written(path, self.source, own | told)

    def publish(self, job: str, run: str, **told: str) -> str:
        self.notes = []
        ref = self.publisher().publish(
            self.gguf(job, run, **told),
            MODELFILE,
            self.name(job, run),
            lambda _, note: self.notes.append(note),
        )
        return ref.ref

    def publish_foreign(self, name: str) -> str:
        """Publishes a model that says nothing of any run."""
        path = self.folder / "foreign" / "model.gguf"
        path = path if path.exists() else written(path, self.source, {})
        return self.publisher().publish(path, MODELFILE, name, lambda *_: None).ref

    def publisher(self) -> Publisher:
        options = PublisherOptions(ollama_host=self.server.url, num_thread=2)
        return publishers.get("ollama", options)

    def digests(self) -> dict[str, str]:
        """Name -> manifest, of this test's models."""
        models = self.server.ask("GET", "/api/tags").json()["models"]
        mine = self.server.names()
        return {model["name"]: model["digest"] for model in models if model["name"] in mine}

    def load(self, name: str) -> None:
        body = {"model": name, "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}
        self.server.ask("POST", "/api/generate", body).raise_for_status()

    def in_memory(self) -> set[str]:
        """Manifests by which models are in memory."""
        return {m["digest"] for m in self.server.ask("GET", "/api/ps").json()["models"]}
