"""A manifest speaks for files only as long as they are what it says."""

from pathlib import Path

import pytest

from ollama_trainer.manifests import key_of, read_manifest, write_manifest

KEY = key_of("spec", {"b": 1, "a": 2})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter" / "deep"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 3_000_000)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    write_manifest(
        tmp_path / "stages/train.json",
        KEY,
        tmp_path,
        [tmp_path / "adapter", tmp_path / "model.gguf"],
        attempt=2,
        data={"loss": 0.1},
    )
    return tmp_path


def test_it_names_every_file_and_what_was_told(root: Path) -> None:
    manifest = read_manifest(root / "stages/train.json", KEY, root)
    assert manifest is not None
    assert list(manifest.outputs) == ["adapter/deep/weights", "model.gguf"]
    assert (manifest.outputs["model.gguf"].n_bytes, manifest.attempt) == (4, 2)
    assert manifest.data == {"loss": 0.1}
    assert not list(root.rglob("*.partial"))


def test_keys_follow_content_and_not_order() -> None:
    assert key_of("spec", {"a": 2, "b": 1}) == KEY
    assert KEY != key_of("spec", {"a": 2, "b": 2}) != key_of("spec")


def test_another_key_is_another_stage(root: Path) -> None:
    assert read_manifest(root / "stages/train.json", key_of("other"), root) is None


@pytest.mark.parametrize("damage", ["longer", "one bit", "missing", "torn manifest", "no manifest"])
def test_damage_counts_as_never_made(root: Path, damage: str) -> None:
    weights, manifest = root / "adapter/deep/weights", root / "stages/train.json"
    if damage == "longer":
        weights.write_bytes(weights.read_bytes() + b"x")
    elif damage == "one bit":
        weights.write_bytes(b"v" + weights.read_bytes()[1:])
    elif damage == "missing":
        weights.unlink()
    elif damage == "torn manifest":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    else:
        manifest.unlink()
    assert read_manifest(manifest, KEY, root) is None
