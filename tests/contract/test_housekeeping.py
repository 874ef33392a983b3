"""Removing this program's models from Ollama, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.housekeeping import Stock
from ollama_trainer.manifests import write_manifest
from ollama_trainer.ollama import open_api
from ollama_trainer.ollama.host import resolve
from ollama_trainer.reports import ModelsReport, RemovalReport, Told
from ollama_trainer.testing.fake_ollama import FakeOllama
from ollama_trainer.workspace import DataDirectory

from .conftest import Files, Server
from .made import Runs, written


@pytest.fixture
def runs(server: Server, tmp_path: Path) -> Runs:
    return Runs(server, tmp_path)


@contextmanager
def stock(runs: Runs) -> Iterator[Stock]:
    endpoint = resolve(runs.server.url)
    with open_api(endpoint) as api:
        yield Stock(api, endpoint.url, DataDirectory(runs.folder / "data"))


def job(runs: Runs, name: str = "job") -> str:
    """An id that no other test's models in a shared server have."""
    return f"{runs.server.prefix}{name}"


def listed(runs: Runs, name: str = "job") -> ModelsReport:
    with stock(runs) as held:
        return held.models(job(runs, name))


def collected(runs: Runs, keep: int, *, dry_run: bool = False, name: str = "job") -> RemovalReport:
    with stock(runs) as held:
        return held.collect(keep, job(runs, name), dry_run=dry_run)


def removed(runs: Runs, *names: str) -> RemovalReport:
    with stock(runs) as held:
        return held.remove(names)


def copy(server: Server, source: str, destination: str) -> str:
    body = {"source": source, "destination": destination}
    server.ask("POST", "/api/copy", body).raise_for_status()
    return destination


def sizes(server: Server) -> dict[str, int]:
    return {m["name"]: m["size"] for m in server.ask("GET", "/api/tags").json()["models"]}


def test_what_each_version_costs_is_told(server: Server, runs: Runs) -> None:
    first, second = (runs.publish(job(runs), run) for run in ("r1", "r2"))
    mine = copy(server, first, server.name("my-own"))
    runs.publish(job(runs, "other"), "r3")
    runs.load(second)
    newest, oldest = listed(runs).models
    assert (newest.name, oldest.name) == (second, first)
    assert (newest.alias, oldest.alias) == (runs.name(job(runs), "latest"), "")
    assert (newest.copies, oldest.copies) == ((), (mine,))
    assert (newest.job, newest.run) == (job(runs), "r2")
    assert (newest.loaded, oldest.loaded) == (True, False)
    size = sizes(server)
    assert (newest.n_bytes, oldest.n_bytes) == (size[second], size[first])
    assert newest.frees_bytes == size[second]
    assert oldest.frees_bytes == 0, "its copy has the same weights"
    assert newest.made_at > oldest.made_at


def test_the_base_is_told_by_its_name(server: Server, runs: Runs) -> None:
    base = server.name("base")
    runs.publish_foreign(base)
    (shown,) = [
        line for line in server.show(base)["modelfile"].split("\n") if line.startswith("FROM /")
    ]
    digest = shown.rpartition("sha256-")[2]
    runs.publish(job(runs), "r1", base__digest=f"sha256:{digest}")
    runs.publish(job(runs), "r2", base__digest="sha256:" + "ab" * 32)
    unknown, known = listed(runs).models
    # A real one holds the same file by the names of others, too.
    assert known.base == base or known.base in sizes(server)
    assert unknown.base == server.show(unknown.name)["model_info"].get(
        "general.base_model.0.name", "ab" * 6
    )


def test_the_newest_stay_and_what_has_a_second_name(server: Server, runs: Runs) -> None:
    names = [runs.publish(job(runs), f"r{number}") for number in range(6)]
    runs.publish(job(runs), "r0")  # the alias goes back to the oldest
    copy(server, names[1], server.name("my-own"))
    runs.publish(job(runs, "other"), "r7")
    before, digests = runs.digests(), {m.name: m for m in listed(runs).models}
    expected = sorted(set(before) - {names[2]})

    dry = collected(runs, 3, dry_run=True)
    assert runs.digests() == before, "a dry run changes nothing"
    real = collected(runs, 3)
    assert sorted(runs.digests()) == expected
    assert real == dry.model_copy(update={"dry_run": False})
    assert real.removed == (names[2],)
    assert real.freed_bytes == digests[names[2]].n_bytes
    assert real.at_restart_bytes == 0
    assert {told.name: told.what for told in real.kept} == {
        names[5]: "one of its job's newest 3",
        names[4]: "one of its job's newest 3",
        names[3]: "one of its job's newest 3",
        names[1]: f"also called {server.name('my-own')}",
        names[0]: f"also called {runs.name(job(runs), 'latest')}",
    }
    assert collected(runs, 3).removed == ()


def test_nothing_that_others_made_is_touched(server: Server, runs: Runs) -> None:
    """Not by the prefix of their names, and not where their weights are ours."""
    ours = runs.publish(job(runs), "r1")
    foreign = runs.name(job(runs), "by-hand")
    runs.publish_foreign(foreign)
    built = runs.name(job(runs), "built-on-ours")
    body = {"model": built, "from": ours, "system": "You are mine.", "stream": False}
    server.ask("POST", "/api/create", body).raise_for_status()
    elsewhere = copy(server, ours, runs.name(job(runs), "copied"))
    before = runs.digests()
    assert [model.name for model in listed(runs).models] == [ours]
    assert collected(runs, 0).removed == ()
    for name in (foreign, built, elsewhere):
        with pytest.raises(InvalidRequest, match="not made by this program"):
            removed(runs, name)
    with pytest.raises(InvalidRequest, match="has no model"):
        removed(runs, server.name("nothing"))
    assert runs.digests() == before
    server.ask("DELETE", "/api/delete", {"model": elsewhere})
    gone = removed(runs, ours, runs.name(job(runs), "latest"))
    assert sorted(runs.digests()) == sorted([foreign, built])
    assert gone.freed_bytes == 0, "the model that was built on it has its weights"
    runs.load(built)


def test_a_version_goes_only_together_with_its_alias(server: Server, runs: Runs) -> None:
    first, second = (runs.publish(job(runs), run) for run in ("r1", "r2"))
    alias = runs.name(job(runs), "latest")
    before = runs.digests()
    with pytest.raises(InvalidRequest, match=f"{second} is also called {alias}") as raised:
        removed(runs, first, second)
    assert f"ollama-trainer rm {alias} {second}" in raised.value.remedy
    assert runs.digests() == before, "all or nothing"
    runs.load(second)
    size = sizes(server)
    gone = removed(runs, second.upper(), alias.removesuffix(":latest"))
    assert gone.removed == (alias, second)
    assert gone.freed_bytes == size[second]
    assert list(runs.digests()) == [first]
    assert before[second] not in runs.in_memory(), "it is unloaded first"
    # The run's file is as it was: it can be published again.
    assert runs.publish(job(runs), "r2") == second
    assert runs.digests() == before


def test_what_is_in_memory_stays(runs: Runs) -> None:
    first, _ = (runs.publish(job(runs), run) for run in ("r1", "r2"))
    runs.load(first)
    report = collected(runs, 1)
    assert report.removed == ()
    assert Told(name=first, what="in memory now") in report.kept


def test_uploads_that_ollama_wrote_anew_are_told(
    server: Server, runs: Runs, tmp_path: Path
) -> None:
    """Some versions keep the file as it was uploaded until they are restarted."""
    for run in ("r1", "r2"):
        own = {"version": "1", "run": run, "job": job(runs), "model": runs.name(job(runs), run)}
        path = runs.folder / run / "model.gguf"
        written(path, runs.source, own, unsorted=True)
        directory = DataDirectory(tmp_path / "data").run(run)
        directory.gguf.parent.mkdir(parents=True)
        directory.gguf.write_bytes(path.read_bytes())
        write_manifest(directory.manifest("modelfile"), "k", directory.path, [directory.gguf])
        runs.publish(job(runs), run)
    is_kept_as_it_is = server.fake is not None and server.fake.profile == "0.40"
    upload = 0 if is_kept_as_it_is else path.stat().st_size
    newest, oldest = listed(runs).models
    assert (newest.upload_bytes, oldest.upload_bytes) == (upload, upload)
    dry = collected(runs, 1, dry_run=True)
    real = collected(runs, 1)
    assert real.removed == (runs.name(job(runs), "r1"),)
    assert (real.freed_bytes, real.at_restart_bytes) == (oldest.n_bytes, upload)
    assert dry.model_copy(update={"dry_run": False}) == real


def test_jobs_with_hostile_ids_are_kept_apart(
    fake: FakeOllama, tiny_files: Files, tmp_path: Path
) -> None:
    runs = Runs(Server(fake.url, tiny_files, fake), tmp_path)
    jobs = ["../../../etc/12b", "\x1b[31m\n", "\\x1b[31m\n", "A"]
    for number, each in enumerate(jobs):
        for run in (f"a{number}", f"b{number}"):
            runs.publish(each, run)
    with stock(runs) as held:
        assert len(held.models().models) == 2 * len(jobs)
        for number, each in enumerate(jobs):
            assert [m.run for m in held.models(each).models] == [f"b{number}", f"a{number}"]
        assert len(held.collect(1, dry_run=False).removed) == len(jobs)
    with stock(runs) as held:
        assert [m.run[0] for m in held.models().models] == ["b"] * len(jobs)


def test_what_changes_meanwhile_is_left_alone(
    fake: FakeOllama, tiny_files: Files, tmp_path: Path
) -> None:
    runs = Runs(Server(fake.url, tiny_files, fake), tmp_path)
    first, second = (runs.publish(job(runs), run) for run in ("r1", "r2"))
    with stock(runs) as held:
        copy(runs.server, first, "new-name:1")
        report = held.collect(1, dry_run=False)
    assert report.removed == ()
    assert report.failed == (Told(name=first, what="it is also called new-name:1 now"),)
    assert report.freed_bytes == 0
    assert {first, second} <= set(runs.digests())
