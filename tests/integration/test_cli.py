"""The command line as a person uses it: words, exit codes, and nothing left running."""

import asyncio
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest

from ollama_trainer import __version__
from ollama_trainer.client import TrainerClient, running_server
from ollama_trainer.display import in_words
from ollama_trainer.errors import InvalidRequest, ServerError
from ollama_trainer.queue.lock import read_holder
from ollama_trainer.records import RunState
from ollama_trainer.settings import Settings

from .conftest import Connect, ServerProcess, WriteRows, ended, until
from .stand_in_server import COMMAND
from .stand_in_worker import FIDELITY

SERVE = (*COMMAND, "serve")


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`ollama-trainer ARGUMENTS`, on a port where nothing listens unless another is given."""
    port = () if "--port" in arguments or arguments[0] != "train" else ("--port", "1")
    return subprocess.run((*COMMAND, *arguments, *port), capture_output=True, text=True, cwd=cwd)


def spawn(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_version() -> None:
    command = (sys.executable, "-m", "ollama_trainer", "--version")
    assert subprocess.check_output(command, text=True) == f"ollama-trainer {__version__}\n"


def test_wrong_usage_is_told() -> None:
    assert run("frobnicate").returncode == 2
    assert run("train").returncode == 2


def test_train_starts_a_server_for_the_run_and_says_what_to_type_next(
    rows: WriteRows, data_dir: Path
) -> None:
    dataset = Path(rows())
    arguments = ("train", dataset.name, "--name", "support", "--data-dir", str(data_dir))
    done = run(*arguments, cwd=dataset.parent)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == "no server is running: one is started for this run"
    assert lines[1].startswith("run ")
    run_id = lines[1].removeprefix("run ")
    assert lines[-5:] == [
        f"completed: tuned-support:{run_id}",
        *in_words(FIDELITY),
        "type next:",
        f"ollama run tuned-support:{run_id}",
    ]
    assert read_holder(data_dir) == {}


def test_train_uses_the_server_that_runs(
    server_process: ServerProcess, rows: WriteRows, data_dir: Path
) -> None:
    port = server_process.url.rpartition(":")[2]
    flags = ("--port", port, "--base", "other", "--steps", "5", "--backend", "peft")
    done = run("train", rows(), *flags)
    assert done.returncode == 0
    assert "no server is running" not in done.stdout
    assert "--backend has no effect" in done.stdout
    (spec,) = (data_dir / "runs").glob("*/spec.json")
    text = spec.read_text()
    assert '"base": "other"' in text
    assert '"steps": 5' in text
    assert '"backend": "unsloth"' in text


@pytest.mark.parametrize(
    ("row", "words"), [("fail", "no good row. Label some rows good."), ("die", "SIGKILL")]
)
def test_a_failed_run_is_told_in_plain_words(
    rows: WriteRows, data_dir: Path, row: str, words: str
) -> None:
    done = run("train", rows(row), "--data-dir", str(data_dir))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "none"), "'steps' from the flag --steps"),
        (("--config", "/no/such.toml"), "does not exist"),
        (("--data-dir", "/dev/null/nothing"), "cannot be used"),
    ],
)
def test_errors_are_told_without_a_traceback(
    rows: WriteRows, data_dir: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = run("train", rows(), "--data-dir", str(data_dir), *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_told(data_dir: Path) -> None:
    done = run("train", "missing.jsonl", "--data-dir", str(data_dir))
    assert done.returncode == 1
    assert "missing.jsonl does not exist" in done.stderr


def test_serve_on_a_port_that_is_taken(server_process: ServerProcess, tmp_path: Path) -> None:
    port = server_process.url.rpartition(":")[2]
    done = run("serve", "--port", port, "--data-dir", str(tmp_path / "other"))
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_interrupted_nothing_is_left_running(
    rows: WriteRows, data_dir: Path, number: signal.Signals
) -> None:
    dataset = rows("hold", until=str(data_dir / "never"))
    command = (*COMMAND, "train", dataset, "--port", "1", "--data-dir", str(data_dir))
    train = spawn(*command)
    starts = data_dir / "cache/starts"
    await until(lambda: starts.exists() and "\n" in starts.read_text())
    pids = [int(starts.read_text().split()[1]), int(str(read_holder(data_dir)["pid"]))]
    train.send_signal(number)
    output, _ = await asyncio.to_thread(train.communicate)
    if number == signal.SIGINT:
        assert train.returncode == 130
        assert "Traceback" not in output
    for pid in pids:
        await until(partial(ended, pid))


async def test_the_client_follows_a_run_and_stops_its_server(
    rows: WriteRows, data_dir: Path
) -> None:
    settings = Settings(data_dir=data_dir)
    async with running_server(settings, command=SERVE) as client:
        assert (await client.health())["status"] == "ok"
        seen = [status async for status in client.follow(await client.submit("job", rows()))]
        assert seen[-1].status is RunState.COMPLETED
        assert seen[-1].next_command == f"ollama run {seen[-1].output_model_ref}"
        assert seen[-1].fidelity == FIDELITY
        assert (await client.wait(await client.submit("job", "/none"))).error_code == "dataset"
        with pytest.raises(InvalidRequest, match="no run with this id"):
            await client.status("unknown")
        pid = int(str(read_holder(data_dir)["pid"]))
    assert not psutil.pid_exists(pid)


async def test_runs_are_listed_and_cancelled(
    server_process: ServerProcess, connect: Connect, rows: WriteRows, tmp_path: Path
) -> None:
    api = connect(server_process)
    port = ("--port", api.url.rpartition(":")[2])
    done, failed = await api.submit(rows()), await api.submit(rows("fail"), jobId="other")
    for run_id in (done, failed):
        await api.end(run_id)
    held = await api.submit(rows("hold", until=str(tmp_path / "never")))
    await api.until(held, "running")
    lines = (await asyncio.to_thread(run, "runs", *port)).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [held, failed, done]
    assert "no good row. Label some rows good." in lines[1]
    assert f"tuned-job:{done}" in lines[2]
    some = await asyncio.to_thread(run, "runs", "--job", "other", "--state", "failed", *port)
    assert some.stdout.split()[0] == failed
    ended_run = await asyncio.to_thread(run, "cancel", held, *port)
    assert (ended_run.returncode, "cancelled" in ended_run.stdout) == (0, True)
    again = await asyncio.to_thread(run, "cancel", done, *port)
    assert again.returncode == 1
    assert "has ended already" in again.stderr
    assert "no run with this id" in (await asyncio.to_thread(run, "cancel", "x", *port)).stderr
    assert run("runs", "--port", "1").returncode == 1


async def test_a_run_that_waits_says_so_on_the_display(
    rows: WriteRows, data_dir: Path, tmp_path: Path
) -> None:
    """Whoever sits before it can start the Ollama that is missing, and it goes on."""
    back = tmp_path / "back"
    dataset = rows("away", until=str(back))
    command = (*COMMAND, "train", dataset, "--data-dir", str(data_dir), "--port", "1")
    train = spawn(*command)
    assert train.stdout is not None
    line = ""
    while not line.startswith("waiting: no Ollama answers. Start it."):
        line = await asyncio.to_thread(train.stdout.readline)
        assert line, "it ended"
    back.touch()
    rest = await asyncio.to_thread(train.stdout.read)
    assert await asyncio.to_thread(train.wait) == 0
    assert "completed: tuned-away" in rest


async def test_a_server_that_does_not_start_is_told(data_dir: Path) -> None:
    settings = Settings(data_dir=data_dir)
    async with running_server(settings, command=SERVE):
        with pytest.raises(ServerError, match=f"process {read_holder(data_dir)['pid']}"):
            async with running_server(settings, command=SERVE):
                pass


async def test_without_a_server_the_client_says_so() -> None:
    async with TrainerClient("http://127.0.0.1:1") as client:
        with pytest.raises(ServerError, match=r"no ollama-trainer answers.*ollama-trainer serve"):
            await client.health()


def test_the_worker_may_not_inherit_what_only_the_server_needs() -> None:
    """The variable that names the pipe to the parent is used up by the one that reads it."""
    code = (
        "import os\n"
        "from ollama_trainer.executors.parentwatch import PARENT_FD, exit_with_parent\n"
        "exit_with_parent()\n"
        "print(os.environ.get(PARENT_FD))\n"
    )
    output = subprocess.check_output((sys.executable, "-c", code), text=True, env=os.environ)
    assert output == "None\n"
