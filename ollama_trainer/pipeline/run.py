"""One run from its directory to its result."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ollama_trainer import backends, publishers
from ollama_trainer.backends import Recipe, ReplayPlan, TrainJob
from ollama_trainer.bases import resolve_base
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.modelfile import Modelfile
from ollama_trainer.pipeline.dataset import PreparedData, prepare
from ollama_trainer.pipeline.export import check_quantization, export, modelfile_of, rungs
from ollama_trainer.pipeline.plan import check_trainable, recipe_for, replay_plan
from ollama_trainer.pipeline.verify import base_losses, can_be_mended, check_learned, judge
from ollama_trainer.publishers import Publisher, PublisherOptions
from ollama_trainer.records import (
    Adapter,
    BaseGguf,
    Event,
    Fidelity,
    Figures,
    Progress,
    PublishedModel,
    RunResult,
    RunSpec,
    Stage,
)
from ollama_trainer.replay import ReplaySettings, replay_texts
from ollama_trainer.workspace import RunDirectory, write_text

log = logging.getLogger(__name__)


class Run:
    """A run in progress: what the stages share, and what they told."""

    def __init__(self, directory: RunDirectory, spec: RunSpec) -> None:
        self.directory, self.spec = directory, spec
        self.seconds: dict[str, float] = {}
        self.metrics: dict[str, Any] = {}

    def note(self, message: str, data: Mapping[str, Any]) -> None:
        """Tells something that is neither a stage nor progress, in the events and in the log."""
        self.directory.append_event(Event.now("note", message, **data))
        log.info("%s: %s", message, json.dumps(data))

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
            # Export and verification come again where a larger type is needed.
            took = self.seconds.get(stage, 0.0) + time.monotonic() - started
            self.seconds[stage] = round(took, 3)


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
    recipe = recipe_for(gguf, run.spec.training, len(data.examples))
    run.metrics["recipe"] = dataclasses.asdict(recipe)
    replay = _replay(run, base, data, recipe)
    adapter = _train(run, base, data, recipe, replay)
    fidelity = _export(run, base, gguf, data, adapter, recipe.layers)
    modelfile = modelfile_of(gguf, data.stop, base.license)
    write_text(directory.modelfile, modelfile.text)
    published = _publish(run, publisher, modelfile)
    return RunResult(
        status="completed",
        output_model_ref=published.ref,
        gguf=directory.gguf.absolute(),
        modelfile=directory.modelfile.absolute(),
        fidelity=fidelity,
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
        data = prepare(run.directory.dataset, gguf, limit, run.spec.training.seed)
        run.metrics |= {
            "rows_read": data.rows_read,
            "rows_used": len(data.examples) + data.n_kept,
            "rows_held_out": data.n_kept,
            "dropped": {reason: len(lines) for reason, lines in data.dropped.items()},
        }
        run.note(
            f"{len(data.examples) + data.n_kept} of {data.rows_read} rows are used,"
            f" {data.n_kept} of them to judge the result",
            {"dropped": {reason: list(lines) for reason, lines in data.dropped.items()}},
        )
    return data


def _replay(run: Run, base: BaseGguf, data: PreparedData, recipe: Recipe) -> ReplayPlan:
    if run.spec.training.replay == "off" and run.spec.rounding != "compensated":
        return ReplayPlan()
    with run.stage(Stage.REPLAY) as report:
        texts = replay_texts(base, run.spec.cache_dir, ReplaySettings(), progress=report)
        plan = replay_plan(texts, run.spec.training, data.examples, recipe)
        run.metrics["replay"] = {
            "texts": len(texts),
            "tokens": sum(len(text.ids) for text in texts),
            "weight": plan.weight,
            "every": plan.every,
        }
    return plan


def _train(
    run: Run, base: BaseGguf, data: PreparedData, recipe: Recipe, replay: ReplayPlan
) -> Adapter:
    with run.stage(Stage.TRAIN):
        adapter = backends.get(run.spec.backend).train(
            TrainJob(
                base=base,
                examples=data.examples,
                recipe=recipe,
                replay=replay,
                held_out=data.held_out,
                probe=data.probe,
                out=run.directory.adapter,
                statistics=(
                    run.directory.statistics if run.spec.rounding == "compensated" else None
                ),
                cache=run.spec.cache_dir,
            ),
            run.report,
        )
        run.metrics |= {
            "steps": adapter.steps,
            "final_loss": adapter.final_loss,
            "held_out_losses": adapter.held_out_losses,
            "divergence": adapter.divergence,
            "train_seconds": adapter.seconds,
        }
    return adapter


def _export(
    run: Run,
    base: BaseGguf,
    gguf: GgufFile,
    data: PreparedData,
    adapter: Adapter,
    layers: tuple[int, ...],
) -> Fidelity:
    """Exports, reads and judges; climbs to larger types until the file is good enough."""
    spec, out = run.spec, run.directory.gguf
    compensated = spec.rounding == "compensated"
    with run.stage(Stage.VERIFY):
        compared = base_losses(base, data, spec.cache_dir)
    earlier: list[Figures] = []
    for rung in rungs(gguf, spec.quantization, layers):
        with run.stage(Stage.EXPORT) as report:
            done = export(
                gguf,
                run.directory.adapter,
                out,
                quantization=spec.quantization,
                at_least=rung,
                statistics=run.directory.statistics if compensated else None,
                seed=spec.training.seed,
                progress=report,
            )
        with run.stage(Stage.VERIFY):
            name = rung or spec.quantization
            figures = judge(out, name, data, adapter, compared, spec.fidelity)
        earlier.append(figures)
        if not can_be_mended(figures, spec.fidelity):
            break
    check_learned(figures)
    run.metrics |= {
        "gguf_bytes": done.n_bytes,
        "base_bytes": base.gguf.stat().st_size,
        "tensors_compensated": done.n_compensated,
        "tensors_touched": done.n_touched,
    }
    fidelity = Fidelity(
        figures=figures,
        earlier=tuple(earlier[:-1]),
        n_rows=data.n_kept,
        n_rephrased=len(data.held_out) - data.n_kept,
    )
    run.note("what the finished model is like", fidelity.model_dump(mode="json"))
    return fidelity


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
