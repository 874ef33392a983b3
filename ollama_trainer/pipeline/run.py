"""One run from its directory to its result."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ollama_trainer import backends, publishers
from ollama_trainer.backends import TrainJob
from ollama_trainer.bases import resolve_base
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.modelfile import Modelfile
from ollama_trainer.pipeline.dataset import PreparedData, prepare
from ollama_trainer.pipeline.export import check_quantization, export, modelfile_of
from ollama_trainer.pipeline.plan import check_trainable, recipe_for
from ollama_trainer.pipeline.verify import verify
from ollama_trainer.publishers import Publisher, PublisherOptions
from ollama_trainer.records import (
    BaseGguf,
    Event,
    Progress,
    PublishedModel,
    RunResult,
    RunSpec,
    Stage,
)
from ollama_trainer.workspace import RunDirectory, write_text


class Run:
    """A run in progress: what the stages share, and what they told."""

    def __init__(self, directory: RunDirectory, spec: RunSpec) -> None:
        self.directory, self.spec = directory, spec
        self.seconds: dict[str, float] = {}
        self.metrics: dict[str, Any] = {}

    def report(self, progress: Progress) -> None:
        self.directory.append_event(Event.now("progress", progress=progress))

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[Callable[[float], None]]:
        """Announces a stage and takes its time; yields a function that reports its fraction."""
        self.directory.append_event(Event.now("stage", stage, Progress(stage=stage)))
        last = 0.0

        def report(fraction: float) -> None:
            nonlocal last
            if time.monotonic() - last > 0.2:
                last = time.monotonic()
                self.report(Progress(stage=stage, fraction=min(fraction, 1.0)))

        started = time.monotonic()
        try:
            yield report
        finally:
            self.seconds[stage] = round(time.monotonic() - started, 3)


def execute(run: Run) -> RunResult:
    """Runs every stage.

    Args:
        run: its directory holds the snapshot of the data set.

    Raises:
        TrainerError: a stage failed. No half-made file is left under a final name.
    """
    directory = run.directory
    base, gguf = _base(run)
    data = _dataset(run, gguf)
    publisher = _publisher(run, data)
    _train(run, base, gguf, data)
    modelfile = _export(run, base, gguf, data)
    with run.stage(Stage.VERIFY):
        run.metrics |= verify(base.gguf, directory.gguf, data.examples)
    published = _publish(run, publisher, modelfile)
    return RunResult(
        status="completed",
        output_model_ref=published.ref,
        gguf=directory.gguf.absolute(),
        modelfile=directory.modelfile.absolute(),
        seconds=run.seconds,
        metrics={**run.metrics, "next_command": published.next_command},
    )


def _base(run: Run) -> tuple[BaseGguf, GgufFile]:
    with run.stage(Stage.BASE):
        base = resolve_base(run.spec.base)
        gguf = read_gguf(base.gguf)
        check_trainable(gguf)
        check_quantization(run.spec.quantization)
        backends.get(run.spec.backend)
        run.metrics["base_digest"] = base.digest
    return base, gguf


def _dataset(run: Run, gguf: GgufFile) -> PreparedData:
    with run.stage(Stage.DATASET):
        limit = min(
            run.spec.training.max_length,
            int(gguf.hyperparameter("context_length", run.spec.training.max_length)),
        )
        data = prepare(run.directory.dataset, gguf, limit)
        run.metrics |= {
            "rows_read": data.rows_read,
            "rows_used": len(data.examples),
            "dropped": {reason: len(lines) for reason, lines in data.dropped.items()},
        }
        run.directory.append_event(
            Event.now(
                "note",
                f"{len(data.examples)} of {data.rows_read} rows are used",
                dropped={reason: list(lines) for reason, lines in data.dropped.items()},
            )
        )
    return data


def _train(run: Run, base: BaseGguf, gguf: GgufFile, data: PreparedData) -> None:
    with run.stage(Stage.TRAIN):
        recipe = recipe_for(gguf, run.spec.training, len(data.examples))
        run.metrics["recipe"] = dataclasses.asdict(recipe)
        job = TrainJob(
            base=base,
            examples=data.examples,
            recipe=recipe,
            out=run.directory.adapter,
            cache=run.spec.cache_dir,
        )
        adapter = backends.get(run.spec.backend).train(job, run.report)
        run.metrics["final_loss"] = adapter.final_loss


def _export(run: Run, base: BaseGguf, gguf: GgufFile, data: PreparedData) -> Modelfile:
    with run.stage(Stage.EXPORT) as report:
        done = export(
            gguf,
            run.directory.adapter,
            run.directory.gguf,
            quantization=run.spec.quantization,
            seed=run.spec.training.seed,
            progress=report,
        )
        run.metrics |= {"gguf_bytes": done.n_bytes, "base_bytes": base.gguf.stat().st_size}
        modelfile = modelfile_of(gguf, data.stop, base.license)
        write_text(run.directory.modelfile, modelfile.text)
    return modelfile


def _publisher(run: Run, data: PreparedData) -> Publisher:
    """Made before training, so that wrong settings cost no training."""
    options = PublisherOptions(
        ollama_host=run.spec.ollama_host, question=data.question, num_thread=os.cpu_count()
    )
    return publishers.get(run.spec.publisher, options)


def _publish(run: Run, publisher: Publisher, modelfile: Modelfile) -> PublishedModel:
    with run.stage(Stage.PUBLISH) as report:
        return publisher.publish(
            run.directory.gguf,
            modelfile,
            run.spec.model_name,
            lambda fraction, _what: report(fraction),
        )
