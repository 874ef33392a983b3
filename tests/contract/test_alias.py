"""The alias of a job follows its last model, and takes nothing from anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_trainer.errors import OllamaUnreachable
from ollama_trainer.ollama.api import OllamaApi
from ollama_trainer.testing.fake_ollama import FakeOllama

from .conftest import Files, Server
from .made import Runs


@pytest.fixture
def runs(server: Server, tmp_path: Path) -> Runs:
    return Runs(server, tmp_path)


def not_done(runs: Runs) -> list[str]:
    return [note for note in runs.notes if note.startswith("not done: ")]


def test_it_stands_for_the_model_that_was_published_last(server: Server, runs: Runs) -> None:
    alias = runs.name("job", "latest")
    first = runs.publish("job", "r1")
    assert runs.digests()[alias] == runs.digests()[first]
    runs.load(alias)
    before = runs.digests()
    assert runs.in_memory() >= {before[first]}
    second = runs.publish("job", "r2")
    after = runs.digests()
    assert sorted(after) == sorted([alias, first, second])
    assert after[alias] == after[second] != before[first]
    assert after[first] == before[first], "its own name is for ever"
    assert before[first] not in runs.in_memory(), "nothing of the old one is left in memory"
    assert not_done(runs) == []
    # Who asks for an older one to be published again wants to use it.
    assert runs.publish("job", "r1") == first
    assert runs.digests() == after | {alias: before[first]}


def test_each_job_has_its_own(runs: Runs) -> None:
    """Whatever the jobs are called."""
    jobs = ["job", "Job", "../../job", "job/e2b:12b", "😀"]
    for number, job in enumerate(jobs):
        runs.publish(job, f"r{number}")
        assert not_done(runs) == []
    digests = runs.digests()
    assert len(digests) == 2 * len(jobs)
    for number, job in enumerate(jobs):
        assert digests[runs.name(job, "latest")] == digests[runs.name(job, f"r{number}")]


@pytest.mark.parametrize("holder", ["foreign", "built on ours", "another job's", "orphan"])
def test_who_has_that_name_keeps_it(server: Server, runs: Runs, holder: str) -> None:
    """A model that somebody else made, or made of one of ours, is not overwritten."""
    alias = runs.name("job", "latest")
    if holder == "foreign":
        runs.publish_foreign(alias)
    elif holder == "built on ours":
        first = runs.publish("job", "r0")
        body = {"model": alias, "from": first, "system": "You are mine.", "stream": False}
        server.ask("POST", "/api/create", body).raise_for_status()
    elif holder == "another job's":
        other = runs.publish("other", "r0")
        server.ask("POST", "/api/copy", {"source": other, "destination": alias})
    else:
        server.ask("DELETE", "/api/delete", {"model": runs.publish("job", "r0")})
    before = runs.digests()
    ref = runs.publish("job", "r1")
    assert ref == runs.name("job", "r1"), "the run is complete all the same"
    assert {name: digest for name, digest in runs.digests().items() if name != ref} == before
    (note,) = not_done(runs)
    assert alias in note
    assert f"ollama rm {alias}" in note


def test_a_model_that_does_not_say_whose_it_is_gets_none(server: Server, runs: Runs) -> None:
    name = server.name()
    runs.publish_foreign(name)
    assert server.names() == [name]


def test_an_alias_that_cannot_be_moved_fails_nothing(
    fake: FakeOllama, tiny_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(Server(fake.url, tiny_files, fake), tmp_path)
    copy = OllamaApi.copy

    def goes_away(api: OllamaApi, source: str, destination: str) -> None:
        if destination.endswith(":latest"):
            raise OllamaUnreachable("it went away", "Start it.")
        copy(api, source, destination)

    monkeypatch.setattr(OllamaApi, "copy", goes_away)
    ref = runs.publish("job", "r1")
    assert list(runs.digests()) == [ref]
    (note,) = not_done(runs)
    assert "it went away" in note
    monkeypatch.undo()
    assert runs.publish("job", "r1") == ref
    assert len(set(runs.digests().values())) == 1
    assert len(runs.digests()) == 2


def test_a_model_that_is_taken_back_leaves_its_alias_to_the_one_before(
    server: Server, runs: Runs
) -> None:
    alias = runs.name("job", "latest")
    names = [runs.publish("job", run) for run in ("r1", "r2", "r3")]
    runs.publish("other", "r4")
    before = runs.digests()
    runs.load(alias)
    runs.publisher().withdraw(names[2], named=True)
    after = {name: digest for name, digest in before.items() if name != names[2]}
    assert runs.digests() == after | {alias: before[names[1]]}
    assert before[names[2]] not in runs.in_memory()
    # It stands for another one now.
    runs.publisher().withdraw(names[0], named=True)
    assert runs.digests()[alias] == before[names[1]]
    runs.publisher().withdraw(names[1], named=True)
    assert sorted(runs.digests()) == [runs.name("other", "latest"), runs.name("other", "r4")]


def test_taking_back_leaves_what_others_put_there(server: Server, runs: Runs) -> None:
    alias = runs.name("job", "latest")
    ref = runs.publish("job", "r1")
    body = {"model": alias, "from": ref, "system": "You are mine.", "stream": False}
    server.ask("POST", "/api/create", body).raise_for_status()
    before = runs.digests()
    runs.publisher().withdraw(ref, named=True)
    assert runs.digests() == {alias: before[alias]}
