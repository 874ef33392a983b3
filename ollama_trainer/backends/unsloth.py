"""LoRA by Unsloth: on CUDA, ROCm, XPU, and on the CPU.

Rows come as ids and loss mask, so no tokenizer has a say. Every hyperparameter is set here, since
Unsloth's defaults differ from TRL's and both change between versions.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ollama_trainer.backends import FreeMemory, TrainJob
from ollama_trainer.backends._checkpoints import Checkpoints, open_checkpoints
from ollama_trainer.backends._early_stop import early_stop_callback
from ollama_trainer.backends._forward import read_model
from ollama_trainer.backends._inputs import gather_inputs
from ollama_trainer.backends._replay import ReplayMixin
from ollama_trainer.backends._same_model import check_same
from ollama_trainer.bases.dequantized import dequantized_directory
from ollama_trainer.errors import BackendUnavailable, OutOfMemory, TrainingFailed
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.records import Adapter, Progress, Reading, Stage
from ollama_trainer.workspace import atomic_directory

if TYPE_CHECKING:
    import torch
    from transformers import TrainerCallback


def train(job: TrainJob, report: Callable[[Progress], None]) -> Adapter:
    """Trains a LoRA on tokenised examples and saves it as a PEFT adapter.

    Goes on from the newest whole checkpoint, if there is one; on a CPU to the very same adapter as
    without a break.

    Args:
        job: base, examples, recipe and directories.
        report: called at every step.

    Raises:
        BackendUnavailable: Unsloth cannot be imported.
        ModelDiffers: the model is not the one that llama.cpp serves.
        OutOfMemory: the device's or the host's memory does not suffice.
        TrainingFailed: the loss stopped being a number, or training broke off.
        Exception: no room was left for a checkpoint (see `errors.is_disk_full`), or what
            `job.saved` raised.
    """
    import_unsloth(job.cache)
    try:
        with open_checkpoints(job) as checkpoints:
            return _train(job, report, checkpoints)
    except (RuntimeError, MemoryError, OSError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"Memory ran out with a batch_size of {job.recipe.batch_size}",
            "Set a smaller batch_size.",
        ) from error


def free_memory(cache: Path) -> FreeMemory:
    """See `Backend.free_memory`."""
    # First, since it settles how torch allocates before the device is touched.
    import_unsloth(cache)
    import torch

    for device in (torch.cuda, torch.xpu):
        if device.is_available():
            free, _total = device.mem_get_info()
            return FreeMemory(n_bytes=free, on_gpu=True)
    return FreeMemory(n_bytes=psutil.virtual_memory().available, on_gpu=False)


def _train(job: TrainJob, report: Callable[[Progress], None], checkpoints: Checkpoints) -> Adapter:
    import torch

    torch.manual_seed(job.recipe.seed)
    clock, own = Clock(), checkpoints.own
    clock.seconds["steps"] = own.seconds
    with clock("load"):
        model, tokenizer = _load(job)
        callbacks = [
            _progress_callback(job, report),
            early_stop_callback(model, job, own.held_out),
            checkpoints.callback(),
        ]
        trainer = _trainer(model, tokenizer, job, checkpoints, callbacks)
    with clock("compare"):
        apart = check_same(model, job.base.gguf, job.examples)
    with clock("steps"):
        newest = str(checkpoints.newest) if checkpoints.newest else None
        loss = trainer.train(resume_from_checkpoint=newest).training_loss
    if not math.isfinite(loss):
        raise TrainingFailed("The loss stopped being a number", "Set a lower learning_rate.")
    with atomic_directory(job.out) as partial:
        model.save_pretrained(str(partial), safe_serialization=True)
    readings = _readings(model, job, clock)
    return Adapter(
        path=job.out,
        final_loss=_last_loss(trainer),
        steps=trainer.state.global_step,
        held_out_losses=tuple(own.held_out),
        divergence=own.replay.last_divergence,
        divergence_from_served=apart,
        seconds=clock.seconds | {"replay": round(own.replay.seconds, 3)},
        **readings,
    )


class Clock:
    """Takes the time of the parts of a training; more time for a part is added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        took = self.seconds.get(name, 0.0) + time.monotonic() - started
        self.seconds[name] = round(took, 3)


def _readings(model: Any, job: TrainJob, clock: Clock) -> dict[str, Reading]:
    """What the trained model says, and the statistics of its layers' inputs."""
    readings = {}
    with clock("reading"):
        for name, examples in (("held_out", job.held_out), ("unrelated", job.probe)):
            if examples:
                readings[name] = read_model(model, examples)
    if job.statistics is not None:
        with clock("statistics"):
            rows = [example.ids for example in job.examples]
            replayed = [text.ids for batch in job.replay.batches for text in batch]
            gather_inputs(model, {"rows": rows, "replay": replayed}, job.statistics)
    return readings


def import_unsloth(cache: Path) -> None:
    """Imports Unsloth, which must come before torch's other users and patches them.

    On a CPU its kernels run as fast uncompiled as compiled (1.5 s a step against 1.6 s), and
    compiling them takes 46 to 70 s, so there it is never worth it.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    # By default it writes into the working directory.
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache / "unsloth"))
    try:
        import torch

        if not _has_accelerator(torch):
            os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "1")
        import unsloth  # noqa: F401
    except (ImportError, NotImplementedError) as error:
        raise BackendUnavailable(
            f"Unsloth cannot be used: {error}", "Install ollama-trainer[train]."
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the device's or the host's.

    On a GPU torch says so by a class of its own, on a CPU by the words alone.
    """
    import torch

    words = ("can't allocate memory", "not enough memory", "out of memory")
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(some in str(error).lower() for some in words))
    )


def _dtype() -> torch.dtype:
    """bfloat16, except on GPUs that only know float16."""
    import torch

    cuda_without = torch.cuda.is_available() and not torch.cuda.is_bf16_supported()
    return torch.float16 if cuda_without else torch.bfloat16


def _has_accelerator(torch: Any) -> bool:
    return bool(torch.cuda.is_available() or torch.xpu.is_available())


def _load(job: TrainJob) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    recipe = job.recipe
    dtype = _dtype()
    directory = dequantized_directory(job.base, job.cache, dtype)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(directory),
        max_seq_length=recipe.max_length,
        dtype=dtype,
        load_in_4bit=False,
        attn_implementation=_attention(job),
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.target_modules),
        layers_to_transform=list(recipe.layers),
        lora_dropout=0,
        bias="none",
        use_rslora=False,
        use_gradient_checkpointing="unsloth" if _needs_checkpointing(job) else False,
        random_state=recipe.seed,
    )
    return model, tokenizer


def _attention(job: TrainJob) -> str:
    """Which attention computes a step.

    torch's fused one takes a fifth of a step on a CPU for sequences of 50 tokens, most of it in the
    backward pass; the plain one is quick there, and its memory, quadratic in the length, small.
    """
    import torch

    # The fused one knows no soft cap and would leave it out.
    if read_gguf(job.base.gguf).hyperparameter("attn_logit_softcapping"):
        return "eager"
    longest = max(len(example.ids) for example in job.examples)
    return "eager" if longest <= 256 and not _has_accelerator(torch) else "sdpa"


def _needs_checkpointing(job: TrainJob) -> bool:
    """Whether activations are computed twice to save memory; short examples need little of it."""
    return job.recipe.batch_size * max(len(example.ids) for example in job.examples) > 8192


def _trainer(
    model: Any,
    tokenizer: Any,
    job: TrainJob,
    checkpoints: Checkpoints,
    callbacks: Sequence[TrainerCallback],
) -> Any:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    recipe = job.recipe
    rows = Dataset.from_list(
        [{"input_ids": list(e.ids), "completion_mask": list(e.mask)} for e in job.examples]
    )
    arguments = SFTConfig(
        output_dir=str(checkpoints.partial),
        max_length=recipe.max_length,
        completion_only_loss=True,
        packing=False,
        padding_free=False,
        dataset_num_proc=None,
        max_steps=recipe.steps,
        per_device_train_batch_size=min(recipe.batch_size, len(job.examples)),
        gradient_accumulation_steps=recipe.accumulation,
        gradient_checkpointing=_needs_checkpointing(job),
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type="cosine",
        # On a CPU Unsloth puts it in the place of "adamw_torch" in any case.
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.99,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=_dtype() == torch.bfloat16,
        fp16=_dtype() == torch.float16,
        seed=recipe.seed,
        data_seed=recipe.seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_steps=1,
        # By default a loss that is no number is logged as 0, which looks like perfect learning.
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    class Trainer(ReplayMixin, SFTTrainer):  # type: ignore[misc]
        replay_plan = job.replay
        replay_log = checkpoints.own.replay

    return Trainer(
        model=model,
        processing_class=tokenizer,
        args=arguments,
        train_dataset=rows,
        callbacks=list(callbacks),
    )


def _progress_callback(job: TrainJob, report: Callable[[Progress], None]) -> TrainerCallback:
    from transformers import TrainerCallback

    n_tokens = sum(len(example.ids) for example in job.examples) / len(job.examples)
    batches = job.recipe.batch_size * job.recipe.accumulation
    tokens_a_step = n_tokens * min(batches, len(job.examples))

    class Reporter(TrainerCallback):  # type: ignore[misc]
        started, first = 0.0, 0

        def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            # Steps of an earlier process took time that nobody has taken here.
            self.started, self.first = time.monotonic(), state.global_step

        def on_log(self, _args: Any, state: Any, control: Any, logs: Any, **__: Any) -> None:
            if "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                # No later step can mend it, and it is no figure to report.
                control.should_training_stop = True
                return
            seconds = (time.monotonic() - self.started) / (state.global_step - self.first)
            report(
                Progress(
                    stage=Stage.TRAIN,
                    fraction=state.global_step / state.max_steps,
                    step=state.global_step,
                    steps=state.max_steps,
                    loss=float(logs["loss"]),
                    tokens_per_s=tokens_a_step / seconds,
                    left_s=seconds * (state.max_steps - state.global_step),
                )
            )

    return Reporter()


def _last_loss(trainer: Any) -> float | None:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1]) if losses else None
