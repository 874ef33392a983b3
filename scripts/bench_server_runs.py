"""Data directories with many finished runs, as ./scripts/bench server needs them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ollama_trainer.queue.database import connect, migrate, transaction
from ollama_trainer.queue.rows import Submission
from ollama_trainer.records import Progress, RunResult, Stage
from ollama_trainer.settings import Settings
from ollama_trainer.workspace import DataDirectory

#: result.json of a run of the demo.
_RESULT = Path(__file__).with_name("bench_server_result.json")
_RUN_ID = "RUN_ID"
_N_JOBS = 20
_KINDS = ("state", "state", "stage", *("progress",) * 5, "saved", "state")
_PROGRESS = Progress(stage=Stage.TRAIN, fraction=0.5, step=50, steps=100, loss=0.4, left_s=61.2)

_INSERT_RUN = """
INSERT INTO runs (seq, run_id, job_id, dataset_ref, fingerprint, spec, state, attempt,
                  events_offset, dataset_sha256, dataset_bytes, progress, result,
                  output_model_ref, created_at, started_at, finished_at)
VALUES (:seq, :run_id, :job_id, '/data/feedback.jsonl', hex(randomblob(32)), :spec, 'completed', 1,
        31817, lower(hex(randomblob(32))), 28900, :progress, :result,
        :ref, :time, :time, :time)
"""
_INSERT_EVENT = """
INSERT INTO events (run_seq, attempt, time, kind, progress) VALUES (?, 1, ?, ?, ?)
"""
_INSERT_ATTEMPT = """
INSERT INTO attempts (run_seq, task, attempt, worker_pid, worker_started, started_at, heartbeat_at,
                      ended_at, outcome)
VALUES (:seq, 'run', 1, 4242, 1.5e9, :time, :time, :time, 'completed')
"""
#: The files of all but each job's last runs are gone, as the server would have it.
_INSERT_PRUNED = "INSERT INTO pruned SELECT seq, finished_at FROM runs WHERE seq <= ?"


def store_finished_runs(settings: Settings, n: int) -> str:
    """Stores `n` runs in an empty data directory, each with ten events; returns the last one's id.

    They belong to twenty jobs in turn. The schema is the server's own, triggers included.
    """
    data = DataDirectory(settings.data_dir)
    data.create()
    runs = list(_runs(settings, n))
    connection = connect(data.database)
    try:
        migrate(connection)
        # Nothing is lost that could not be made again.
        connection.execute("PRAGMA synchronous = OFF")
        # An event of a finished run is refused, so events come first.
        connection.execute("PRAGMA foreign_keys = OFF")
        with transaction(connection):
            for run in runs:
                connection.executemany(_INSERT_EVENT, _events(run))
            connection.executemany(_INSERT_RUN, runs)
            connection.executemany(_INSERT_ATTEMPT, runs)
            connection.execute(_INSERT_PRUNED, (n - settings.keep_last * _N_JOBS,))
    finally:
        connection.close()
    return str(runs[-1]["run_id"])


def _runs(settings: Settings, n: int) -> Iterator[dict[str, object]]:
    submission = Submission(
        run_id=_RUN_ID, job_id="job", dataset_ref="/data/feedback.jsonl", fingerprint=""
    )
    spec = submission.spec(settings).model_dump_json()
    result = RunResult.model_validate_json(_RESULT.read_bytes())
    template = {
        "spec": spec,
        "progress": _PROGRESS.model_dump_json(exclude_none=True),
        "result": result.model_dump_json(),
        "ref": str(result.output_model_ref),
    }
    chance = random.Random(1)
    first = datetime.now(UTC) - timedelta(minutes=n)
    for seq in range(1, n + 1):
        run_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        yield {
            **{name: text.replace(_RUN_ID, run_id) for name, text in template.items()},
            "seq": seq,
            "run_id": run_id,
            "job_id": f"job-{seq % _N_JOBS}",
            "time": (first + timedelta(minutes=seq)).isoformat(timespec="milliseconds"),
        }


def _events(run: Mapping[str, object]) -> Iterator[tuple[object, ...]]:
    for kind in _KINDS:
        progress = run["progress"] if kind == "progress" else None
        yield run["seq"], run["time"], kind, progress
