"""How fast the server answers: idle, while a training takes every core, and with many runs stored.

Three servers live side by side and are measured in short turns, so that whatever else the
machine does falls on all of them: aiohttp alone, which answers with ready values, and the server
with few and with many finished runs. Each server has a running run; the worker of the one with few
takes every core in the second half, at the niceness that workers have.

Latency is that of one connection at a fixed pace, so that no request waits behind another of the
benchmark; half of the status requests ask for a finished run and half for the running one.
Throughput is that of eight connections, each of which always waits for a reply; the bare server
gives the same replies in the same turn, and `finished` and `running` tell of each kind alone. A
POST /train sends a fresh run, whose reply says that it is on the disk (`disk_sync_ms` is what the
disk takes for that); the run then waits behind the running one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import demo
import psutil
from bench_load import Address, ask, get, latencies, post, throughput
from bench_server_programs import BARE, SERVE
from bench_server_runs import store_finished_runs
from rich.console import Console

from ollama_trainer.client import running_server
from ollama_trainer.executors.parentwatch import LifeLine
from ollama_trainer.queue.lock import read_holder
from ollama_trainer.settings import Settings

Figures = dict[str, Any]
WORK = demo.ROOT / ".bench"
FEW, MANY = 100, 100_000
#: States of the runs whose status is asked for.
_STATES = ("finished", "running")
_ROUNDS = 5
_CONNECTIONS = 8
#: Of throughput: turns in a round, seconds of each, and seconds of posting.
_TURNS, _TURN_S, _POSTS_S = 3, 0.15, 0.6
#: Requests a round, and seconds from one to the next.
_PACES = {"status": (400, 0.004), "list": (40, 0.01), "train": (60, 0.02)}
#: A worker that computes has come to its pace.
_SETTLE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A server with runs: where it is, and what it is asked."""

    stored: int
    #: Seconds until it answered.
    start_s: float
    address: Address
    #: While this file exists, the worker takes every core.
    burn: Path
    dataset: Path
    #: Ids of runs.
    finished: str
    running: str
    posted: list[str] = field(default_factory=list)

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(int(str(read_holder(self.burn.parent)["pid"])))

    def requests(self, what: str) -> Iterator[bytes]:
        """Requests without end."""
        if what == "train":
            return (self._submission() for _ in itertools.count())
        if what == "list":
            return itertools.repeat(get("/runs?limit=50"))
        return _status_requests(what, f"/status/{self.finished}", f"/status/{self.running}")

    def _submission(self) -> bytes:
        self.posted.append(str(uuid.uuid4()))
        body = {"jobId": "job-1", "datasetRef": str(self.dataset), "runId": self.posted[-1]}
        return post("/train", body)

    def wait_for_copies(self) -> None:
        """Until the data sets of the posted runs are copied: that may go on behind the replies."""
        for run_id in self.posted[-2 * _CONNECTIONS :]:
            while "dataset_sha256" not in (run := ask(self.address, get(f"/runs/{run_id}"))):
                if "error" in run:
                    raise RuntimeError(run["error"])
                time.sleep(0.02)


def _status_requests(what: str, finished: str, running: str) -> Iterator[bytes]:
    """For one kind of status, or with `status` for both in turn."""
    paths = {"finished": (finished,), "running": (running,), "status": (finished, running)}
    return itertools.cycle([get(path) for path in paths[what]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What was measured while the worker slept, or while it computed."""

    #: (stored runs, what was asked) -> milliseconds.
    latencies: defaultdict[tuple[int, str], list[float]]
    #: (who, what was asked) -> requests a second, one figure a turn.
    throughputs: defaultdict[tuple[str, str], list[float]]


def bench_server(console: Console) -> Figures:
    """All figures; takes two to three minutes.

    Raises:
        RuntimeError: a request failed.
    """
    WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=WORK))
    try:
        return asyncio.run(_bench(folder, console))
    finally:
        shutil.rmtree(folder)


async def _bench(folder: Path, console: Console) -> Figures:
    async with AsyncExitStack() as stack:
        sides = []
        for stored in (FEW, MANY):
            console.print(f"storing {stored} runs")
            settings = Settings(data_dir=folder / str(stored), publisher="folder")
            finished = await asyncio.to_thread(store_finished_runs, settings, stored)
            sides.append(await stack.enter_async_context(_server(settings, stored, finished)))
        replies = {
            state: ask(sides[0].address, next(sides[0].requests(state))) for state in _STATES
        }
        (folder / "replies.json").write_text(json.dumps(replies), encoding="utf-8")
        bare = stack.enter_context(_bare_server(folder / "replies.json"))
        sync_ms = _disk_sync_ms(folder)
        phases = {"idle": _measure(bare, sides, console)}
        sides[0].burn.touch()
        worker = _worker_in_words(sides[0])
        phases["training"] = _measure(bare, sides, console)
    return {
        "benchmark": "server",
        "cores": os.cpu_count(),
        "worker": worker,
        "reply_bytes": {state: len(json.dumps(reply)) for state, reply in replies.items()},
        "disk_sync_ms": sync_ms,
        "start_s": {str(side.stored): side.start_s for side in sides},
        **_figures(phases),
    }


@asynccontextmanager
async def _server(settings: Settings, stored: int, finished: str) -> AsyncIterator[Side]:
    """A server with that many runs stored, and one more that runs."""
    burn, dataset = settings.data_dir / "burn", settings.data_dir / "rows.jsonl"
    dataset.write_text(json.dumps({"burn": str(burn)}) + "\n", encoding="utf-8")
    started = time.monotonic()
    async with running_server(settings, command=SERVE) as client:
        start_s = time.monotonic() - started
        url = urlsplit(client.url)
        running = await client.submit("job-0", str(dataset))
        async for status in client.follow(running, 0.05):
            if status.progress is not None:
                break
        side = Side(
            stored=stored,
            start_s=start_s,
            address=(str(url.hostname), int(url.port or 0)),
            burn=burn,
            dataset=dataset,
            finished=finished,
            running=running,
        )
        _wait_until_quiet(side)
        yield side


@contextmanager
def _bare_server(replies: Path) -> Iterator[Address]:
    with LifeLine() as life_line:
        process = subprocess.Popen(
            (*BARE, str(replies)), stdout=subprocess.PIPE, **life_line.arguments(os.environ)
        )
        try:
            assert process.stdout is not None
            yield "127.0.0.1", int(process.stdout.readline())
        finally:
            process.kill()
            process.wait()


def _wait_until_quiet(side: Side) -> None:
    """Until a server has done what it does after its start."""
    server = side.process
    while True:
        before = _cpu_s(server)
        time.sleep(0.5)
        if _cpu_s(server) - before < 0.05:
            return


def _worker_in_words(side: Side) -> str:
    """What the worker is, and how much it computes where nothing else does."""
    (worker,) = side.process.children()
    time.sleep(_SETTLE_S)
    before, started = _cpu_s(worker), time.monotonic()
    time.sleep(_SETTLE_S)
    cores = (_cpu_s(worker) - before) / (time.monotonic() - started)
    return (
        f"torch matrix products on {os.cpu_count()} threads, niceness {worker.nice()}, "
        f"{cores:.1f} cores before the requests began"
    )


def _cpu_s(process: psutil.Process) -> float:
    """Seconds of cores that a process took."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _disk_sync_ms(folder: Path) -> float:
    """Median milliseconds until 4 kB more of a file are on the disk."""
    taken = []
    with (folder / "sync").open("wb") as file:
        for _ in range(100):
            started = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def _measure(bare: Address, sides: Sequence[Side], console: Console) -> Phase:
    phase = Phase(latencies=defaultdict(list), throughputs=defaultdict(list))
    for number in range(_ROUNDS):
        for (what, (n, pace_s)), side in itertools.product(_PACES.items(), sides):
            taken = latencies(side.address, side.requests(what), n, pace_s)
            phase.latencies[side.stored, what] += taken
            side.wait_for_copies()
        for _ in range(_TURNS):
            _measure_throughput(bare, sides, phase)
        console.print(f"round {number + 1} of {_ROUNDS}")
    for side in sides:
        rate = throughput(side.address, side.requests("train"), _POSTS_S, _CONNECTIONS)
        phase.throughputs[str(side.stored), "train"].append(rate)
        side.wait_for_copies()
    return phase


def _measure_throughput(bare: Address, sides: Sequence[Side], phase: Phase) -> None:
    for what in ("status", *_STATES):
        ready = _status_requests(what, *(f"/{state}" for state in _STATES))
        rate = throughput(bare, ready, _TURN_S, _CONNECTIONS)
        phase.throughputs["bare", what].append(rate)
        for side in sides:
            rate = throughput(side.address, side.requests(what), _TURN_S, _CONNECTIONS)
            phase.throughputs[str(side.stored), what].append(rate)


def _figures(phases: dict[str, Phase]) -> Figures:
    idle = phases["idle"].latencies
    return {
        "latency_ms": {
            str(stored): {
                what: {name: _percentiles(phase, stored, what) for name, phase in phases.items()}
                for what in _PACES
            }
            for stored in (FEW, MANY)
        },
        "throughput": {name: _rates(phase) for name, phase in phases.items()},
        "slope": {
            what: statistics.median(idle[MANY, what]) / statistics.median(idle[FEW, what])
            for what in _PACES
        },
    }


def _percentiles(phase: Phase, stored: int, what: str) -> Figures:
    taken = phase.latencies[stored, what]
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98], "n": len(taken)}


def _rates(phase: Phase) -> Figures:
    """Requests a second of the median turn, and how much of the bare server's they are."""
    rates = {key: statistics.median(rates) for key, rates in phase.throughputs.items()}
    figures: Figures = {
        "train": {str(stored): rates[str(stored), "train"] for stored in (FEW, MANY)}
    }
    for what in ("status", *_STATES):
        of = {who: rates[who, what] for who in ("bare", str(FEW), str(MANY))}
        figures[what] = of | {"ratio": of[str(FEW)] / of["bare"]}
    return figures
