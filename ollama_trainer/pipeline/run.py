"""One run from its directory to its result, or the part of it that its lease asks for."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable

from pydantic import TypeAdapter

from ollama_trainer import backends, publishers
from ollama_trainer.backends import Recipe, ReplayPlan, TrainJob
from ollama_trainer.bases import caches
from ollama_trainer.errors import ExportError, OutOfMemory
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.merge import MergeReport
from ollama_trainer.manifests import key_of
from ollama_trainer.modelfile import Modelfile
from ollama_trainer.pipeline.attempt import Run
from ollama_trainer.pipeline.base import base_of_run, still_there
from ollama_trainer.pipeline.dataset import PreparedData, prepare, within_context
from ollama_trainer.pipeline.export import check_quantization, export, modelfile_of, rungs
from ollama_trainer.pipeline.finished import FinishedModel, left_out, publisher_options
from ollama_trainer.pipeline.golden import golden_chats
from ollama_trainer.pipeline.keep import held
from ollama_trainer.pipeline.parity import compare_with_ollama
from ollama_trainer.pipeline.plan import (
    check_trainable,
    recipe_for,
    replay_plan,
    with_smaller_batches,
)
from ollama_trainer.pipeline.residency import make_room
from ollama_trainer.pipeline.scales import scales_of
from ollama_trainer.pipeline.stages import check_snapshot, publishing_step
from ollama_trainer.pipeline.verify import base_losses, can_be_mended, check_learned, judge
from ollama_trainer.publishers import NOT_CHECKED, NOT_DONE, Publisher, PublisherOptions
from ollama_trainer.records import (
    Adapter,
    BaseGguf,
    Fidelity,
    Figures,
    PublishedModel,
    RunResult,
    Stage,
)
from ollama_trainer.replay import ReplaySettings, replay_texts
from ollama_trainer.workspace import write_text

_ADAPTER = TypeAdapter(Adapter)


def execute(run: Run) -> RunResult:
    """Runs every stage that is not done yet.

    Args:
        run: its directory holds the snapshot of the data set.

    Raises:
        TrainerError: a stage failed. No half-made file is left under a final name.
        LeaseLost: the server has given this worker up.
    """
    model = _finished_model(run, run.key)
    if model is None:
        model = _make(run)
    published = _publish_once(run, model)
    return _completed(run, model, published)


def publish_again(run: Run) -> RunResult:
    """Publishes the model of a finished run, without training.

    Raises:
        ExportError: it has no whole model any more.
        PublishError: it could not be published.
    """
    model = _finished_model(run, None)
    if model is None:
        raise ExportError(
            "This run has no whole model that could be published",
            "It never got so far, or its files were removed: train again.",
        )
    name = run.lease.publisher or run.spec.publisher
    return _completed(run, model, _publish(run, name, model))


def withdraw(run: Run) -> RunResult:
    """Takes back what a cancelled run left with its publisher.

    Raises:
        PublishError: something may be left.
    """
    step = publishing_step(run.directory)
    if step is not None:
        publisher = publishers.get(run.spec.publisher, _publisher_options(run))
        publisher.withdraw(run.spec.model_name, named=step == "name")
        run.directory.manifest("publish").unlink(missing_ok=True)
        run.directory.publishing.unlink()
    return RunResult(status="completed")


#: What a lease may ask for.
TASKS: dict[str, Callable[[Run], RunResult]] = {
    "run": execute,
    "publish": publish_again,
    "withdraw": withdraw,
}


def _completed(run: Run, model: FinishedModel, published: PublishedModel) -> RunResult:
    return RunResult(
        status="completed",
        output_model_ref=published.ref,
        gguf=run.directory.gguf.absolute(),
        modelfile=run.directory.modelfile.absolute(),
        fidelity=model.fidelity,
        seconds=run.seconds,
        metrics={**run.metrics, "next_command": published.next_command},
    )


def _finished_model(run: Run, key: str | None) -> FinishedModel | None:
    """The model that an earlier attempt made and found good."""
    told = run.stages.load("modelfile", key)
    if told is None:
        return None
    run.recall(told)
    return FinishedModel.from_fields(told)


def _make(run: Run) -> FinishedModel:
    base, gguf = _base(run)
    with held(base, run.directory.kept) as existing:
        return _make_of(run, base, gguf, existing)


def _make_of(
    run: Run, base: BaseGguf, gguf: GgufFile, existing: Callable[[], BaseGguf]
) -> FinishedModel:
    """What `existing` returns is the base by names that its files still have."""
    data = _dataset(run, base, gguf)
    # Made before training, so that wrong settings cost no training.
    publishers.get(run.spec.publisher, _publisher_options(run))
    modelfile = _modelfile(run, base, gguf, data)
    recipe = recipe_for(gguf, run.spec.training, len(data.examples))
    recipe = with_smaller_batches(recipe, run.lease.halvings)
    run.metrics["recipe"] = dataclasses.asdict(recipe)
    key = key_of(run.key, base.digest)
    adapter = _trained(run, key) or _train(run, key, base, data, recipe)
    # Hours may have passed.
    base = still_there(existing(), run.spec)
    gguf = read_gguf(base.gguf)
    fidelity = _export(run, key, base, gguf, data, adapter, recipe.layers)
    with run.stage(Stage.VERIFY):
        golden = golden_chats(gguf, run.directory.gguf, data.candidates)
    model = FinishedModel.of(base, data, modelfile, fidelity, golden)
    write_text(run.directory.modelfile, modelfile.text)
    files = [run.directory.gguf, run.directory.modelfile]
    run.stages.save("modelfile", run.key, files, {**model.fields, **run.told()})
    return model


def _modelfile(run: Run, base: BaseGguf, gguf: GgufFile, data: PreparedData) -> Modelfile:
    """Made before training, too: a base that says nonsense should cost none."""
    modelfile = modelfile_of(base, gguf, data.stop)
    if missing := left_out(base, modelfile):
        run.note("what the tuned model does not get of its base", missing)
    return modelfile


def _base(run: Run) -> tuple[BaseGguf, GgufFile]:
    with run.stage(Stage.BASE) as report:
        # One worker at a time uses the cache: nothing is in use now.
        caches.prune(run.spec.cache_dir, int(run.spec.cache_gigabytes * 1e9))
        base = base_of_run(run.directory, run.spec, run.check_lease, run.note, lambda: report(0.0))
        gguf = read_gguf(base.gguf)
        check_trainable(gguf)
        check_quantization(run.spec.quantization)
        backends.get(run.spec.backend)
        run.metrics |= {"base": base.name, "base_digest": base.digest}
    return base, gguf


def _dataset(run: Run, base: BaseGguf, gguf: GgufFile) -> PreparedData:
    with run.stage(Stage.DATASET):
        check_snapshot(run.directory)
        training = within_context(run.spec.training, gguf)
        with run.directory.scratch() as scratch:
            data = prepare(
                run.directory.dataset,
                gguf,
                training,
                run.spec.dataset,
                scratch,
                model=base.ollama,
                ollama_host=run.spec.ollama_host,
            )
        compare_with_ollama(run.spec, base, gguf, data.prompts, run.note)
        report = data.report
        write_text(run.directory.dataset_report, report.model_dump_json(indent=1))
        run.metrics |= {
            "rows_read": report.rows_read,
            "rows_used": report.rows_used,
            "rows_held_out": data.n_kept,
            "dropped": {reason: rows.count for reason, rows in report.dropped.items()},
            "format": report.format,
            "method": report.method,
            "method_reason": report.method_reason,
            "trained_with": report.trained_with,
        }
        said = report.model_dump(mode="json", exclude={"samples"})
        run.note(
            f"{report.rows_used} of {report.rows_read} rows are used,"
            f" {data.n_kept} of them to judge the result",
            said,
        )
    return data


def _trained(run: Run, key: str) -> Adapter | None:
    """The adapter that an earlier attempt trained."""
    told = run.stages.load("train", key)
    if told is None:
        return None
    run.recall(told)
    return _ADAPTER.validate_json(told["adapter"])


def _train(run: Run, key: str, base: BaseGguf, data: PreparedData, recipe: Recipe) -> Adapter:
    replay = _replay(run, base, data, recipe)
    directory = run.directory
    statistics = directory.statistics if run.spec.rounding == "compensated" else None
    job = TrainJob(
        base=base,
        examples=data.examples,
        recipe=recipe,
        replay=replay,
        held_out=data.held_out,
        probe=data.probe,
        out=directory.adapter,
        statistics=statistics,
        cache=run.spec.cache_dir,
        checkpoints=directory.checkpoints,
        checkpoint_every_s=run.spec.checkpoint_every_s,
        key=key,
        saved=run.checkpoint_saved,
    )
    with run.stage(Stage.TRAIN):
        backend = backends.get(run.spec.backend)
        make_room(run.spec, base, recipe, backend, run.note)
        try:
            adapter = backend.train(job, run.report)
        except OutOfMemory as error:
            # A batch of one cannot be halved.
            error.retryable = recipe.batch_size > 1
            raise
        run.metrics |= {
            "steps": adapter.steps,
            "final_loss": adapter.final_loss,
            "held_out_losses": adapter.held_out_losses,
            "divergence": adapter.divergence,
            "divergence_from_served": adapter.divergence_from_served,
            "train_seconds": adapter.seconds,
        }
    outputs = [directory.adapter] + ([statistics] if statistics else [])
    told = {"adapter": _ADAPTER.dump_json(adapter).decode(), **run.told()}
    run.stages.save("train", key, outputs, told)
    return adapter


def _replay(run: Run, base: BaseGguf, data: PreparedData, recipe: Recipe) -> ReplayPlan:
    if run.spec.training.replay == "off" and run.spec.rounding != "compensated":
        return ReplayPlan()
    with run.stage(Stage.REPLAY) as report:
        texts = replay_texts(
            base,
            run.spec.cache_dir,
            ReplaySettings(),
            ollama_host=run.spec.ollama_host,
            progress=report,
        )
        plan = replay_plan(texts, run.spec.training, data.examples, recipe)
        run.metrics["replay"] = {
            "texts": len(texts),
            "tokens": sum(len(text.ids) for text in texts),
            "weight": plan.weight,
            "every": plan.every,
        }
    return plan


def _export(
    run: Run,
    key: str,
    base: BaseGguf,
    gguf: GgufFile,
    data: PreparedData,
    adapter: Adapter,
    layers: tuple[int, ...],
) -> Fidelity:
    """Exports, reads and judges; climbs to larger types until the file is good enough."""
    spec = run.spec
    with run.stage(Stage.EXPORT) as report:
        scales = scales_of(gguf, spec.quantization, spec.cache_dir, base.digest, report)
    with run.stage(Stage.VERIFY):
        compared = base_losses(base, scales, data, spec.cache_dir)
    ladder = rungs(gguf, spec.quantization, layers)
    left = run.stages.load("export", key)
    earlier = [Figures.model_validate(said) for said in left["earlier"]] if left else []
    for rung in ladder[len(earlier) :]:
        if left is not None and left["rung"] == rung:
            done = MergeReport(**left["report"])
        else:
            done = _export_as(run, key, base, gguf, scales, rung, earlier)
        with run.stage(Stage.VERIFY):
            name = rung or spec.quantization
            figures = judge(run.directory.gguf, name, data, adapter, compared, spec.fidelity)
        if not can_be_mended(figures, spec.fidelity) or rung == ladder[-1]:
            break
        earlier.append(figures)
    check_learned(figures)
    run.metrics |= {
        "gguf_bytes": done.n_bytes,
        "base_bytes": sum(part.path.stat().st_size for part in (scales or gguf).parts),
        "tensors_compensated": done.n_compensated,
        "tensors_touched": done.n_touched,
    }
    fidelity = Fidelity(
        figures=figures,
        earlier=tuple(earlier),
        n_rows=data.n_kept,
        n_rephrased=len(data.held_out) - data.n_kept,
    )
    run.note("what the finished model is like", fidelity.model_dump(mode="json"))
    return fidelity


def _export_as(
    run: Run,
    key: str,
    base: BaseGguf,
    gguf: GgufFile,
    scales: GgufFile | None,
    rung: str | None,
    earlier: list[Figures],
) -> MergeReport:
    """Exports with touched tensors of one type; `earlier` were found not good enough."""
    spec = run.spec
    with run.stage(Stage.EXPORT) as report:
        done = export(
            gguf,
            run.directory.adapter,
            run.directory.gguf,
            quantization=spec.quantization,
            at_least=rung,
            statistics=run.directory.statistics if spec.rounding == "compensated" else None,
            scales=scales,
            base_digest=base.digest,
            run=spec,
            seed=spec.training.seed,
            model=base.ollama,
            progress=report,
        )
    told = {
        "rung": rung,
        "report": dataclasses.asdict(done),
        "earlier": [figures.model_dump(mode="json") for figures in earlier],
    }
    run.stages.save("export", key, [run.directory.gguf], told)
    return done


def _publisher_options(run: Run, model: FinishedModel | None = None) -> PublisherOptions:
    def confirm(step: str) -> None:
        run.check_lease()
        # A name once given stays to be taken back, whatever a later attempt begins with.
        if publishing_step(run.directory) != "name":
            write_text(run.directory.publishing, json.dumps({"step": step}) + "\n")

    return publisher_options(model, run.spec.ollama_host, run.lease.token, confirm)


def _publish_once(run: Run, model: FinishedModel) -> PublishedModel:
    """Publishes, unless an earlier attempt did and died before it could say so."""
    key = key_of(run.key, run.spec.publisher, run.spec.ollama_host, run.spec.model_name)
    told = run.stages.load("publish", key)
    if told is not None:
        return PublishedModel(ref=told["ref"], next_command=told["next_command"])
    published = _publish(run, run.spec.publisher, model)
    run.stages.save("publish", key, [], dataclasses.asdict(published))
    return published


def _publish(run: Run, name: str, model: FinishedModel) -> PublishedModel:
    publisher: Publisher = publishers.get(name, _publisher_options(run, model))
    with run.stage(Stage.PUBLISH) as report:
        return publisher.publish(
            run.directory.gguf,
            model.modelfile,
            run.spec.model_name,
            functools.partial(_told, run, report),
        )


def _told(run: Run, report: Callable[[float], None], fraction: float, what: str) -> None:
    """Passes on what a publisher reports; what it could not do is worth a note."""
    if what.startswith((NOT_CHECKED, NOT_DONE)):
        run.note(what, {})
    report(fraction)
