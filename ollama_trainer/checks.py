"""What `ollama-trainer doctor` looks at, each with what helps where it is not as it should be."""

from __future__ import annotations

import csv
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from ollama_trainer.bases import GGUF_PREFIX, HF_PREFIX, OLLAMA_PREFIX, builtin, ollama
from ollama_trainer.bases.converter import INSTALL_COMMAND, converter
from ollama_trainer.errors import TrainerError
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.ollama import open_api
from ollama_trainer.ollama.host import resolve
from ollama_trainer.pipeline.plan import check_trainable
from ollama_trainer.pipeline.survey import only_trainable
from ollama_trainer.reports import Check, DoctorReport, Memory
from ollama_trainer.settings import WILDCARD_HOSTS, Settings

State = Literal["ok", "warn", "fail"]

#: From here on Ollama keeps the bytes of a GGUF and takes neither adapters nor other weights.
_PROFILE_B = (0, 34, 1)
_PROBE_S = 300.0
_GIGABYTE = 1e9
#: Below these a run fails early, or may.
_LEAST_MEMORY, _ENOUGH_MEMORY = 1.5e9, 4e9
_LEAST_DISK, _ENOUGH_DISK = 1e9, 10e9
_TRAIN = "Install what a training needs: pip install 'ollama-trainer[train]'."


def examine(settings: Settings) -> DoctorReport:
    """Looks at everything that a training needs, and changes nothing."""
    with tempfile.TemporaryDirectory(prefix="ollama-trainer-") as scratch:
        found = _probe_packages(scratch)
    checks = (
        _ollama(settings),
        _base(settings),
        _gpu(found),
        _memory(),
        _disk(settings.data_dir),
        _unsloth(found),
        _llama_cpp(found),
        _converter(),
        *_dataset_roots(settings.dataset_roots),
        _port(settings),
    )
    return DoctorReport(checks=checks)


def free_memory() -> Memory:
    """What is free just now, on the host and on the first GPU."""
    host, gpu = psutil.virtual_memory(), _nvidia()
    return Memory(
        free_bytes=host.available,
        total_bytes=host.total,
        gpu=str(gpu["name"]) if gpu else "",
        gpu_free_bytes=gpu["free"] if gpu else None,
        gpu_total_bytes=gpu["total"] if gpu else None,
    )


def _ollama(settings: Settings) -> Check:
    # Who leaves models in a folder and trains on files can do without.
    needed = settings.publisher == "ollama" or not settings.base
    try:
        endpoint = resolve(settings.ollama_host)
        with open_api(endpoint) as api:
            version = api.check_version()
    except TrainerError as error:
        return _check("Ollama", "fail" if needed else "warn", error.cause, error.remedy)
    found = f"{version} at {endpoint.url}, {profile_of(version)}"
    if endpoint.loopback:
        return _check("Ollama", "ok", found)
    return _check(
        "Ollama", "warn", f"{found}; it is not on this machine as far as its address says",
        "Its models can be bases only where their files lie at the same paths here.",
    )  # fmt: skip


def profile_of(version: str) -> str:
    """What a version of Ollama does with a finished model, in words."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    parts = tuple(map(int, numbers.groups())) if numbers else (0, 0, 0)
    if parts == (0, 0, 0):
        return "built from source"
    if parts >= _PROFILE_B:
        return "profile B (0.34.1 and later: keeps a GGUF as it is)"
    return "profile A (up to 0.34.0: writes a GGUF anew)"


def _base(settings: Settings) -> Check:
    name = settings.base
    try:
        if not name:
            one = only_trainable(settings.ollama_host, settings.name_prefix)
            return _check("base", "ok", f"{one.name}, the only model in Ollama to train on")
        _check_base(name, settings)
    except TrainerError as error:
        # A run may name another one.
        return _check("base", "warn", error.cause, error.remedy)
    later = "; it is looked at when a run begins" if name.startswith(HF_PREFIX) else ""
    return _check("base", "ok", f"{name}, by the setting{later}")


def _check_base(name: str, settings: Settings) -> None:
    """Looks at a base without reading it through, or fetching it.

    Raises:
        TrainerError: it cannot be one.
    """
    path = Path(name.removeprefix(GGUF_PREFIX))
    if name.startswith(HF_PREFIX) or (path.is_absolute() and path.is_dir()):
        return
    if name.startswith(GGUF_PREFIX) or path.is_absolute():
        check_trainable(read_gguf(path))
        return
    if name in builtin.BUILTIN:
        builtin.load(name)
        return
    endpoint = resolve(settings.ollama_host)
    with open_api(endpoint) as api:
        found = ollama.locate(api, endpoint, name.removeprefix(OLLAMA_PREFIX))
    gguf = ollama.header_of(found)
    ollama.with_name(found, lambda: check_trainable(gguf))


def _gpu(found: dict[str, Any]) -> Check:
    device = found.get("device", "cpu")
    if device != "cpu":
        free, total = found["free"] / _GIGABYTE, found["total"] / _GIGABYTE
        return _check("GPU", "ok", f"{found['name']} ({device}), {free:.1f} of {total:.1f} GB free")
    card = _nvidia()
    if card is not None:
        return _check(
            "GPU", "warn",
            f"{card['name']}, which torch {found.get('torch', '(missing)')} does not see",
            "Install a build of torch for it (CUDA), or update its driver.",
        )  # fmt: skip
    return _check(
        "GPU", "warn", "none that torch knows: trainings run on the CPU",
        "Small bases, up to some hundred million parameters, train well there.",
    )  # fmt: skip


def _nvidia() -> dict[str, Any] | None:
    """Name and memory in bytes of the first NVIDIA GPU, without torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = ["--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [program, *asked], capture_output=True, text=True, timeout=20, check=True
        )
        name, free, total = next(csv.reader(done.stdout.splitlines(), skipinitialspace=True))
        return {"name": name, "free": int(free) << 20, "total": int(total) << 20}
    except (OSError, subprocess.SubprocessError, ValueError, StopIteration):
        return None


def _memory() -> Check:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIGABYTE:.1f} of {memory.total / _GIGABYTE:.1f} GB free"
    if memory.available >= _ENOUGH_MEMORY:
        return _check("memory", "ok", found)
    state: State = "warn" if memory.available >= _LEAST_MEMORY else "fail"
    return _check(
        "memory", state, found,
        "Close other programs (ollama stop MODEL frees Ollama's), or choose a small base.",
    )  # fmt: skip


def _disk(data_dir: Path) -> Check:
    here = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    if not os.access(here, os.W_OK | os.X_OK) or not here.is_dir():
        return _check(
            "disk", "fail", f"{here} is not writable", "Choose another --data-dir, or allow it."
        )
    free = shutil.disk_usage(here).free
    found = f"{free / _GIGABYTE:.1f} GB free for {data_dir}"
    if free >= _ENOUGH_DISK:
        return _check("disk", "ok", found)
    return _check(
        "disk", "warn" if free >= _LEAST_DISK else "fail", found,
        "Make room, or choose another --data-dir: a run takes about five times its base.",
    )  # fmt: skip


def _unsloth(found: dict[str, Any]) -> Check:
    if "unsloth" in found:
        said = f"{found['unsloth']} with torch {found['torch']}, trains on {found['device']}"
        return _check("Unsloth", "ok", said)
    return _check("Unsloth", "fail", f"it cannot be used: {found['unsloth_error']}", _TRAIN)


def _llama_cpp(found: dict[str, Any]) -> Check:
    if "llama_cpp" in found:
        return _check("llama.cpp", "ok", f"llama-cpp-python {found['llama_cpp']} loads")
    return _check(
        "llama.cpp", "fail", f"llama-cpp-python cannot be loaded: {found['llama_cpp_error']}",
        f"{_TRAIN} It is compiled here, which needs a C++ compiler.",
    )  # fmt: skip


def _converter() -> Check:
    try:
        return _check("converter", "ok", f"{converter()}")
    except metadata.PackageNotFoundError:
        return _check("converter", "warn", "there is none without llama-cpp-python", _TRAIN)
    except TrainerError:
        return _check(
            "converter", "warn", "not installed; only bases from Hugging Face need it",
            f"Install it with `{INSTALL_COMMAND}`.",
        )  # fmt: skip


def _dataset_roots(roots: tuple[Path, ...]) -> list[Check]:
    if not roots:
        return [_check("data sets", "ok", "may lie anywhere (dataset_roots is not set)")]
    return [_dataset_root(root) for root in roots]


def _dataset_root(root: Path) -> Check:
    if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
        return _check("data sets", "ok", f"may lie in {root}")
    what = "cannot be read" if root.exists() else "does not exist"
    return _check(
        "data sets", "fail", f"{root} {what}", "Create or allow it, or correct dataset_roots."
    )


def _port(settings: Settings) -> Check:
    host = "127.0.0.1" if settings.host in WILDCARD_HOSTS else settings.host
    place = f"{settings.host} port {settings.port}"
    if settings.port == 0:
        return _check("port", "ok", "any that is free (port is 0)")
    version = _served_by(host, settings.port)
    if version is not None:
        return _check("port", "ok", f"{place}: this program ({version}) serves there")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        return _check(
            "port", "fail", f"{place}: {os.strerror(error.errno) if error.errno else error}",
            "Stop the program that uses it, or choose another --port.",
        )  # fmt: skip
    return _check("port", "ok", f"{place} is free")


def _served_by(host: str, port: int) -> str | None:
    """The version of this program's server, if it is what answers there."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        answer = json.loads(connection.getresponse().read(1 << 16))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    is_ours = isinstance(answer, dict) and answer.get("name") == "ollama-trainer"
    return str(answer.get("version")) if is_ours else None


def _check(name: str, state: State, found: str, remedy: str = "") -> Check:
    return Check(name=name, state=state, found=found.strip(), remedy=remedy)


# What is tried out in processes of their own: packages with native code can end theirs.


def _probe_packages(scratch: str) -> dict[str, Any]:
    """Versions of the packages that a training needs, or why they cannot be used.

    Args:
        scratch: directory for what they write when they are imported.
    """
    return _probe("unsloth", scratch) | _probe("llama_cpp", scratch)


def _probe(name: str, scratch: str) -> dict[str, Any]:
    """What one of the functions below prints, or `<name>_error`."""
    code = f"from ollama_trainer import checks; checks.probe_{name}({scratch!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace",
            timeout=_PROBE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {f"{name}_error": f"it takes longer than {_PROBE_S:g} s"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
        return found
    words = done.stderr.strip().splitlines() or ["no reason given"]
    return {f"{name}_error": f"{words[-1]} (exit code {done.returncode})"}


def probe_unsloth(scratch: str) -> None:
    """Prints what it finds as the last line; any error ends the process."""
    from ollama_trainer.backends.unsloth import import_unsloth

    import_unsloth(Path(scratch))
    import torch

    device, name, free, total = "cpu", "", 0, 0
    for kind in ("cuda", "xpu"):
        module: Any = getattr(torch, kind)
        if module.is_available():
            device, name = kind, module.get_device_name()
            free, total = module.mem_get_info()
    found = {
        "unsloth": metadata.version("unsloth"), "torch": torch.__version__,
        "device": device, "name": name, "free": free, "total": total,
    }  # fmt: skip
    _print(found)


def probe_llama_cpp(_scratch: str) -> None:
    """Prints its version as the last line; any error ends the process."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    _print({"llama_cpp": metadata.version("llama-cpp-python")})


def _print(found: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{json.dumps(found)}\n")
