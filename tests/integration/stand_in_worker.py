"""A worker that trains nothing: the first row of its data set says how it ends.

Run as the real one is, with the run directory as the only argument. Rows:
    {"do": "complete"}              two stages, then a finished model
    {"do": "fail"}                  a result that says failed
    {"do": "exit", "code": 3}       words on stderr, no result
    {"do": "die"}                   SIGKILL to itself
    {"do": "hold", "until": PATH}   as complete, but only once PATH exists
    {"do": "ignore", "until": PATH} as hold, deaf to SIGTERM
Every start appends "<run id> <pid>" to <cache dir>/starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from ollama_trainer.errors import DatasetError
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.records import (
    ErrorInfo,
    Event,
    Fidelity,
    Figures,
    Losses,
    Progress,
    RunResult,
    RunSpec,
    Stage,
)
from ollama_trainer.workspace import RunDirectory

#: What a completed run tells of its model.
FIDELITY = Fidelity(
    figures=Figures(
        quantization="same",
        learning_kept=0.985,
        agreement=0.99,
        held_out=Losses(base=3.0, trained=0.5, served=0.54),
        unrelated=Losses(base=2.5, trained=2.55, served=2.56),
    ),
    n_rows=3,
    n_rephrased=13,
)


def main() -> int:
    exit_with_parent()
    directory = RunDirectory(Path(sys.argv[1]))
    spec = directory.read_spec()
    with (spec.cache_dir / "starts").open("a", encoding="utf-8") as starts:
        starts.write(f"{spec.run_id} {os.getpid()}\n")
    order = json.loads(directory.dataset.read_text(encoding="utf-8").splitlines()[0])
    if order["do"] == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if order["do"] == "exit":
        print("no words left", file=sys.stderr, flush=True)
        return int(order["code"])
    if order["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    directory.append_event(
        Event.now("progress", progress=Progress(stage=Stage.TRAIN, fraction=0.5, step=1, steps=2))
    )
    while "until" in order and not Path(order["until"]).exists():
        time.sleep(0.02)
    return _finish(directory, spec, order["do"])


def _finish(directory: RunDirectory, spec: RunSpec, ending: str) -> int:
    if ending == "fail":
        error = ErrorInfo.of(DatasetError("no good row", "Label some rows good."))
        directory.write_result(RunResult(status="failed", error=error))
        return 1
    directory.append_event(
        Event.now("progress", progress=Progress(stage=Stage.PUBLISH, fraction=1.0, loss=0.25))
    )
    directory.write_result(
        RunResult(
            status="completed",
            output_model_ref=spec.model_name,
            fidelity=FIDELITY,
            seconds={"train": 0.1},
            metrics={"next_command": f"ollama run {spec.model_name}"},
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
