"""What of a training is left in the file that is served, and what it cost everything else.

For SmolLM2 in three 4- and 5-bit types, trained plainly and with replay, every way of putting the
result into a file is read by llama.cpp: questions that were never trained on, and the probe text.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import demo
from rich.console import Console

from ollama_trainer.bases import resolve_base
from ollama_trainer.client import running_server
from ollama_trainer.display import follow
from ollama_trainer.errors import TrainerError
from ollama_trainer.fidelity import answer_loss, learning_kept
from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.merge import RoundingOptions, merge
from ollama_trainer.gguf.statistics import InputStatistics
from ollama_trainer.pipeline.dataset import probe_text
from ollama_trainer.prompts import open_tokenizer
from ollama_trainer.records import RunResult, RunState, TokenizedExample
from ollama_trainer.settings import load_settings
from ollama_trainer.workspace import DataDirectory

if TYPE_CHECKING:
    from torch import Tensor

WORK = demo.ROOT / ".bench"
BASES = ("Q4_1", "Q4_0", "Q5_0")
TRAININGS = {"plain": "off", "replay": "auto"}
#: Every way of serving is asked for by name here; a run need not climb to it.
_ANYTHING_GOES = {
    "min_learning_kept": 0.0,
    "min_agreement": 0.0,
    "max_unrelated_over_trained": 10.0,
    "max_unrelated_over_base": 10.0,
}
Figures = dict[str, Any]


class _Nearest(InputStatistics):
    """Inputs without any correlation: compensation is then rounding to nearest."""

    def second_moment(self, name: str) -> Tensor:
        import torch

        return torch.eye(len(super().second_moment(name)))


def _merged(**options: Any) -> Callable[[GgufFile, Path, Path], None]:
    def write(base: GgufFile, run: Path, out: Path) -> None:
        merge(base, read_adapter(run / "adapter"), out, **options)

    return write


def _nearest(base: GgufFile, run: Path, out: Path) -> None:
    rounding = RoundingOptions(dither=0.0, protection=0.0)
    statistics = _Nearest(run / "statistics")
    merge(base, read_adapter(run / "adapter"), out, statistics=statistics, rounding=rounding)


def _compensated(base: GgufFile, run: Path, out: Path) -> None:
    merge(base, read_adapter(run / "adapter"), out, statistics=InputStatistics(run / "statistics"))


def _usual(base: GgufFile, run: Path, out: Path) -> None:
    """Merged in float16, then quantised by llama.cpp to the base's own type."""
    exact = out.with_suffix(".f16.gguf")
    _merged(quantization="f16")(base, run, exact)
    requantize(exact, out, base.by_name["blk.0.attn_q.weight"].type.name)
    exact.unlink()


#: Name in the table -> what writes the file.
SERVED: dict[str, Callable[[GgufFile, Path, Path], None]] = {
    "exact (F16)": _merged(quantization="f16"),
    "usual way": _usual,
    "nearest": _nearest,
    "stochastic": _merged(),
    "compensated": _compensated,
    "Q8_0": _merged(quantization="q8_0"),
}


def requantize(source: Path, target: Path, kind: str) -> None:
    """llama.cpp's own quantiser: every linear layer becomes `kind`, the embedding stays Q8_0."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.token_embedding_type = llama_cpp.GGML_TYPE_Q8_0
    options.allow_requantize = True
    options.pure = False
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options)
    if code != 0:
        raise TrainerError(f"llama.cpp could not quantise {source} (code {code})")


def bench_fidelity(console: Console) -> Figures:
    """Every base, training and way of serving, and what the defaults must reach."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    rows: list[Figures] = []
    runs: list[Figures] = []
    for kind in BASES:
        base = read_gguf(_base_of(kind))
        questions = demo.read_questions(base.path)
        probe = _probe(base)
        untuned = _read(base.path, questions, probe)
        rows.append({"base": kind, "training": "none", "served": "the base", **untuned})
        for training, replay in TRAININGS.items():
            settings = {"base": f"gguf:{base.path}", "replay": replay, **_ANYTHING_GOES}
            result = asyncio.run(train(demo.FEEDBACK, settings, console))
            runs.append({"base": kind, "training": training, **_costs(result)})
            exact: Figures = {}
            for served, write in SERVED.items():
                out = WORK / "served.gguf"
                write(base, _run_of(result), out)
                figures = _read(out, questions, probe)
                exact = exact or figures
                figures["learning_kept"] = learning_kept(
                    untuned["held_out_loss"], exact["held_out_loss"], figures["held_out_loss"]
                )
                figures["unrelated_over_base"] = (
                    figures["unrelated_loss"] - untuned["unrelated_loss"]
                )
                rows.append({"base": kind, "training": training, "served": served, **figures})
                console.print(rows[-1])
    return {"benchmark": "fidelity", "rows": rows, "runs": runs}


def _base_of(kind: str) -> Path:
    shipped = resolve_base("smollm2").gguf
    if kind == "Q4_1":
        return shipped
    path = WORK / f"base-{kind}.gguf"
    requantize(shipped, path, kind)
    return path


def _probe(base: GgufFile) -> tuple[TokenizedExample, ...]:
    with open_tokenizer(base) as tokenizer:
        return probe_text(tokenizer, 2048)


async def train(feedback: Path, settings: Mapping[str, object], console: Console) -> RunResult:
    """A real run of a server of its own.

    Raises:
        TrainerError: it failed.
    """
    data_dir = Path(tempfile.mkdtemp(dir=WORK))
    fixed = {"publisher": "folder", "data_dir": str(data_dir), "port": 0}
    async with running_server(load_settings({**settings, **fixed})) as trainer:
        run_id = await trainer.submit("bench", str(feedback))
        status = await follow(trainer, run_id, console)
    if status.status is RunState.FAILED:
        raise TrainerError(f"the run failed: {status.error}")
    result = DataDirectory(data_dir).run(run_id).read_result()
    if result is None:
        raise TrainerError("the run left no result")
    return result


def _run_of(result: RunResult) -> Path:
    assert result.gguf is not None
    return result.gguf.parent


def _costs(result: RunResult) -> Figures:
    """Seconds of the parts of a run; `steps` counts replay in."""
    seconds = result.metrics["train_seconds"]
    steps = seconds["steps"] - seconds["replay"]
    return {
        "steps_s": steps,
        "replay_s": seconds["replay"],
        "statistics_s": seconds["statistics"],
        "export_s": result.seconds["export"],
        "total_s": sum(result.seconds.values()),
        "replay_over_training": seconds["replay"] / steps,
        "rounding_over_training": (seconds["statistics"] + result.seconds["export"]) / steps,
    }


def _read(
    gguf: Path, questions: Sequence[demo.Question], probe: Sequence[TokenizedExample]
) -> Figures:
    given = demo.ask(gguf, list(questions))
    return {
        "right": demo.share_right(list(questions), given),
        "held_out_loss": answer_loss(gguf, [question.example for question in questions]),
        "unrelated_loss": answer_loss(gguf, probe),
        "megabytes": gguf.stat().st_size / 1e6,
    }
