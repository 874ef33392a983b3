"""Events of a worker: whole lines, from a place on, whatever was cut or written meanwhile."""

from pathlib import Path

import pytest

from ollama_trainer.queue.tail import EventTail
from ollama_trainer.records import Event, Progress, Stage
from ollama_trainer.workspace import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def note(text: str) -> Event:
    return Event.now("note", text)


def progress(fraction: float) -> Event:
    return Event.now("progress", progress=Progress(stage=Stage.TRAIN, fraction=fraction))


def said(events: list[Event]) -> list[str]:
    return [event.message for event in events]


def test_each_event_is_read_once_and_a_successor_goes_on(directory: RunDirectory) -> None:
    tail = EventTail(directory.events, 0)
    assert tail.read() == []
    directory.append_event(note("a"))
    directory.append_event(note("b"))
    assert said(tail.read()) == ["a", "b"]
    assert tail.read() == []
    directory.append_event(note("c"))
    assert said(EventTail(directory.events, tail.offset).read()) == ["c"]


def test_half_a_line_is_left_until_it_is_whole(directory: RunDirectory) -> None:
    line = note("a").model_dump_json().encode() + b"\n"
    tail = EventTail(directory.events, 0)
    directory.events.write_bytes(line[:20])
    assert (tail.read(), tail.offset) == ([], 0)
    directory.events.write_bytes(line)
    assert said(tail.read()) == ["a"]


def test_a_line_that_a_killed_worker_left_spoils_no_other(directory: RunDirectory) -> None:
    directory.events.write_bytes(b'{"time": "20')
    directory.append_event(note("after"))
    assert said(EventTail(directory.events, 0).read()) == ["after"]


def test_a_file_that_a_power_cut_made_shorter_is_read_on(directory: RunDirectory) -> None:
    tail = EventTail(directory.events, 10_000)
    directory.append_event(note("lost"))
    assert tail.read() == []
    directory.append_event(note("new"))
    assert said(tail.read()) == ["new"]


def test_a_line_of_megabytes_is_read(directory: RunDirectory) -> None:
    directory.append_event(note("x" * 3_000_000))
    directory.append_event(note("y"))
    told = EventTail(directory.events, 0).rest()
    assert [len(event.message) for event in told] == [3_000_000, 1]


def test_progress_is_thinned_and_its_last_is_kept(directory: RunDirectory) -> None:
    tail = EventTail(directory.events, 0)
    for step in range(1, 10):
        directory.append_event(progress(step / 10))
    directory.append_event(note("between"))
    for step in range(1, 4):
        directory.append_event(progress(step / 100))
    told = tail.read()
    assert [event.kind for event in told] == ["progress", "note"]
    assert told[0].progress is not None
    assert told[0].progress.fraction == 0.9
    (last,) = tail.rest()
    assert last.progress is not None
    assert last.progress.fraction == 0.03
