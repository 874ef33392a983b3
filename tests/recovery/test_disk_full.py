"""A disk that is really full: each run waits by name, and goes on when there is room."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.testing.fake_ollama import FakeOllama

from . import film
from .conftest import Keeper, sha256

Mount = Callable[[int], "SmallDisk"]


class SmallDisk:
    """A file system of some megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.path).free

    def fill(self, leave: int = 0) -> None:
        """Takes all room but so many bytes."""
        with self._filler.open("ab") as filler:
            while (missing := self.free - leave) > 0:
                # A server at work may take room between the two calls: then ask again.
                with contextlib.suppress(OSError):
                    os.posix_fallocate(filler.fileno(), os.fstat(filler.fileno()).st_size, missing)

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    path = tmp_path / "disk"
    path.mkdir()

    def make(megabytes: int) -> SmallDisk:
        command = shutil.which("mount")
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
        if command is None or subprocess.run([command, *options], capture_output=True).returncode:
            pytest.skip("a file system can only be mounted by root")
        return SmallDisk(path)

    yield make
    if path.is_mount():
        subprocess.run([str(shutil.which("umount")), "-l", str(path)], check=True)


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("0.33") as fake:
        yield fake


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(film.rows(), encoding="utf-8")
    return path


def waits(keeper: Keeper, run: str) -> dict[str, Any]:
    """The status once the run waits for room."""
    while True:
        status = keeper.status(run)
        if status is not None:
            assert status["status"] in ("pending", "running"), status
            if "waiting" in status:
                assert status["waiting"]["for"] == "disk"
                return status
        time.sleep(0.05)


def keeper_on(disk: SmallDisk, recorded: Path, ollama: FakeOllama) -> Keeper:
    data = disk.path / "data"
    shutil.copytree(recorded / "cache", data / "cache")
    return Keeper(data, recorded, ollama.url, FRAGILE_FILM=str(recorded))


def size(path: Path) -> int:
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())


def test_no_room_for_the_data_set(
    mount: Mount, recorded: Path, ollama: FakeOllama, tmp_path: Path
) -> None:
    disk = mount(48)
    large = tmp_path / "large.jsonl"
    unused = json.dumps({"input": "x" * 20_000, "output": "y", "label": "bad"}) + "\n"
    large.write_text(film.rows() + unused * 150, encoding="utf-8")
    with keeper_on(disk, recorded, ollama) as keeper:
        while keeper.call("/health") is None:
            time.sleep(0.05)
        disk.fill(leave=1 << 20)
        keeper.submit(large, "r1")
        status = waits(keeper, "r1")
        assert status["status"] == "pending"
        assert "room for the copy" in status["waiting"]["error"]
        assert not list((disk.path / "data/runs").rglob("*.partial"))
        disk.empty()
        assert keeper.end("r1")["status"] == "completed"


@pytest.mark.parametrize("stage", ["checkpoint", "adapter", "gguf"])
def test_no_room_for_what_a_stage_makes(
    mount: Mount, recorded: Path, ollama: FakeOllama, dataset: Path, stage: str
) -> None:
    film_run = recorded / "runs" / "film"
    adapter, statistics, gguf = (
        size(film_run / name) for name in ("adapter", "statistics", "model.gguf")
    )
    room = {
        "checkpoint": film.CHECKPOINT_BYTES // 2,
        "adapter": 2 * film.CHECKPOINT_BYTES + adapter // 2,
        "gguf": film.CHECKPOINT_BYTES + adapter + statistics + gguf // 2,
    }[stage]
    disk = mount(128)
    with keeper_on(disk, recorded, ollama) as keeper:
        # With the ballast there is always room for the database, which is not the matter here.
        while not (disk.path / "data/ballast").exists() or keeper.call("/health") is None:
            time.sleep(0.05)
        # Logs, events and manifests need some, too.
        disk.fill(leave=room + 300_000)
        keeper.submit(dataset, "r1")
        status = waits(keeper, "r1")
        assert status["status"] == "running"
        assert "disk" in status["waiting"]["error"].lower()
        directory = disk.path / "data/runs/r1"
        assert not (directory / "model.gguf").exists()
        assert not list(directory.rglob("*.partial"))
        disk.empty()
        status = keeper.end("r1")
    assert status["status"] == "completed"
    assert sha256(directory / "model.gguf") == sha256(film_run / "model.gguf")
    names = {model.short_name for model in ollama.store.models()}
    assert names == {"tuned-job:r1", "tuned-job:latest"}


def test_no_room_for_the_database(
    mount: Mount, recorded: Path, ollama: FakeOllama, dataset: Path
) -> None:
    """The ballast lets runs be stored for a while; then the server says so, and loses none."""
    disk = mount(128)
    with keeper_on(disk, recorded, ollama) as keeper:
        ballast = disk.path / "data/ballast"
        while not ballast.exists() or keeper.call("/health") is None:
            time.sleep(0.05)
        disk.fill()
        keeper.submit(dataset, "r1")
        assert not ballast.exists(), "its room went to the database"
        disk.fill()
        accepted, refused = ["r1"], ""
        while not refused:
            run = f"r{len(accepted) + 1}"
            try:
                keeper.submit(dataset, run)
            except AssertionError as error:
                refused = str(error)
            else:
                accepted.append(run)
        assert refused.startswith("503")
        assert "database of runs cannot be written" in refused
        disk.empty()
        assert [keeper.end(run)["status"] for run in accepted] == ["completed"] * len(accepted)
