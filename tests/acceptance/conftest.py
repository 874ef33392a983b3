"""Real parts only: the server's process, the worker's process, Unsloth, llama.cpp, SmolLM2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FEEDBACK = ROOT / "examples" / "feedback.jsonl"


class App:
    """Calls as the app behind the contract does.

    It ignores the reply of POST /train, asks for the status with 10 s of patience, ignores replies
    that are not 2xx, and stops asking at the first word that is neither pending nor running.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def train(self, dataset: str, job_id: str = "agent-1") -> str:
        run_id = str(uuid.uuid4())
        body = {"jobId": job_id, "datasetRef": dataset, "runId": run_id}
        request = urllib.request.Request(
            f"{self.url}/train",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()
        return run_id

    def poll(self, run_id: str) -> dict[str, Any]:
        status: dict[str, Any] = {"status": "pending"}
        while status["status"] in ("pending", "running"):
            time.sleep(0.3)
            with urllib.request.urlopen(f"{self.url}/status/{run_id}", timeout=10) as reply:
                status = json.load(reply)
        return status


@contextmanager
def served(data_dir: Path, **environment: str) -> Iterator[App]:
    """`ollama-trainer serve` as a process of its own, stopped by its pid."""
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")
    } | {
        "OLLAMA_TRAINER_DATA_DIR": str(data_dir),
        "OLLAMA_TRAINER_PORT": "0",
        "OLLAMA_TRAINER_CONFIG": os.devnull,
        "OLLAMA_TRAINER_BASE": "smollm2",
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    log = data_dir.with_name(data_dir.name + "-server.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ollama_trainer", "serve"],
            env=variables,
            stdout=output,
            stderr=output,
        )
    try:
        yield App(_url(process, data_dir, log))
    finally:
        process.terminate()
        process.wait(30)


def _url(process: subprocess.Popen[bytes], data_dir: Path, log: Path) -> str:
    """Where it listens, as it writes into its lock file."""
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            holder = json.loads((data_dir / "server.lock").read_text("utf-8"))
        except (OSError, ValueError):
            holder = {}
        if "url" in holder:
            return str(holder["url"])
        time.sleep(0.1)
    raise AssertionError(log.read_text("utf-8"))


@pytest.fixture
def few_rows(tmp_path: Path) -> Path:
    """Twelve rows of the example: enough to see learning, little to train on."""
    rows = [json.loads(line) for line in FEEDBACK.read_text("utf-8").splitlines()]
    good = [row for row in rows if row["label"] == "good"]
    chosen = [row for row in good if "Ilse" in row["output"] or "Pim" in row["output"]]
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
    return path


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[list[Mapping[str, Any]]], Path]:
    def write(rows: list[Mapping[str, Any]]) -> Path:
        path = tmp_path / f"{uuid.uuid4()}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return write
