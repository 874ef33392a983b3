"""Which base a run has: the only one where none is named, and the same one for all of the run."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.client import RunStatus, TrainerClient, running_server
from ollama_trainer.errors import BaseModelError, LeaseLost, OllamaUnreachable
from ollama_trainer.pipeline import base as base_stage
from ollama_trainer.pipeline.base import base_of_run, still_there
from ollama_trainer.pipeline.keep import held
from ollama_trainer.pipeline.survey import local_bases, only_trainable
from ollama_trainer.records import BaseGguf, RunSpec
from ollama_trainer.settings import Settings
from ollama_trainer.testing import tiny_gguf
from ollama_trainer.testing.fake_ollama import FakeOllama
from ollama_trainer.workspace import RunDirectory
from tests.ollama_models import create
from tests.scripted import ANSWER, SAYS, write_scripted
from tests.tiny_models import split_gguf, tiny_model, write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model(), tmp_path_factory.mktemp("model") / "model.gguf", "Q8_0")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model(seed=2), tmp_path_factory.mktemp("other") / "model.gguf", "Q4_0")


def with_key(source: Path, folder: Path, key: str, value: str | int) -> Path:
    """The same file with one more entry."""
    path = folder / f"{key}.gguf"
    tiny_gguf.rewrite_sorted(source, tiny_gguf.with_value(tiny_gguf.read(source), key, value), path)
    return path


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("0.40") as one:
        yield one


@pytest.fixture(scope="module")
def projector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("projector") / "mmproj.gguf"
    tiny_gguf.write(path, {"general.architecture": "clip"}, {"v.weight": (32, 4)})
    return path


def blob(ollama: FakeOllama) -> Path:
    """The GGUF of the only model."""
    (model,) = ollama.store.models()
    return ollama.store.blob_path(model.blob)


class Runs:
    """Finds the base of one run, again and again."""

    def __init__(self, directory: Path, ollama: FakeOllama, **spec: Any) -> None:
        self.directory = RunDirectory(directory / "run")
        self.directory.path.mkdir()
        self.spec = RunSpec.model_validate(
            {
                "run_id": "r1", "job_id": "j", "dataset_ref": "", "base": "", "backend": "unsloth",
                "publisher": "folder", "quantization": "same", "ollama_host": ollama.url,
                "name_prefix": "tuned-", "model_name": "m:r1", "cache_dir": directory / "cache",
                **spec,
            }
        )  # fmt: skip
        self.notes: list[tuple[str, Mapping[str, Any]]] = []

    def base(self) -> BaseGguf:
        return base_of_run(
            self.directory, self.spec, note=lambda message, data: self.notes.append((message, data))
        )


# The only one


def test_with_one_model_in_ollama_it_is_that_one(
    ollama: FakeOllama, model: Path, tmp_path: Path
) -> None:
    create(ollama.url, "qwen:0.6b", model)
    runs = Runs(tmp_path, ollama)
    base = runs.base()
    assert base.name == "qwen:0.6b"
    ((message, data),) = runs.notes
    assert message == "the base is qwen:0.6b, the only model in Ollama that can be trained"
    assert data == {"base": "qwen:0.6b", "digest": base.digest, "gguf": str(blob(ollama))}


def test_two_names_of_one_model_are_one(ollama: FakeOllama, model: Path) -> None:
    """`latest` often is another name of a size."""
    create(ollama.url, "qwen:0.6b", model)
    ollama.store.copy("qwen:0.6b", "qwen:latest")
    assert only_trainable(ollama.url, "tuned-").name == "qwen:0.6b"


def test_models_that_were_made_here_do_not_count(
    ollama: FakeOllama, model: Path, other: Path, tmp_path: Path
) -> None:
    """By their names, or, whatever they were renamed to, by what stands in the file."""
    create(ollama.url, "qwen:0.6b", model)
    create(ollama.url, "someone/tuned-agent:r1", other)
    made = with_key(other, tmp_path, "general.ollama_trainer.run", "r1")
    create(ollama.url, "mine:1", made)
    assert only_trainable(ollama.url, "tuned-").name == "qwen:0.6b"
    tuned = {model.name for model in local_bases(ollama.url, "tuned-") if model.tuned}
    assert tuned == {"someone/tuned-agent:r1", "mine:1"}
    assert not any(model.tuned for model in local_bases(ollama.url, "") if "agent" in model.name)


def test_what_cannot_be_trained_does_not_count(
    ollama: FakeOllama, model: Path, tmp_path: Path
) -> None:
    create(ollama.url, "qwen:0.6b", model)
    create(ollama.url, "embed:1", with_key(model, tmp_path, "llama.pooling_type", 1))
    ollama.store.add_without_gguf("far:1", remote_host="https://far.example")
    assert only_trainable(ollama.url, "tuned-").name == "qwen:0.6b"


def test_of_several_none_is_taken_and_all_are_named(
    ollama: FakeOllama, model: Path, other: Path
) -> None:
    for name, file in (("a:1", model), ("b:1", other), ("tuned-c:1", other)):
        create(ollama.url, name, file)
    with pytest.raises(BaseModelError, match=r"2 models that can be trained: a:1, b:1\.") as caught:
        only_trainable(ollama.url, "tuned-")
    for way in ("baseModel", "PUT /jobs/", "--base", "ollama-trainer bases"):
        assert way in caught.value.remedy


def test_where_there_is_none_each_is_named_with_its_reason(
    ollama: FakeOllama, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(BaseModelError, match="no model at all") as caught:
        only_trainable(ollama.url, "tuned-")
    assert "smollm2" in caught.value.remedy
    create(ollama.url, "tuned-a:1", model)
    create(ollama.url, "embed:1", with_key(model, tmp_path, "llama.pooling_type", 1))
    with pytest.raises(BaseModelError) as caught:
        only_trainable(ollama.url, "tuned-")
    assert "tuned-a:1 (made by this program)" in caught.value.cause
    assert re.search(r"embed:1 \(embed:1 writes no text", caught.value.cause)


def test_an_ollama_that_is_away_is_waited_for(ollama: FakeOllama) -> None:
    ollama.go_away()
    with pytest.raises(OllamaUnreachable, match="No base was chosen") as caught:
        only_trainable(ollama.url, "tuned-")
    assert caught.value.retryable
    assert "smollm2" in caught.value.remedy


# The same one


def test_a_tag_that_is_pulled_again_changes_nothing(
    ollama: FakeOllama, model: Path, other: Path, tmp_path: Path
) -> None:
    parameters = {
        "temperature": 0.5,
        "num_ctx": 512,
        "use_mmap": True,
        "stop": ["a\n", '"'],
        "x": "1",
    }
    create(ollama.url, "qwen:0.6b", model, parameters=parameters, license=["MIT", "x"])
    runs = Runs(tmp_path, ollama, base="qwen:0.6b")
    first = runs.base()
    create(ollama.url, "qwen:0.6b", other)
    assert runs.base() == first
    assert first.ollama is not None
    again = runs.base().ollama
    assert again is not None
    kinds = {name: type(value) for name, value in again.parameters.items()}
    assert kinds == {
        "temperature": float,
        "num_ctx": int,
        "use_mmap": bool,
        "stop": tuple,
        "x": str,
    }
    assert len(runs.notes) == 1
    fresh = Runs(tmp_path / "cache", ollama, base="qwen:0.6b").base()
    assert fresh.digest != first.digest


def test_company_for_the_only_model_changes_nothing(
    ollama: FakeOllama, model: Path, other: Path, tmp_path: Path
) -> None:
    create(ollama.url, "a:1", model)
    runs = Runs(tmp_path, ollama)
    first = runs.base()
    create(ollama.url, "b:1", other)
    assert runs.base() == first


def test_a_base_that_is_gone_is_told_so(ollama: FakeOllama, model: Path, tmp_path: Path) -> None:
    create(ollama.url, "a:1", model)
    runs = Runs(tmp_path, ollama, base="a:1")
    runs.base()
    path = blob(ollama)
    path.unlink()
    shutil.rmtree(runs.directory.kept)
    with pytest.raises(BaseModelError) as caught:
        runs.base()
    assert (
        f"{path} is gone, since a:1 was removed from Ollama or pulled again" in caught.value.cause
    )
    assert "new run" in caught.value.remedy


def test_what_ollama_removes_stays_for_the_run(
    ollama: FakeOllama, model: Path, projector: Path, tmp_path: Path
) -> None:
    """It removes a file at once when its tag is pulled again; a training takes hours."""
    create(ollama.url, "a:1", model, projector)
    runs = Runs(tmp_path, ollama, base="a:1")
    first = runs.base()
    files = sorted(blob(ollama).parent.iterdir())
    size = sum(file.stat().st_blocks for file in files)
    assert [file.samefile(runs.directory.kept / file.name) for file in files] == [True, True]
    for file in files:
        file.unlink()
    again = runs.base()
    assert again == first
    assert again.ollama is not None
    kept = sorted([again.gguf, *again.ollama.projectors])
    assert [path.name for path in kept] == [path.name for path in files]
    assert hashlib.sha256(again.gguf.read_bytes()).hexdigest() == again.digest
    assert sum(path.stat().st_blocks for path in kept) == size


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_what_may_have_no_second_name_is_held_open(
    ollama: FakeOllama, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Linux nobody may link to a file of another user."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    create(ollama.url, "a:1", model)
    runs = Runs(tmp_path, ollama, base="a:1")
    base = runs.base()
    assert base.gguf == blob(ollama)
    with held(base, runs.directory.kept) as existing:
        assert existing() == base
        assert not list(runs.directory.kept.iterdir())
        content = base.gguf.read_bytes()
        base.gguf.unlink()
        copied = existing()
        assert existing() == copied
    assert copied.gguf == runs.directory.kept / base.gguf.name
    assert copied.gguf.read_bytes() == content
    assert runs.base() == copied


def test_a_file_of_the_users_own_is_left_to_him(
    ollama: FakeOllama, model: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copyfile(model, tmp_path / "mine.gguf"))
    runs = Runs(tmp_path, ollama, base=f"gguf:{mine}")
    assert runs.base().gguf == mine
    assert mine.stat().st_nlink == 1
    assert not runs.directory.kept.exists()


def test_a_file_that_was_written_over_is_told_so(
    ollama: FakeOllama, model: Path, other: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copyfile(model, tmp_path / "mine.gguf"))
    runs = Runs(tmp_path, ollama, base=f"gguf:{mine}")
    base = runs.base()
    assert still_there(base, runs.spec) == base
    shutil.copyfile(other, mine)
    with pytest.raises(BaseModelError, match="another file than the one that this run began with"):
        runs.base()


@pytest.mark.parametrize("damage", ["another", "short", "gone"])
def test_a_change_of_a_later_part_is_told(
    ollama: FakeOllama, model: Path, tmp_path: Path, damage: str
) -> None:
    """Training read all of them, and so will the export."""
    first, second, *_ = split_gguf(model, tmp_path)
    runs = Runs(tmp_path, ollama, base=f"gguf:{second}")
    base = runs.base()
    assert base.gguf == first
    assert still_there(base, runs.spec) == base == runs.base()
    data = second.read_bytes()
    whats = {
        "another": f"{first} is another file than the one that this run began with",
        "short": f"{second} ",
        "gone": f"{second} is missing",
    }
    if damage == "gone":
        second.unlink()
    else:
        second.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "another" else data[:-64])
    with pytest.raises(BaseModelError, match="is no longer there"):
        still_there(base, runs.spec)
    with pytest.raises(BaseModelError, match="is no longer there") as caught:
        runs.base()
    assert whats[damage] in caught.value.cause
    assert "new run" in caught.value.remedy


def test_what_was_converted_here_is_made_again(
    ollama: FakeOllama, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache may have been cleared between two attempts."""
    converted = Path(shutil.copyfile(model, tmp_path / "converted.gguf"))
    runs = Runs(tmp_path, ollama, base=f"gguf:{converted}")
    base = replace(runs.base(), name="hf:org/name@" + "a" * 40)
    converted.unlink()

    def again(name: str, *_: object, **__: object) -> BaseGguf:
        shutil.copyfile(model, converted)
        return replace(base, name=name)

    monkeypatch.setattr(base_stage, "resolve_base", again)
    assert still_there(base, runs.spec) == base
    converted.unlink()
    monkeypatch.setattr(base_stage, "resolve_base", lambda *_, **__: replace(base, digest="0"))
    with pytest.raises(BaseModelError, match="another model than the one that this run began"):
        still_there(base, runs.spec)


def test_a_worker_that_was_given_up_settles_nothing(
    ollama: FakeOllama, model: Path, tmp_path: Path
) -> None:
    create(ollama.url, "a:1", model)
    runs = Runs(tmp_path, ollama)

    def lost() -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        base_of_run(runs.directory, runs.spec, confirm=lost)
    assert not runs.directory.base.exists()


def test_a_damaged_record_is_no_reason_to_take_another_base(
    ollama: FakeOllama, model: Path, tmp_path: Path
) -> None:
    create(ollama.url, "a:1", model)
    runs = Runs(tmp_path, ollama)
    runs.base()
    for damage in ("", "{}", json.dumps({"name": "a:1"})):
        runs.directory.base.write_text(damage)
        with pytest.raises(BaseModelError, match="damaged"):
            runs.base()


# In a run


async def _ended(trainer: TrainerClient, dataset: Path) -> dict[str, Any]:
    run_id = await trainer.submit("job", str(dataset))
    status = await trainer.wait(run_id)
    detail = await trainer._call("GET", f"/runs/{run_id}")
    events = (await trainer._call("GET", f"/runs/{run_id}/events"))["events"]
    notes = [event["message"] for event in events if event["kind"] == "note"]
    return {"error": status.error, "notes": notes, "metrics": detail["result"]["metrics"]}


def test_a_run_without_a_base_takes_the_only_model(
    ollama: FakeOllama, model: Path, other: Path, tmp_path: Path
) -> None:
    """Real server, real worker; a data set with nothing in it ends the run after its base."""
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text('{"input": "\\"a\\"", "output": "\\"b\\"", "label": "bad"}\n')
    settings = Settings(
        data_dir=tmp_path / "data", base="", publisher="folder", ollama_host=ollama.url
    )

    async def go() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        async with running_server(settings) as trainer:
            create(ollama.url, "qwen:0.6b", model)
            alone = await _ended(trainer, dataset)
            create(ollama.url, "other:1", other)
            many = await _ended(trainer, dataset)
            await trainer._call("PUT", "/jobs/job", {"baseModel": "other:1"})
            settled = await _ended(trainer, dataset)
        return alone, many, settled

    alone, many, settled = asyncio.run(go())
    assert alone["notes"][0].startswith("the base is qwen:0.6b, the only model in Ollama")
    assert "can be used" in alone["error"]
    assert alone["metrics"]["base"] == "qwen:0.6b"
    assert "2 models that can be trained: other:1, qwen:0.6b" in many["error"]
    assert many["notes"] == []
    assert settled["metrics"]["base"] == "other:1"


@pytest.mark.slow
def test_a_base_in_several_files_is_trained(tmp_path: Path) -> None:
    """The file that its training began with is still found to be that, afterwards."""
    whole = write_scripted(tmp_path / "whole.gguf", {SAYS: ANSWER})
    parts = split_gguf(whole, tmp_path)
    assert len(parts) == 2
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("Kiln?", "".join(ANSWER)), ("Hot?", "".join(ANSWER)), ("Cold?", "No."))
    ]
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(
        data_dir=tmp_path / "data", base=f"gguf:{parts[1]}", publisher="folder", replay="off",
        rounding="stochastic", steps=2, batch_size=2, learning_rate=1e-4,
    )  # fmt: skip

    async def go() -> RunStatus:
        async with running_server(settings, environment={"OMP_NUM_THREADS": "1"}) as trainer:
            return await trainer.wait(await trainer.submit("job", str(dataset)))

    status = asyncio.run(go())
    assert status.status == "completed", status.error
    assert status.result is not None
    metrics = status.result["metrics"]
    assert metrics["base_bytes"] == sum(part.stat().st_size for part in parts)
    model = tiny_gguf.read(Path(status.result["gguf"]))
    assert model.values["general.ollama_trainer.base.digest"] == f"sha256:{metrics['base_digest']}"
    data = b"".join(part.read_bytes() for part in parts)
    assert metrics["base_digest"] == hashlib.sha256(data).hexdigest()
