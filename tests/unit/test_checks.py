"""What `doctor` looks at, one by one, and what it says where something is missing."""

from __future__ import annotations

import errno
import http.server
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_trainer import checks
from ollama_trainer.settings import Settings
from tests.tiny_models import write_vocabulary

GPU = {"device": "cuda", "name": "H100", "free": 70e9, "total": 80e9, "torch": "2.14.1"}
CPU = {"device": "cpu", "torch": "2.14.1", "unsloth": "2026.10.9"}


@pytest.mark.parametrize(
    ("version", "words"),
    [("0.33.0-rc2", "profile A"), ("0.34.0", "profile A"), ("0.34.1", "profile B"),
     ("0.40.0", "profile B"), ("0.0.0", "from source"), ("dev", "from source")],
)  # fmt: skip
def test_versions_of_ollama_are_told_apart(version: str, words: str) -> None:
    assert words in checks.profile_of(version)


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nvidia-smi; what it prints is to be written into the file."""
    program, said = tmp_path / "nvidia-smi", tmp_path / "said"
    program.write_text(f"#!/bin/sh\ncat {said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return said


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_a_gpu_that_torch_does_not_see_is_told(nvidia: Path) -> None:
    """The most common fault of an installation: a build of torch for the CPU."""
    nvidia.write_text("NVIDIA H100 80GB HBM3, 81079, 81559\nanother, 1, 2\n")
    memory = checks.free_memory()
    assert (memory.gpu, memory.gpu_free_bytes) == ("NVIDIA H100 80GB HBM3", 81079 << 20)
    assert memory.usable_bytes == 81079 << 20
    check = checks._gpu(CPU)
    assert check.state == "warn"
    assert "NVIDIA H100 80GB HBM3, which torch 2.14.1 does not see" in check.found
    assert "CUDA" in check.remedy
    nvidia.write_text("NVIDIA-SMI has failed because it could not talk to the driver.\n")
    assert checks.free_memory().gpu_free_bytes is None
    assert "none that torch knows" in checks._gpu(CPU).found


def test_a_gpu_that_is_used_is_told_with_its_memory() -> None:
    check = checks._gpu(GPU)
    assert (check.state, check.found) == ("ok", "H100 (cuda), 70.0 of 80.0 GB free")


@pytest.mark.parametrize(("free", "state"), [(1e9, "fail"), (1.6e9, "warn"), (5e9, "ok")])
def test_little_memory_is_told(monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    found = type("Memory", (), {"available": int(free), "total": int(8e9)})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)
    check = checks._memory()
    assert check.state == state
    assert f"{free / 1e9:.1f} of 8.0 GB" in check.found
    assert bool(check.remedy) == (state != "ok")


@pytest.mark.parametrize(("free", "state"), [(5e8, "fail"), (5e9, "warn"), (5e10, "ok")])
def test_little_room_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str
) -> None:
    """Also where the directory is still to be made."""
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("shutil.disk_usage", lambda path: {tmp_path: usage}[path])
    check = checks._disk(tmp_path / "not" / "made")
    assert check.state == state
    assert not list(tmp_path.iterdir())


def test_a_data_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = checks._disk(tmp_path / "file" / "data")
    assert check.state == "fail"
    assert "--data-dir" in check.remedy


def test_roots_of_data_sets_must_be_there(tmp_path: Path) -> None:
    (found,) = checks._dataset_roots(())
    assert found.state == "ok"
    there, missing = checks._dataset_roots((tmp_path, tmp_path / "no"))
    assert (there.state, missing.state) == ("ok", "fail")
    assert str(tmp_path / "no") in missing.found


@pytest.mark.skipif(sys.platform == "win32", reason="ends by a signal")
def test_a_package_that_ends_its_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native code for another CPU dies without a Python error."""
    broken = tmp_path / "llama_cpp.py"
    broken.write_text("import os, sys\nprint('banner')\nsys.stderr.write('said\\n')\nos.abort()\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    check = checks._llama_cpp(checks._probe("llama_cpp", str(tmp_path)))
    assert check.state == "fail"
    assert "said (exit code -6)" in check.found
    broken.write_text("raise ImportError('no such wheel')\n")
    check = checks._llama_cpp(checks._probe("llama_cpp", str(tmp_path)))
    assert "ImportError: no such wheel (exit code 1)" in check.found
    assert "ollama-trainer[train]" in check.remedy


def test_llama_cpp_that_works_is_told_with_its_version(tmp_path: Path) -> None:
    check = checks._llama_cpp(checks._probe("llama_cpp", str(tmp_path)))
    assert check.state == "ok"
    assert "llama-cpp-python 0." in check.found


def test_what_unsloth_lacks_is_told() -> None:
    check = checks._unsloth({"unsloth_error": "ModuleNotFoundError: No module named 'unsloth'"})
    assert check.state == "fail"
    assert "No module named 'unsloth'" in check.found
    assert checks._unsloth(CPU).state == "ok"


def test_a_missing_converter_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most bases need none."""
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    check = checks._converter()
    assert check.state == "warn"
    assert "python -m ollama_trainer.bases.converter" in check.remedy


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(10)
        yield one


def test_a_port_that_another_program_uses_is_told(listener: socket.socket) -> None:
    port = listener.getsockname()[1]

    def say_nothing() -> None:
        connection, _ = listener.accept()
        connection.close()

    threading.Thread(target=say_nothing, daemon=True).start()
    check = checks._port(Settings(port=port))
    assert check.state == "fail"
    assert check.found == f"127.0.0.1 port {port}: {os.strerror(errno.EADDRINUSE)}"
    assert "--port" in check.remedy


@pytest.mark.parametrize(("name", "state"), [("ollama-trainer", "ok"), ("something else", "fail")])
def test_a_port_that_this_program_uses_is_as_it_should_be(name: str, state: str) -> None:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'{{"name": "{name}", "version": "1.2.3"}}'.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check = checks._port(Settings(port=server.server_port))
        server.shutdown()
    assert check.state == state
    assert ("1.2.3" in check.found) == (state == "ok")


def test_a_free_port_is_left_free(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    for _ in range(2):
        assert checks._port(Settings(port=port)).state == "ok"
    assert checks._port(Settings(port=0)).state == "ok"


def test_a_base_that_is_set_is_looked_at(tmp_path: Path) -> None:
    """By its header, without reading it through."""
    path = write_vocabulary(tmp_path / "tiny.gguf")
    check = checks._base(Settings(base=f"gguf:{path}"))
    assert check.state == "warn"
    assert "token_embd" in check.found
    assert checks._base(Settings(base="gguf:/no/such.gguf")).state == "warn"
    assert checks._base(Settings(base="smollm2")).state == "ok"
    assert "when a run begins" in checks._base(Settings(base="hf:org/name")).found


def test_without_ollama_folders_are_enough() -> None:
    """Who leaves models in a folder and trains on a file can do without."""
    away = Settings(ollama_host="127.0.0.1:1")
    folder = away.model_copy(update={"publisher": "folder"})
    assert checks._ollama(away).state == "fail"
    assert checks._ollama(folder).state == "fail"
    assert checks._ollama(folder.model_copy(update={"base": "smollm2"})).state == "warn"
    assert checks._ollama(Settings(ollama_host="ftp://x")).state == "fail"
