"""What the tests of recovery share: a recorded training, and servers that come back when killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.queue.lock import read_holder
from ollama_trainer.settings import Settings
from ollama_trainer.testing.fake_ollama import FakeOllama

from . import film
from .fragile_server import COMMAND


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by the real Unsloth, to be played again."""
    return film.record(tmp_path_factory.mktemp("film"))


class Keeper:
    """Runs a server, and starts it again when it was killed, as systemd or a person does."""

    def __init__(self, data_dir: Path, recorded: Path, ollama: str, **environment: str) -> None:
        self.data_dir = data_dir
        base = recorded / "base.gguf"
        training = film.TRAINING.model_dump(exclude_none=True)
        settings = Settings(
            data_dir=data_dir, base=f"gguf:{base}", publisher="ollama", port=0,
            checkpoint_every_s=0, **training, **film.FIDELITY.model_dump(),
        )  # fmt: skip
        self._environment = {
            **{name: value for name, value in os.environ.items() if "OLLAMA" not in name},
            **settings.as_environment(),
            "OLLAMA_TRAINER_CONFIG": os.devnull,
            "OLLAMA_HOST": ollama,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in (Path.cwd(),)),
            **environment,
        }
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Keeper:
        self.look_after()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)

    def look_after(self) -> None:
        """Starts the server unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        with (self.data_dir / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "serve"], env=self._environment, stdout=log, stderr=log
            )

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """One call; None when the server is not there just now."""
        self.look_after()
        assert self._process is not None
        holder = read_holder(self.data_dir)
        if holder.get("pid") != self._process.pid or "url" not in holder:
            time.sleep(0.05)
            return None
        request = urllib.request.Request(
            f"{holder['url']}{path}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json"} if body is not None else {},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                content: dict[str, Any] = json.load(reply)
                return content
        except urllib.error.HTTPError as error:
            content = json.load(error)
            raise AssertionError(f"{error.code}: {content}") from error
        except OSError:
            return None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def status(self, run_id: str) -> dict[str, Any] | None:
        return self.call(f"/status/{run_id}")

    def submit(self, dataset: Path, run_id: str) -> None:
        body = {"jobId": "job", "datasetRef": str(dataset), "runId": run_id}
        while self.call("/train", body) is None:
            time.sleep(0.05)

    def end(self, run_id: str) -> dict[str, Any]:
        """Polls as the app does until the word is a terminal one."""
        while True:
            status = self.status(run_id)
            if status is not None and status["status"] not in ("pending", "running"):
                return status
            time.sleep(0.1)


@dataclass
class Recovered:
    """A run that went through a disaster, and what came of it."""

    status: dict[str, Any]
    starts: int
    gguf_sha256: str
    adapter_sha256: str
    models: list[str]
    events: list[dict[str, Any]]


def sha256(path: Path) -> str:
    """Of a file; of a model without the id and the name of its run, which it tells."""
    data = path.read_bytes()
    if path.suffix == ".gguf":
        gguf = read_gguf(path)
        named = [f"general.ollama_trainer.{of_run}" for of_run in ("run", "model")]
        entries = [entry.raw for key, entry in gguf.metadata.items() if key not in named]
        data = b"".join([*entries, repr(gguf.tensors).encode(), data[gguf.data_start :]])
    return hashlib.sha256(data).hexdigest()


def go_through(
    data_dir: Path, recorded: Path, ollama: FakeOllama, run_id: str, **environment: str
) -> Recovered:
    """Submits a run and follows it to its end, whatever its environment does to it."""
    data_dir.mkdir(parents=True)
    dataset = data_dir / "rows.jsonl"
    dataset.write_text(film.rows(), encoding="utf-8")
    # What is made once a base: its texts, its loss on the probe, its weights for transformers.
    shutil.copytree(recorded / "cache", data_dir / "cache")
    with Keeper(data_dir, recorded, ollama.url, **environment) as keeper:
        keeper.submit(dataset, run_id)
        while "dataset_sha256" not in (keeper.call(f"/runs/{run_id}") or {}):
            time.sleep(0.02)
        dataset.unlink()
        status = keeper.end(run_id)
        told = None
        while told is None:
            told = keeper.call(f"/runs/{run_id}/events?limit=2000")
    directory = data_dir / "runs" / run_id
    assert sha256(directory / "dataset.jsonl") == hashlib.sha256(film.rows().encode()).hexdigest()
    leftovers = list(directory.rglob("*.partial"))
    assert leftovers == []
    gguf, adapter = directory / "model.gguf", directory / "adapter" / "adapter_model.safetensors"
    return Recovered(
        status=status,
        starts=keeper.starts,
        gguf_sha256=sha256(gguf) if gguf.exists() else "",
        adapter_sha256=sha256(adapter) if adapter.exists() else "",
        models=[model.short_name for model in ollama.store.models() if run_id in model.short_name],
        events=told["events"],
    )
