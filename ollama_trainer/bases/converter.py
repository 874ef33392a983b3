"""llama.cpp's own converter, for models that come as Hugging Face directories.

It is no package; the source archive of llama-cpp-python carries it, and the one of the installed
version belongs to the llama.cpp that reads the result. `python -m ollama_trainer.bases.converter`
puts it into this environment: pip fetches the archive that is pinned here by hash, from whatever
index it is set to. Nothing is ever fetched while a run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path, PurePosixPath

from ollama_trainer.errors import BackendUnavailable, BaseModelError, TrainerError
from ollama_trainer.workspace import atomic_directory, atomic_path

#: Version of llama-cpp-python -> SHA-256 of its source archive.
ARCHIVES = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
INSTALL_COMMAND = "python -m ollama_trainer.bases.converter"
_SCRIPT = "convert_hf_to_gguf.py"
#: What is taken of the archive's folder vendor/llama.cpp.
_PARTS = (_SCRIPT, "LICENSE", "conversion", "gguf-py/gguf")
#: Lines of the converter's messages that an error quotes.
_QUOTED_LINES = 8


def converter() -> Path:
    """The converter's script.

    Raises:
        BackendUnavailable: it is not installed.
    """
    script = _home() / _SCRIPT
    if not script.is_file():
        raise BackendUnavailable(
            f"llama.cpp's converter ({script}) is not installed",
            f"Install it once with `{INSTALL_COMMAND}`.",
        )
    return script


def convert(model: Path, out: Path, kind: str = "bf16", title: str = "") -> None:
    """Converts a Hugging Face directory to a GGUF of floats, whole or not at all.

    Args:
        model: directory with configuration, tokenizer and safetensors.
        out: the final name.
        kind: `f32`, `f16` or `bf16`: of all weights but the norms'.
        title: the model's name in the file; empty: that of its directory.

    Raises:
        BackendUnavailable: the converter is not installed.
        BaseModelError: the directory brings code of its own, or cannot be converted.
    """
    check_plain(model)
    script = converter()
    with atomic_path(out) as partial:
        command = [
            sys.executable, str(script), str(model), "--outfile", str(partial), "--outtype", kind,
            *(["--model-name", title] if title else []),
        ]  # fmt: skip
        # The converter asks the hub for what a directory lacks.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode != 0 or not partial.is_file():
            said = "\n".join(done.stdout.strip().splitlines()[-_QUOTED_LINES:])
            raise BaseModelError(
                f"llama.cpp's converter cannot convert {model}:\n{said}", "Choose another base."
            )


def check_plain(model: Path) -> None:
    """Refuses directories that bring code: the converter would run it.

    Raises:
        BaseModelError: it does, or its weights could run some.
    """
    for name in ("config.json", "tokenizer_config.json"):
        try:
            content = json.loads((model / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            content = {}
        except (OSError, ValueError) as error:
            raise BaseModelError(f"{model / name} cannot be read: {error}") from error
        if not isinstance(content, dict) or "auto_map" in content:
            raise BaseModelError(
                f"{model / name} asks for code that comes with the model, which is never run",
                "Choose a base that transformers knows by itself.",
            )
    if not any(model.glob("*.safetensors")):
        raise BaseModelError(
            f"{model} holds no safetensors", "Other forms of weights can run code: convert them."
        )


def install() -> Path:
    """Fetches the converter that belongs to the installed llama-cpp-python.

    Raises:
        BackendUnavailable: no archive of this version is known, or pip cannot fetch it.
    """
    home, version = _home(), metadata.version("llama-cpp-python")
    if (home / _SCRIPT).is_file():
        return home
    if version not in ARCHIVES:
        raise BackendUnavailable(
            f"No converter is known for llama-cpp-python {version}",
            f"Install llama-cpp-python {' or '.join(ARCHIVES)}.",
        )
    with tempfile.TemporaryDirectory() as scratch, atomic_directory(home) as partial:
        _unpack(_fetch(version, Path(scratch)), partial)
    return home


def _home() -> Path:
    version = metadata.version("llama-cpp-python")
    return Path(sys.prefix, "share", "ollama-trainer", f"llama.cpp-{version}")


def _fetch(version: str, directory: Path) -> Path:
    wanted = directory / "wanted.txt"
    wanted.write_text(f"llama-cpp-python=={version} --hash=sha256:{ARCHIVES[version]}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--require-hashes", "--no-deps", "--no-binary", ":all:",
        "--dest", str(directory), "--requirement", str(wanted),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackendUnavailable(
            f"pip cannot fetch the source archive of llama-cpp-python {version}:"
            f"\n{done.stderr.strip()}",
            "Check that pip reaches its index.",
        )
    return next(directory.glob("*.tar.gz"))


def _unpack(archive: Path, home: Path) -> None:
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            # llama_cpp_python-0.3.36/vendor/llama.cpp/...
            inner = PurePosixPath(*path.parts[3:])
            wanted = any(inner.is_relative_to(part) for part in _PARTS)
            if path.parts[1:3] != ("vendor", "llama.cpp") or not wanted or not member.isfile():
                continue
            source, target = members.extractfile(member), home / inner
            if source is None or ".." in inner.parts:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


if __name__ == "__main__":
    try:
        print(install())  # noqa: T201
    except TrainerError as failure:
        sys.exit(f"error: {failure}")
