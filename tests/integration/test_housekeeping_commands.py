"""`models`, `gc` and `rm`, as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_trainer import publishers
from ollama_trainer.modelfile import modelfile_for
from ollama_trainer.ollama.shield import protect_chat_template
from ollama_trainer.publishers import PublisherOptions
from ollama_trainer.testing import tiny_gguf
from ollama_trainer.testing.fake_ollama import CHATML, FakeOllama


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[FakeOllama]:
    """With four runs of one job, and a model that has nothing to do with them."""
    with FakeOllama("0.40") as fake:
        options = PublisherOptions(ollama_host=fake.url, num_thread=2)
        modelfile = modelfile_for(stops=["<|im_end|>"], num_ctx=64, num_predict=9)
        for name in ("tuned-pots:r1", "tuned-pots:r2", "tuned-pots:r3", "tuned-pots:r4", "tuned-x"):
            own = {"version": "1", "run": name[-2:], "job": "pots", "model": name}
            own = own if ":" in name else {}
            path = tmp_path / "model.gguf"
            tiny_gguf.write_tiny(
                path,
                chat_template=protect_chat_template(CHATML.jinja),
                general__base_model__0__name="Clay",
                **{f"general__ollama_trainer__{key}": value for key, value in own.items()},
            )
            publishers.get("ollama", options).publish(path, modelfile, name, lambda *_: None)
        yield fake


def command(ollama: FakeOllama, *arguments: str, code: int = 0) -> str:
    environment = os.environ | {"OLLAMA_HOST": ollama.url, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "ollama_trainer", *arguments],
        capture_output=True, text=True, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def names(ollama: FakeOllama) -> list[str]:
    return sorted(model.short_name for model in ollama.store.models())


def test_looking_collecting_and_removing(ollama: FakeOllama, tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "none"))
    before = names(ollama)
    text = command(ollama, "models", *data)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        f"tuned-pots:r{number}" for number in (4, 3, 2, 1)
    ]
    assert lines[0] == "tuned-pots:r4  = tuned-pots:latest"
    assert lines[1].startswith("  job pots, run r4, of Clay, made ")
    assert lines[2].endswith(" on disk, which removing it frees")
    models = json.loads(command(ollama, "models", "--json", "--job", "pots", *data))["models"]
    assert [model["name"] for model in models] == [f"tuned-pots:r{n}" for n in (4, 3, 2, 1)]
    assert json.loads(command(ollama, "models", "--json", "--job", "x"))["models"] == []

    dry = command(ollama, "gc", "--dry-run", *data)
    assert names(ollama) == before
    assert dry.splitlines()[0] == "would remove  tuned-pots:r1"
    done = json.loads(command(ollama, "gc", "--json", *data))
    assert done["removed"] == ["tuned-pots:r1"]
    assert done["freed_bytes"] == models[3]["n_bytes"] > 0
    assert names(ollama) == [name for name in before if name != "tuned-pots:r1"]

    error = command(ollama, "rm", "tuned-pots:r4", *data, code=1)
    assert error.startswith("error: tuned-pots:r4 is also called tuned-pots:latest. ")
    assert command(ollama, "rm", "tuned-x", code=1).startswith("error: tuned-x:latest was not made")
    text = command(ollama, "rm", "tuned-pots:r2", *data)
    assert text.splitlines()[0] == "removed  tuned-pots:r2"
    assert names(ollama) == [
        "tuned-pots:latest",
        "tuned-pots:r3",
        "tuned-pots:r4",
        "tuned-x:latest",
    ]
    assert not (tmp_path / "none").exists()


def test_without_ollama_the_command_says_what_to_do(ollama: FakeOllama) -> None:
    ollama.go_away()
    error = command(ollama, "models", code=1)
    assert "cannot be reached" in error
    assert "ollama serve" in error
    assert "Traceback" not in error
