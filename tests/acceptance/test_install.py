"""What the README promises about installing and typing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_trainer.cli import _parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_the_server_installs_and_runs_without_torch(tmp_path: Path) -> None:
    """A machine that only serves must not need six gigabytes."""
    folder = tmp_path / "venv"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    requirements = str(ROOT / "requirements" / "server.txt")
    install = [*uv, "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, "--require-hashes", "-r", requirements], check=True)
    subprocess.run([*install, "--no-deps", str(ROOT)], check=True)
    script = (
        "import sys, ollama_trainer.cli, ollama_trainer.server.app, ollama_trainer.client\n"
        "assert not {'torch', 'numpy', 'llama_cpp'} & set(sys.modules)\n"
        "try:\n    import torch\nexcept ImportError: print('no torch')\n"
    )
    done = subprocess.run(
        [python, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "no torch\n"
    version = subprocess.run(
        [folder / "bin" / "ollama-trainer", "--version"], check=True, capture_output=True, text=True
    )
    assert version.stdout.startswith("ollama-trainer ")
    program, data = str(folder / "bin" / "ollama-trainer"), str(ROOT / "examples/feedback.jsonl")
    looked = subprocess.run(
        [program, "dataset", "inspect", "--json", data], check=True, capture_output=True, text=True
    )
    report = json.loads(looked.stdout)
    assert (report["format"], report["rows_read"], report["tokens"]) == ("from_feedback", 180, None)
    assert report["warnings"][0].startswith("tokens are not counted")
    assert len(report["samples"]) == 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_exists(command: str) -> None:
    """A README whose commands do not work is worse than none."""
    words = shlex.split(command)
    if words[0].startswith("./scripts/"):
        assert (ROOT / words[0]).stat().st_mode & 0o111
    elif words[0] == ".venv/bin/ollama-trainer":
        assert _parser().parse_args(words[1:]).command == words[1]
    else:
        assert words[0] == "curl"
        assert words[2].startswith("localhost:8765/")


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_lock_files_are_hashed_and_name_no_registry() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text("utf-8")
        assert "://" not in text
        assert text.count("==") <= text.count("--hash=sha256:")
