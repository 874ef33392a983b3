"""Leaves the model in its folder, with the line to type for Ollama."""

from __future__ import annotations

import shlex
from pathlib import Path

from ollama_trainer.errors import PublishError
from ollama_trainer.modelfile import Modelfile, check_model_name
from ollama_trainer.publishers import PublisherOptions, Report
from ollama_trainer.records import PublishedModel


class FolderPublisher:
    """The reference of the model is the GGUF's absolute path."""

    def publish(
        self, gguf: Path, modelfile: Modelfile, model_name: str, report: Report
    ) -> PublishedModel:
        """See `Publisher.publish`.

        Raises:
            PublishError: the GGUF or the Modelfile beside it is missing, or they do not fit.
        """
        check_model_name(model_name)
        path = gguf.absolute()
        text = path.with_name("Modelfile")
        for file in (path, text):
            if not file.is_file():
                raise PublishError(f"there is no file {file}", "Let the run export it again.")
        if path.name != modelfile.gguf:
            raise PublishError(
                f"the Modelfile is for {modelfile.gguf}, not for {path.name}",
                "Let the run export both again.",
            )
        # What is missing of a licence changes no answer.
        missing = [why for why in modelfile.unsayable if not why.startswith("LICENSE")]
        if missing:
            raise PublishError(
                f"the Modelfile cannot say all that the base has in Ollama ({'; '.join(missing)})",
                "Use the publisher 'ollama', which asks Ollama without a Modelfile.",
            )
        report(1.0, f"left in {path.parent}")
        create = f"ollama create {shlex.quote(model_name)} -f {shlex.quote(str(text))}"
        return PublishedModel(
            ref=str(path), next_command=f"{create} && ollama run {shlex.quote(model_name)}"
        )

    def withdraw(self, model_name: str, *, named: bool) -> None:
        """See `Publisher.withdraw`. The model never went anywhere."""


def create(options: PublisherOptions) -> FolderPublisher:  # noqa: ARG001
    """The folder publisher needs no options."""
    return FolderPublisher()
