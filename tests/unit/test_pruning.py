"""What is removed of finished runs, and what never is."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ollama_trainer.manifests import write_manifest
from ollama_trainer.queue.database import Database
from ollama_trainer.queue.pruning import Pruner
from ollama_trainer.queue.publications import PublicationStore
from ollama_trainer.queue.rows import Run, Submission
from ollama_trainer.queue.store import RunStore
from ollama_trainer.records import ErrorInfo, RunResult
from ollama_trainer.settings import Settings
from ollama_trainer.workspace import DataDirectory, RunDirectory

ERROR = ErrorInfo(code="publish", cause="refused")
KEPT = {"dataset.jsonl", "worker.log", "events.jsonl", "Modelfile", "result.json", "stages"}


class Fixture:
    """A store, and finished runs with all the files that there can be."""

    def __init__(self, path: Path) -> None:
        self.data = DataDirectory(path)
        self.data.create()
        self.database = Database(self.data.database)
        self.store = RunStore(self.database)
        self.publications = PublicationStore(self.database)

    async def run(
        self, run_id: str, *, publisher: str = "ollama", good: bool = True, ends: str = "completed"
    ) -> Run:
        wanted = Submission(
            run_id=run_id, job_id="job", dataset_ref="/d", fingerprint="f", publisher=publisher
        )
        run, _ = await self.store.accept(wanted, wanted.spec(Settings()))
        run, _ = await self.store.claim(run)
        directory = self.data.run(run_id)
        for name in (*KEPT - {"stages"}, "model.gguf", "model.gguf.partial"):
            directory.path.mkdir(parents=True, exist_ok=True)
            (directory.path / name).write_text(name)
        for name in ("adapter", "base", "statistics", "checkpoints/step-3", "checkpoints.partial"):
            (directory.path / name).mkdir(parents=True)
            (directory.path / name / "file").write_text(name)
        directory.manifest("train").parent.mkdir()
        directory.manifest("train").write_text("{}")
        if good:
            files = [directory.gguf, directory.modelfile]
            write_manifest(directory.manifest("modelfile"), "k", directory.path, files)
        ref = str(directory.gguf) if publisher == "folder" else f"tuned-job:{run_id}"
        if ends == "completed":
            await self.store.complete(run, RunResult(status="completed", output_model_ref=ref))
        else:
            await self.store.fail(run, ERROR)
        found = self.store.get(run_id)
        assert found is not None
        return found

    async def sweep(self, keep_last: int) -> None:
        await Pruner(self.database, self.publications, self.data, keep_last).sweep()

    def has(self, run_id: str) -> set[str]:
        """Files and folders of a run beside those that always stay."""
        names = {path.name for path in self.data.run(run_id).path.iterdir()}
        assert names >= KEPT
        return names - KEPT


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    fixture.database.close()


async def test_scratch_goes_at_once_and_models_with_age(runs: Fixture) -> None:
    for number in range(4):
        await runs.run(f"r{number}")
    await runs.sweep(2)
    model = {"adapter", "model.gguf"}
    assert [runs.has(f"r{n}") for n in range(4)] == [set(), set(), model, model]
    await runs.sweep(2)
    assert [runs.has(f"r{n}") for n in range(4)] == [set(), set(), model, model]


async def test_a_gguf_that_was_not_found_good_goes(runs: Fixture) -> None:
    await runs.run("r1", good=False, ends="failed")
    await runs.run("r2", ends="failed")
    await runs.sweep(9)
    assert runs.has("r1") == {"adapter"}
    assert runs.has("r2") == {"adapter", "model.gguf"}, "it can be published again"


async def test_a_completed_run_without_manifests_keeps_its_model(runs: Fixture) -> None:
    """An earlier version of the program wrote none."""
    await runs.run("r1", good=False)
    await runs.sweep(9)
    assert runs.has("r1") == {"adapter", "model.gguf"}


async def test_the_model_that_was_published_last_stays(runs: Fixture) -> None:
    await runs.run("r1")
    old = await runs.run("r2")
    await runs.run("r3", ends="failed")
    await runs.sweep(0)
    assert (runs.has("r1"), runs.has("r2")) == (set(), {"adapter", "model.gguf"})
    assert runs.has("r3") == set()
    again = await runs.publications.request(old, "ollama")
    await runs.publications.finish(again, "tuned-job:r2", None)
    await runs.run("r4")
    await runs.sweep(0)
    assert (runs.has("r2"), runs.has("r4")) == (set(), {"adapter", "model.gguf"})


async def test_a_failed_run_that_was_published_later_counts_as_published(runs: Fixture) -> None:
    await runs.run("r1")
    failed = await runs.run("r2", ends="failed")
    again = await runs.publications.request(failed, "ollama")
    await runs.publications.finish(again, "tuned-job:r2", None)
    await runs.sweep(0)
    assert (runs.has("r1"), runs.has("r2")) == (set(), {"adapter", "model.gguf"})


async def test_a_model_in_its_folder_is_the_result_and_stays(runs: Fixture) -> None:
    first = await runs.run("r1", publisher="folder")
    second = await runs.run("r2")
    again = await runs.publications.request(second, "folder")
    await runs.publications.finish(again, str(runs.data.run("r2").gguf), None)
    await runs.run("r3")
    await runs.sweep(0)
    assert runs.has("r1") == runs.has("r2") == {"model.gguf"}
    assert first.output_model_ref == str(RunDirectory(runs.data.run("r1").path).gguf)


async def test_what_is_being_published_is_left_alone(runs: Fixture) -> None:
    run = await runs.run("r1")
    await runs.run("r2")
    await runs.publications.request(run, "ollama")
    await runs.sweep(0)
    assert {"adapter", "model.gguf", "model.gguf.partial"} <= runs.has("r1")
