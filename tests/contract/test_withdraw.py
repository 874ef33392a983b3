"""What an attempt at publishing left is taken back, and nothing else."""

from __future__ import annotations

import pytest

from ollama_trainer import publishers
from ollama_trainer.errors import LeaseLost, OllamaUnreachable
from ollama_trainer.modelfile import modelfile_for
from ollama_trainer.publishers import Publisher, PublisherOptions
from ollama_trainer.testing.fake_ollama import FakeOllama

from .conftest import Server

MODELFILE = modelfile_for(stops=["<|im_end|>"], num_ctx=512, num_predict=100)


class Stop(BaseException):
    """As a signal ends a worker."""


def publisher(url: str, attempt: int = 1, *, stop_at: str = "", steps: list[str] | None = None
) -> Publisher:  # fmt: skip
    def confirm(step: str) -> None:
        if steps is not None:
            steps.append(step)
        if step == stop_at:
            raise LeaseLost("taken over")

    options = PublisherOptions(ollama_host=url, num_thread=2, attempt=attempt, confirm=confirm)
    return publishers.get("ollama", options)


def publish(server: Server, name: str, attempt: int = 1, **more: str) -> str:
    one = publisher(server.url, attempt, **more)  # type: ignore[arg-type]
    return one.publish(server.files.protected, MODELFILE, name, lambda *_: None).ref


def leave_a_trial(server: Server, name: str, attempt: int) -> str:
    """What a killed attempt leaves: a model under its name for trial, never given another."""
    publish(server, name, attempt)
    one = publisher(server.url, attempt)
    trials: list[str] = []

    def stop(_fraction: float, text: str) -> None:
        if text == "asking the model":
            trials.extend(set(server.names()) - {name})
            server.ask("POST", "/api/copy", {"source": trials[0], "destination": f"{name}-kept"})
            raise Stop

    server.ask("DELETE", "/api/delete", {"model": name})
    with pytest.raises(Stop):
        one.publish(server.files.protected, MODELFILE, name, stop)
    assert server.names() == [f"{name}-kept"], "whoever is stopped tidies up"
    server.ask("POST", "/api/copy", {"source": f"{name}-kept", "destination": trials[0]})
    server.ask("DELETE", "/api/delete", {"model": f"{name}-kept"})
    return trials[0]


def test_the_name_comes_after_a_last_question(server: Server) -> None:
    steps: list[str] = []
    name = server.name()
    one = publisher(server.url, steps=steps)
    one.publish(server.files.protected, MODELFILE, name, lambda *_: None)
    assert steps == ["trial", "name"]


@pytest.mark.parametrize("step", ["trial", "name"])
def test_who_has_lost_its_lease_publishes_nothing(server: Server, step: str) -> None:
    with pytest.raises(LeaseLost):
        publish(server, server.name(), stop_at=step)
    assert server.names() == []
    assert server.loaded() == []


def test_the_next_attempt_removes_what_a_killed_one_left(server: Server) -> None:
    name = server.name()
    trial = leave_a_trial(server, name, attempt=3)
    assert trial.endswith("-3")
    publish(server, name, attempt=4)
    assert server.names() == [name]


def test_a_lost_attempt_leaves_its_successors_trial_alone(server: Server) -> None:
    name = server.name()
    trial = leave_a_trial(server, name, attempt=3)
    publish(server, name, attempt=2)
    assert server.names() == sorted([name, trial])


def test_withdrawing_removes_trials_and_the_name(server: Server) -> None:
    name, other = server.name(), server.name("other")
    trial = leave_a_trial(server, name, attempt=3)
    publish(server, name, attempt=2)
    publish(server, other)
    assert server.names() == sorted([name, other, trial])
    publisher(server.url).withdraw(name, named=True)
    assert server.names() == [other]
    publisher(server.url).withdraw(name, named=True)


def test_a_name_that_was_never_given_is_left_alone(server: Server) -> None:
    name = server.name()
    publish(server, name)
    publisher(server.url).withdraw(name, named=False)
    assert server.names() == [name]


def test_an_ollama_that_is_away_is_said(fake: FakeOllama) -> None:
    fake.go_away()
    with pytest.raises(OllamaUnreachable):
        publisher(fake.url).withdraw("a:b", named=True)


def test_a_trial_that_could_not_be_deleted_goes_with_the_next(server: Server) -> None:
    if server.fake is None:
        pytest.skip("a real one cannot be made to vanish")
    name = server.name()
    server.fake.faults.vanish_at = "/api/delete"
    assert publish(server, name, attempt=1) == name
    server.fake.faults.vanish_at = ""
    server.fake.come_back()
    assert len(server.names()) == 2
    assert publish(server, name, attempt=2) == name
    assert server.names() == [name]


def test_the_folder_has_nothing_to_take_back() -> None:
    publishers.get("folder", PublisherOptions()).withdraw("a:b", named=True)
