"""Looking at a data set without training: by command, over HTTP, and what a run leaves of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import DatasetError, DiskFull
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.pipeline.dataset import inspect
from ollama_trainer.prompts import open_tokenizer
from ollama_trainer.records import DatasetOptions, DatasetReport, TrainingOptions
from tests.tiny_models import tiny_model, write_gguf

from .conftest import Api, StartApi, WriteRows, until

ROOT = Path(__file__).parents[2]
FEEDBACK = ROOT / "examples" / "feedback.jsonl"
INSPECT = (sys.executable, "-m", "ollama_trainer", "dataset", "inspect")


def row(question: str, answer: str, label: str = "good") -> str:
    fields = {"input": json.dumps(question), "output": json.dumps(answer), "label": label}
    return json.dumps(fields) + "\n"


def look(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*INSPECT, *map(str, arguments)], capture_output=True, text=True)


def report_on(path: Path, base: str = "smollm2", **options: Any) -> DatasetReport:
    return inspect(path, base, TrainingOptions(), DatasetOptions(**options), path.parent / "cache")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Rows of every fate."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        row("Who mends bicycles?", "Oda does.")
        + row("Execute your task.", "Done.")
        + row("Who mends bicycles?", "Nobody does.", "bad")
        + row("Where is the key?", "In the box; password: Rf7-kk2-Lm9.")
        + row("Who mends bicycles?", "Oda does.")
        + "not JSON\n",
        encoding="utf-8",
    )
    return path


def test_the_command_tells_all_of_it_as_json(mixed: Path) -> None:
    """What a script reads before it starts a run."""
    done = look(mixed, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["format"] == "from_feedback"
    assert (report["rows_read"], report["rows_used"]) == (6, 2)
    assert report["dropped"] == {
        "the input is a placeholder": {"count": 1, "lines": [2]},
        "the line is not JSON": {"count": 1, "lines": [6]},
        "repeats an earlier row": {"count": 1, "lines": [5]},
        "no answer of the other kind to the same input": {"count": 1, "lines": [4]},
    }
    assert report["method"] == "dpo"
    assert report["method_reason"] == (
        "2 good and 1 bad answers; 1 of 2 inputs with a good answer have a bad one, which makes 1 "
        "pairs"
    )
    assert any("not possible yet" in warning for warning in report["warnings"])
    (sample,) = report["samples"]
    assert sample["prompt"].endswith("<|im_start|>user\nWho mends bicycles?<|im_end|>\n"
                                     "<|im_start|>assistant\n")  # fmt: skip
    assert sample["trained"] == "Oda does.<|im_end|>"
    assert sample["rejected"] == "Nobody does.<|im_end|>"
    assert report["secrets"] == {"password": 1}
    assert report["steps"] == 20


def test_the_method_can_be_set(mixed: Path) -> None:
    """What a person decides goes before what the rows suggest."""
    report = json.loads(look(mixed, "--json", "--method", "sft").stdout)
    assert (report["method"], report["method_reason"]) == ("sft", "asked for")
    assert report["rows_used"] == 2
    assert report["dropped"]["labelled bad"] == {"count": 1, "lines": [3]}
    samples = "".join(sample["trained"] for sample in report["samples"])
    assert "[REDACTED:password]" in samples
    assert "Rf7" not in json.dumps(report)
    done = look(mixed, "--method", "kto", "--secrets", "refuse")
    assert done.returncode == 1
    assert done.stderr == (
        "error: The data set has secrets (password: 1; line 4). Take them out, or set secrets to "
        "redact.\n"
    )


def test_a_person_reads_it_as_text() -> None:
    """The one look before a training that takes minutes."""
    done = look(FEEDBACK)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == "format    from_feedback"
    assert lines[1].startswith("rows      180 of 180 are used (180 answers")
    assert lines[2].startswith("method    kto: 150 good and 30 bad answers")
    assert sum(line.startswith("⟦") and line.endswith("<|im_end|>⟧") for line in lines) == 10


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.jsonl", "does not exist"),
        (".", "is a directory"),
        ("empty.jsonl", "is empty"),
        ("pipe", "not a plain file"),
    ],
)
def test_what_is_no_data_set_is_told(tmp_path: Path, name: str, words: str) -> None:
    """The likely mistakes, in words and at once."""
    (tmp_path / "empty.jsonl").touch()
    os.mkfifo(tmp_path / "pipe")
    done = look(tmp_path / name)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_without_its_base_a_data_set_can_be_looked_at(mixed: Path, tmp_path: Path) -> None:
    """Nothing is left out in silence: the report says what could not be counted."""
    report = report_on(mixed, f"gguf:{tmp_path}/none.gguf", method="sft")
    assert report.tokens is None
    assert report.warnings[0].startswith("tokens are not counted")
    assert report.samples[0].trained == "Oda does."
    assert report.rows_used == 2


def test_tokens_are_counted_as_the_base_counts(tmp_path: Path) -> None:
    """Characters would say nothing of what fits into its context."""
    path = tmp_path / "rows.jsonl"
    path.write_text(row("a", "b") + row("a" * 300, "b"), encoding="utf-8")
    gguf = write_gguf(tiny_model(), tmp_path / "base.gguf")
    report = inspect(
        path, f"gguf:{gguf}", TrainingOptions(max_length=64), DatasetOptions(), tmp_path
    )
    assert report.dropped["longer than 64 tokens"].lines == (2,)
    (sample,) = report.samples
    assert report.tokens == report.longest_tokens == sample.n_tokens
    assert 0 < (report.tokens or 0) < 64


async def test_over_http_it_is_the_same(api: Api, mixed: Path) -> None:
    """An app shows it before it starts a run."""
    code, report = await api.call("POST", "/datasets/inspect", json={"datasetRef": str(mixed)})
    assert code == 200
    assert report == json.loads(look(mixed, "--json").stdout)
    body = {"datasetRef": str(mixed), "method": "sft", "maxLength": 16}
    code, reply = await api.call("POST", "/datasets/inspect", json=body)
    assert (code, reply["error_code"]) == (400, "dataset")
    assert "longer than 16 tokens: 2" in reply["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "field 'datasetRef' is not valid"),
        ({"datasetRef": 7}, "field 'datasetRef' is not valid"),
        ({"datasetRef": "/x", "method": "magic"}, "field 'method' is not valid"),
        ({"datasetRef": "rows.jsonl"}, "not an absolute path"),
        ({"datasetRef": "/none/rows.jsonl"}, "does not exist"),
        ([], "not a JSON object"),
    ],
)
async def test_what_cannot_be_looked_at_is_refused(api: Api, body: object, words: str) -> None:
    code, reply = await api.call("POST", "/datasets/inspect", json=body)
    assert code == 400
    assert words in reply["error"]


async def test_a_page_of_another_site_cannot_ask(api: Api, mixed: Path) -> None:
    """A form may post text to any server; what it would show are the rows of a file."""
    body = json.dumps({"datasetRef": str(mixed)})
    code, reply = await api.call("POST", "/datasets/inspect", data=body)
    assert (code, reply["error_code"]) == (400, "invalid_request")
    assert "Content-Type" in reply["error"]


async def test_data_sets_outside_of_the_roots_are_refused(
    start_api: StartApi, mixed: Path, tmp_path: Path
) -> None:
    """What must not be trained on must not be shown either."""
    (tmp_path / "inside").mkdir()
    api = await start_api(dataset_roots=(tmp_path / "inside",))
    code, reply = await api.call("POST", "/datasets/inspect", json={"datasetRef": str(mixed)})
    assert (code, reply["error_code"]) == (400, "dataset")
    assert "outside of the directories" in reply["error"]


async def test_the_server_answers_meanwhile_and_leaves_no_process(
    api: Api, rows: WriteRows, tmp_path: Path
) -> None:
    """A large file takes seconds; polls must not wait for it."""
    large = tmp_path / "large.jsonl"
    with large.open("w", encoding="utf-8") as file:
        file.writelines(row(f"Question {number}?", f"Answer {number}.") for number in range(60_000))
    run = await api.submit(rows())
    body = {"datasetRef": str(large)}
    looking = asyncio.create_task(api.call("POST", "/datasets/inspect", json=body))
    await until(_inspectors)
    assert (await api.end(run))["status"] == "completed"
    assert not looking.done()
    code, report = await looking
    assert (code, report["rows_used"]) == (200, 60_000)
    assert report["tokens_estimated"]
    assert not _inspectors()


def _inspectors() -> list[int]:
    found = []
    for child in psutil.Process().children():
        try:
            if "ollama_trainer.inspector" in child.cmdline():
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


async def test_a_run_that_read_no_data_set_has_no_report(api: Api, rows: WriteRows) -> None:
    run = await api.submit(rows("fail"))
    await api.end(run)
    code, reply = await api.call("GET", f"/runs/{run}/dataset")
    assert (code, reply["error_code"]) == (404, "no_report")
    code, reply = await api.call("GET", "/runs/nobody/dataset")
    assert (code, reply["error_code"]) == (404, "unknown_run")


async def test_a_runs_report_is_served(api: Api, rows: WriteRows, mixed: Path) -> None:
    """Why a row is not in the model, asked weeks later."""
    run = await api.submit(rows())
    await api.end(run)
    report = report_on(mixed)
    path = api.data_dir / "runs" / run / "dataset.json"
    path.write_text(report.model_dump_json(), encoding="utf-8")
    code, reply = await api.call("GET", f"/runs/{run}/dataset")
    assert code == 200
    assert DatasetReport.model_validate(reply) == report


async def test_options_travel_with_a_run(api: Api, rows: WriteRows) -> None:
    """Each run has its own; what it does not say is as the server is set."""
    run = await api.submit(rows(), method="sft", secrets="refuse", redactEmails=True)
    await api.end(run)
    _, detail = await api.call("GET", f"/runs/{run}")
    assert detail["spec"]["dataset"] == {
        "method": "sft", "secrets": "refuse", "redact_emails": True, "corrections": False,
    }  # fmt: skip
    refused = await api.submit(rows(), secrets="keep")
    status = await api.end(refused)
    assert status["status"] == "failed"
    assert "field 'secrets' is not valid" in status["error"]


def test_json_is_what_stands_in_the_rows(tmp_path: Path) -> None:
    """No picture is drawn for a word, and no terminal decides which letters there are."""
    path = tmp_path / "rows.jsonl"
    path.write_text(row("Say :smile: [b]now[/b] é😀", "yes"), encoding="utf-8")
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [*INSPECT, path, "--json"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        (sample,) = json.loads(done.stdout.decode())["samples"]
        assert "Say :smile: [b]now[/b] é😀" in sample["prompt"]


def test_a_terminal_obeys_no_row(tmp_path: Path) -> None:
    """A row may hold what would clear the screen or set the clipboard."""
    path = tmp_path / "rows.jsonl"
    path.write_text(row("\x1b]0;title\x07 q", "a\x1b[2J"), encoding="utf-8")
    done = subprocess.run(
        [*INSPECT, path], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert rb"\x1b]0;title\x07 q" in done.stdout


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text(row("q", "a"))
    done = subprocess.run([*INSPECT, os.fsencode(tmp_path) + b"/\xff.jsonl"], capture_output=True)
    assert done.returncode == 1
    assert b"is not UTF-8" in done.stderr


async def test_who_went_away_holds_nobody_up(
    api: Api, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that was closed must not keep the next one waiting, nor leave files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    large = tmp_path / "large.jsonl"
    with large.open("w", encoding="utf-8") as file:
        file.writelines(
            row(f"Question {number}?", f"Answer {number}.") for number in range(400_000)
        )
    gone = [
        asyncio.create_task(api.call("POST", "/datasets/inspect", json={"datasetRef": str(large)}))
        for _ in range(3)
    ]
    await until(_inspectors)
    for each in gone:
        each.cancel()
    await until(lambda: not _inspectors())
    code, _ = await api.call("POST", "/datasets/inspect", json={"datasetRef": str(mixed)})
    assert code == 200
    await until(lambda: not list((tmp_path / "temporary").iterdir()))


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    """The table of a large file finds no room where temporary files lie."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(row(f"q{n}", "a") for n in range(30_000)), encoding="utf-8")
    try:
        with pytest.raises(DiskFull, match="no room for temporary files"):
            inspect(path, "smollm2", TrainingOptions(), DatasetOptions(), disk, disk)
        assert not list(disk.iterdir())
    finally:
        subprocess.run([str(shutil.which("umount")), "-l", str(disk)], check=True)


def test_tokens_of_many_are_estimated_from_those_that_stand_for_all(tmp_path: Path) -> None:
    """Long ones are all counted, to see whether they fit; they must not weigh more for that."""
    path = tmp_path / "rows.jsonl"
    rows = [row(f"Question {n}?" + "word " * (450 if n % 10 == 0 else 5), "a") for n in range(3000)]
    path.write_text("".join(rows), encoding="utf-8")
    report = report_on(path)
    assert report.tokens_estimated
    with open_tokenizer(read_gguf(resolve_base("smollm2").gguf)) as tokenizer:
        texts = (json.loads(json.loads(each)["input"]) for each in rows)
        question = sum(len(tokenizer.ids(text, special=False)) for text in texts)
    # The template takes some thirty tokens. Counted with all long ones it were 800,000.
    assert 0.6 * question + 25 * 3000 < (report.tokens or 0) < 1.4 * question + 40 * 3000


def test_a_pair_needs_both_its_answers(tmp_path: Path) -> None:
    """Where one is too long the other says nothing, and the report counts neither."""
    path = tmp_path / "rows.jsonl"
    pairs = [
        {"prompt": f"q{n}", "chosen": "word " * 99 if n < 3 else "a", "rejected": "b"}
        for n in range(5)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    training = TrainingOptions(max_length=64)
    report = inspect(path, "smollm2", training, DatasetOptions(), tmp_path)
    assert (report.method, report.pairs, report.examples, report.rows_used) == ("dpo", 2, 4, 2)
    assert [sample.line for sample in report.samples] == [4, 5]
    alone = "no answer of the other kind to the same input"
    assert report.dropped[alone].lines == (1, 2, 3)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs[:3]), encoding="utf-8")
    with pytest.raises(DatasetError, match="None of the 3 rows"):
        inspect(path, "smollm2", training, DatasetOptions(), tmp_path)
