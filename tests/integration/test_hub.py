"""Bases on the hub: found in its cache without the hub, and fetched with nothing that could run."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils._paths import filter_repo_objects

from ollama_trainer.bases import hub, huggingface, resolve_base
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import read_gguf
from tests.integration.test_huggingface import write_model

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, directory: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """Lays a model into the hub's cache as a download leaves it: links to blobs."""
    home = cache / "models--org--name"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    for file in directory.iterdir():
        blob = home / "blobs" / f"{commit[:4]}-{file.name}"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (home / "refs" / ref).write_text(commit)
    return snapshot


def refusal(name: str, cache: Path) -> BaseModelError:
    with pytest.raises(BaseModelError) as caught:
        resolve_base(name, cache)
    assert caught.value.remedy
    return caught.value


def test_what_is_cached_is_found_without_the_hub(
    directory: Path, hub_cache: Path, tmp_path: Path
) -> None:
    """The revision is pinned: what `main` is tomorrow is another base."""
    put(hub_cache, directory)
    base = resolve_base("hf:org/name", tmp_path / "cache")
    assert base.name == f"hf:org/name@{COMMIT}"
    assert base == resolve_base(base.name, tmp_path / "cache")
    gguf = read_gguf(base.gguf)
    # Not that of its directory, which is the commit's.
    assert (gguf.get("general.name"), gguf.architecture) == ("name", "llama")


def test_a_revision_is_that_revision(
    directory: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub_cache, directory)
    changed = Path(shutil.copytree(directory, tmp_path / "changed"))
    (changed / "generation_config.json").write_text("{}")
    put(hub_cache, changed, OTHER, "v1")
    monkeypatch.setattr(huggingface, "convert", lambda _model, out, *_: out.write_bytes(b"GGUF"))
    names = [
        resolve_base(name, tmp_path / "cache").name for name in ("hf:org/name", "hf:org/name@v1")
    ]
    assert names == [f"hf:org/name@{COMMIT}", f"hf:org/name@{OTHER}"]


def test_half_a_download_is_no_base(directory: Path, hub_cache: Path, tmp_path: Path) -> None:
    """A download that was broken off leaves a directory like a whole one."""
    sharded = Path(shutil.copytree(directory, tmp_path / "sharded"))
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (sharded / "model.safetensors").rename(sharded / names["a"])
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    put(hub_cache, sharded)
    error = refusal("hf:org/name@main", tmp_path)
    assert "org/name@main is not cached whole" in error.cause
    assert "HF_HUB_OFFLINE" in error.cause
    assert "hf download org/name --revision main" in error.remedy


def test_what_was_never_fetched_is_refused_offline(tmp_path: Path) -> None:
    assert "hf download org/name." in refusal("hf:org/name", tmp_path).remedy


def _http(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx.Request("GET", "https://hub.example/api")
    return kind("said no", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (_http(errors.GatedRepoError, 403), "gated", "https://huggingface.co/org/name, then log"),
        (_http(errors.RepositoryNotFoundError, 404), "no model org/name", "hf auth login"),
        (_http(errors.RevisionNotFoundError, 404), "no revision 'v2'", "/commits/main"),
        (_http(errors.HfHubHTTPError, 401), "HTTP 401", "hf auth login"),
        (_http(errors.HfHubHTTPError, 500), "said no", "later"),
        (httpx.ConnectError("no route"), "no route", "later"),
        (errors.LocalEntryNotFoundError("nothing"), "not cached whole", "hf download org/name"),
    ],
)
def test_the_hubs_refusals_come_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str, remedy: str
) -> None:
    def refuse(*_: object, local_files_only: bool = False, **__: object) -> None:
        raise errors.LocalEntryNotFoundError("not here") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    told = refusal("hf:org/name@v2", tmp_path)
    assert cause in told.cause
    assert remedy in told.remedy


def test_a_full_disk_is_no_fault_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run waits for room."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        resolve_base("hf:org/name", tmp_path)


class Hub:
    """Gives a directory's files away, as far as they are asked for."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory, self.cache = directory, cache
        self.calls: list[dict[str, Any]] = []

    def __call__(self, repo: str, *, local_files_only: bool = False, **asked: Any) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not here")
        self.calls.append({"repo": repo, **asked})
        target = self.cache / COMMIT
        target.mkdir(parents=True, exist_ok=True)
        names = [file.name for file in self.directory.rglob("*") if file.is_file()]
        wanted = filter_repo_objects(
            names,
            allow_patterns=asked["allow_patterns"],
            ignore_patterns=asked.get("ignore_patterns"),
        )
        for name in wanted:
            shutil.copyfile(self.directory / name, target / name)
        if "tqdm_class" in asked:
            asked["tqdm_class"](total=2, disable=True).update(1)
        return str(target)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], Hub]:
    def start(directory: Path) -> Hub:
        one = Hub(directory, tmp_path / "snapshots")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", one)
        return one

    return start


def test_only_what_is_needed_is_fetched_and_nothing_that_runs(
    directory: Path, tmp_path: Path, serve: Callable[[Path], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = Path(shutil.copytree(directory, tmp_path / "offered"))
    for name in ("pytorch_model.bin", "modeling.py", "README.md", "consolidated.safetensors"):
        (offered / name).write_bytes(b"x")
    one = serve(offered)
    monkeypatch.setattr(hub, "_WORD_S", -1.0)
    words: list[None] = []
    found, pinned = hub.fetch("org/name", lambda _: None, lambda: words.append(None))
    assert pinned == f"org/name@{COMMIT}"
    assert {file.name for file in found.iterdir()} == {file.name for file in directory.iterdir()}
    # The weights are those of the commit whose configuration was looked at.
    assert [call.get("revision") for call in one.calls] == [None, COMMIT]
    assert words == [None]


def test_an_architecture_that_is_not_supported_costs_no_download(
    directory: Path, tmp_path: Path, serve: Callable[[Path], Hub]
) -> None:
    offered = Path(shutil.copytree(directory, tmp_path / "offered"))
    config = json.loads((offered / "config.json").read_text())
    (offered / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    one = serve(offered)
    error = refusal("hf:org/name", tmp_path)
    assert "'mamba', which is not supported" in error.cause
    assert "qwen3" in error.remedy
    assert [call["allow_patterns"] for call in one.calls] == [["config.json"]]


def test_a_model_without_safetensors_is_refused(
    directory: Path, tmp_path: Path, serve: Callable[[Path], Hub]
) -> None:
    offered = Path(shutil.copytree(directory, tmp_path / "offered"))
    (offered / "model.safetensors").rename(offered / "pytorch_model.bin")
    serve(offered)
    assert "safetensors" in refusal("hf:org/name", tmp_path).cause


def test_code_of_the_models_own_is_never_run(
    directory: Path, tmp_path: Path, serve: Callable[[Path], Hub]
) -> None:
    offered = Path(shutil.copytree(directory, tmp_path / "offered"))
    config = json.loads((offered / "config.json").read_text())
    asks = config | {"auto_map": {"AutoConfig": "evil.Config"}}
    (offered / "config.json").write_text(json.dumps(asks))
    serve(offered)
    assert "code that comes with the model" in refusal("hf:org/name", tmp_path).cause


@pytest.mark.parametrize("name", ["hf:name", "hf:org/name/more", "hf:../x", "hf:org/name@", "hf:"])
def test_what_is_no_id_is_refused(tmp_path: Path, name: str) -> None:
    error = refusal(name, tmp_path)
    assert name in error.cause
    assert "hf:org/name@revision" in error.remedy
