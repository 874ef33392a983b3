"""What an attempt finds done by those before it, and leaves done for those after it.

    stages/snapshot.json   dataset.jsonl (the server's)
    stages/train.json      adapter/, statistics/
    stages/export.json     model.gguf, of one type of weights
    stages/modelfile.json  model.gguf and Modelfile, found good
    stages/publish.json    that the model is where it was to go

Each is a manifest (manifests.py), written after its files. Stages that take seconds, finding the
base and reading the data set, are simply made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ollama_trainer import __version__
from ollama_trainer.errors import DatasetError
from ollama_trainer.manifests import file_sha256, key_of, read_manifest, write_manifest
from ollama_trainer.records import RunSpec
from ollama_trainer.workspace import RunDirectory

#: Raised when files of a stage change in form, so that older ones are made again.
_LAYOUT = 1
_PROGRAMS = ("torch", "transformers", "trl", "peft", "unsloth", "llama-cpp-python")
#: Settings that say where a model goes and how often work is saved, not what it is.
_NOT_OF_THE_MODEL = {
    "publisher", "ollama_host", "name_prefix", "cache_dir", "cache_gigabytes", "checkpoint_every_s",
    "ollama_memory",
}  # fmt: skip


class Stages:
    """The stages of one run that are done.

    Args:
        attempt: who writes.
        confirm: called before anything is said to be done; raises when somebody else took over.
        saved: called with what has been saved, in words.
    """

    def __init__(
        self,
        directory: RunDirectory,
        attempt: int,
        confirm: Callable[[], None],
        saved: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._attempt = attempt
        self._confirm = confirm
        self._saved = saved

    def load(self, stage: str, key: str | None) -> dict[str, Any] | None:
        """What a stage told when it was done for this key; None when it is to be made.

        Args:
            key: None takes what there is, whatever it was made for.
        """
        manifest = read_manifest(self._directory.manifest(stage), key, self._directory.path)
        return manifest.data if manifest is not None else None

    def save(self, stage: str, key: str, outputs: Iterable[Path], data: Mapping[str, Any]) -> None:
        """Says that a stage is done.

        Raises:
            LeaseLost: somebody else has taken over.
        """
        self._confirm()
        write_manifest(
            self._directory.manifest(stage),
            key,
            self._directory.path,
            outputs,
            attempt=self._attempt,
            versions=_versions(),
            data=data,
        )
        self._saved(stage)


def run_key(directory: RunDirectory, spec: RunSpec, halvings: int) -> str:
    """Of everything that a run's model follows from, but for its base's content.

    Raises:
        DatasetError: the snapshot cannot be read.
    """
    said = spec.model_dump(mode="json", exclude=_NOT_OF_THE_MODEL)
    try:
        dataset = file_sha256(directory.dataset)
    except OSError as error:
        raise DatasetError(
            f"The run's copy of its data set, {directory.dataset}, cannot be read: "
            f"{error.strerror}",
            "Train again with a fresh runId.",
        ) from error
    return key_of(_LAYOUT, __version__, said, dataset, halvings)


def check_snapshot(directory: RunDirectory) -> None:
    """Raises:
    DatasetError: the copy of the data set is not what was copied.
    """
    manifest = directory.manifest("snapshot")
    if manifest.exists() and read_manifest(manifest, None, directory.path) is None:
        raise DatasetError(
            f"The run's copy of its data set, {directory.dataset}, is not what was copied",
            "Look for what changed it (a failing disk?), then train again with a fresh runId.",
        )


def publishing_step(directory: RunDirectory) -> str | None:
    """How far publishing got at most: "trial" or "name"; None when nothing was left anywhere."""
    try:
        step: str = json.loads(directory.publishing.read_bytes())["step"]
    except FileNotFoundError:
        return None
    return step


def _versions() -> dict[str, str]:
    found = {"ollama-trainer": __version__}
    for name in _PROGRAMS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
