"""A worker that trains nothing: the first row of its data set says how it ends.

Run as the real one is, with the run directory as the only argument. Rows:
    {"do": "complete"}              two stages, then a finished model
    {"do": "fail"}                  a result that says failed
    {"do": "exit", "code": 3}       words on stderr, no result
    {"do": "die"}                   SIGKILL to itself
    {"do": "hold", "until": PATH}   as complete, but only once PATH exists
    {"do": "ignore", "until": PATH} as hold, deaf to SIGTERM
    {"do": "mute", "until": PATH}   as hold, without a heartbeat
    {"do": "save", "times": 3}      SIGKILL to itself after having saved something, so many times
    {"do": "away", "until": PATH}   no Ollama answers until PATH exists
    {"do": "beside", "needed": N, "free": N}
                                    with so much memory, Ollama's models aside
    {"do": "memory"}                out of memory until the batch is halved
    {"do": "full", "until": PATH}   no room for the result until PATH exists
    {"do": "named", "until": PATH}  as hold, with something left at the publisher
Every start appends "<run id> <pid>" to <cache dir>/starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ollama_trainer.errors import DatasetError, OllamaUnreachable, OutOfMemory, TrainerError
from ollama_trainer.executors import EXIT_DISK_FULL
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.manifests import write_manifest
from ollama_trainer.records import (
    ErrorInfo,
    Event,
    Fidelity,
    Figures,
    Lease,
    Losses,
    Progress,
    RunResult,
    RunSpec,
    Stage,
)
from ollama_trainer.worker import start_heartbeat
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
    spec, lease = directory.read_spec(), directory.read_lease()
    with (spec.cache_dir / "starts").open("a", encoding="utf-8") as starts:
        starts.write(f"{spec.run_id} {os.getpid()} {lease.task} {lease.token}\n")
    order = json.loads(directory.dataset.read_text(encoding="utf-8").splitlines()[0])
    if order["do"] != "mute":
        start_heartbeat(directory)
    if lease.task != "run":
        return _errand(directory, spec, lease, order)
    if order["do"] == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if order["do"] == "exit":
        print("no words left", file=sys.stderr, flush=True)
        return int(order["code"])
    if order["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if order["do"] == "save" and lease.attempt <= order["times"]:
        directory.append_event(Event.now("saved", f"checkpoint {lease.attempt}"))
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if order["do"] == "full" and not Path(order["until"]).exists():
        return EXIT_DISK_FULL
    directory.append_event(
        Event.now("progress", progress=Progress(stage=Stage.TRAIN, fraction=0.5, step=1, steps=2))
    )
    if order["do"] == "named":
        directory.publishing.write_text('{"step": "name"}')
    while "until" in order and order["do"] != "away" and not Path(order["until"]).exists():
        time.sleep(0.02)
    return _finish(directory, spec, lease, order)


def _errand(directory: RunDirectory, spec: RunSpec, lease: Lease, order: dict[str, Any]) -> int:
    if lease.task == "withdraw" and order.get("withdraw") == "fails":
        error = ErrorInfo.of(OllamaUnreachable("no Ollama", "Start it."))
        failed = RunResult(status="failed", error=error, token=lease.token)
        directory.write_result(failed, lease.task)
        return 1
    if lease.task == "withdraw":
        directory.publishing.unlink()
    ref = f"{spec.model_name}-again" if lease.task == "publish" else None
    done = RunResult(status="completed", output_model_ref=ref, token=lease.token)
    directory.write_result(done, lease.task)
    return 0


def _failed(lease: Lease, error: TrainerError) -> RunResult:
    return RunResult(status="failed", error=ErrorInfo.of(error), token=lease.token)


def _beside_ollama(
    directory: RunDirectory, spec: RunSpec, order: dict[str, Any]
) -> TrainerError | None:
    # Imported late: every other start would take longer by it.
    from ollama_trainer.backends import FreeMemory
    from ollama_trainer.pipeline.residency import make_room_for

    def note(message: str, data: Mapping[str, Any]) -> None:
        directory.append_event(Event.now("note", message, data=data))

    memory = FreeMemory(n_bytes=order["free"], on_gpu=False)
    try:
        make_room_for(order["needed"], spec.ollama_host, spec.ollama_memory, lambda: memory, note)
    except TrainerError as error:
        return error
    return None


def _finish(directory: RunDirectory, spec: RunSpec, lease: Lease, order: dict[str, Any]) -> int:
    failure: TrainerError | None = None
    if order["do"] == "fail":
        failure = DatasetError("no good row", "Label some rows good.")
    if order["do"] == "memory" and lease.halvings == 0:
        failure = OutOfMemory("no memory", "Set a smaller batch_size.")
    if order["do"] == "away" and not Path(order["until"]).exists():
        failure = OllamaUnreachable("no Ollama answers", "Start it.")
    if order["do"] == "beside":
        failure = _beside_ollama(directory, spec, order)
    if failure is not None:
        directory.write_result(_failed(lease, failure))
        return 1
    directory.gguf.write_bytes(b"GGUF")
    write_manifest(directory.manifest("modelfile"), "key", directory.path, [directory.gguf])
    directory.append_event(
        Event.now("progress", progress=Progress(stage=Stage.PUBLISH, fraction=1.0, loss=0.25))
    )
    directory.write_result(
        RunResult(
            status="completed",
            token=lease.token,
            output_model_ref=spec.model_name,
            fidelity=FIDELITY,
            seconds={"train": 0.1},
            metrics={"next_command": f"ollama run {spec.model_name}"},
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
