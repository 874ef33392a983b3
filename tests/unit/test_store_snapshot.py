"""The copy of a data set: whole or not there, and every bad path told with cause and remedy."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from ollama_trainer.errors import DatasetError
from ollama_trainer.queue.snapshot import SnapshotStopped, take_snapshot


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "runs/r1/dataset.jsonl"


def test_the_copy_is_exact_and_independent_of_its_source(tmp_path: Path, target: Path) -> None:
    content = b'{"x": "\xe2\x80\xa8\xc2\x85"}\n' + os.urandom(3 << 20)
    source = tmp_path / "feedback.jsonl"
    source.write_bytes(content)
    snapshot = take_snapshot(str(source), target)
    source.unlink()
    assert target.read_bytes() == content
    assert snapshot.sha256 == hashlib.sha256(content).hexdigest()
    assert snapshot.n_bytes == len(content)
    assert [path.name for path in target.parent.iterdir()] == ["dataset.jsonl"]


@pytest.mark.parametrize(
    ("ref", "cause"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("feedback.jsonl", "not an absolute path"),
        ("./x", "not an absolute path"),
        ("~/x", "not an absolute path"),
        ("file:///x", "not an absolute path"),
        ("/no/such/file.jsonl", "does not exist"),
        ("/x\0y", "not a usable path"),
        ("/" + "x" * 5000, "cannot be read|not a usable path"),
    ],
)
def test_paths_that_name_no_data_set(target: Path, ref: str, cause: str) -> None:
    with pytest.raises(DatasetError, match=cause) as failure:
        take_snapshot(ref, target)
    assert failure.value.remedy
    assert not target.exists()


def test_things_that_are_no_data_set(tmp_path: Path, target: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DatasetError, match=r"empty \(0 bytes\)"):
        take_snapshot(str(empty), target)
    with pytest.raises(DatasetError, match="is a directory"):
        take_snapshot(str(tmp_path), target)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(DatasetError):
        take_snapshot(str(loop), target)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DatasetError, match="not a plain file"):
        take_snapshot(str(pipe), target)
    assert not list(target.parent.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path: Path, target: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text("{}")
    secret.chmod(0)
    with pytest.raises(DatasetError, match="cannot be read: Permission denied"):
        take_snapshot(str(secret), target)


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="needs a file that opens, then fails"
)
def test_an_error_while_reading(target: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        take_snapshot("/proc/self/mem", target)
    assert not list(target.parent.iterdir())


def test_only_files_below_the_roots_are_read(tmp_path: Path, target: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-not"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "x.jsonl").write_text("{}\n")
    (root / "link.jsonl").symlink_to(outside / "x.jsonl")
    (outside / "way-in.jsonl").symlink_to(root / "x.jsonl")
    roots = (tmp_path / "missing", root)
    for ref in (outside / "x.jsonl", root / "link.jsonl", root / "../root-not/x.jsonl", "/etc/x"):
        with pytest.raises(DatasetError, match="outside of the directories"):
            take_snapshot(str(ref), target, roots)
    assert not target.exists()
    take_snapshot(str(outside / "way-in.jsonl"), target, roots)
    take_snapshot(str(root / "x.jsonl"), target, roots)


def test_a_stopped_copy_leaves_nothing(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text("{}\n")
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(SnapshotStopped):
        take_snapshot(str(source), target, (), stopped)
    assert not list(target.parent.iterdir())
