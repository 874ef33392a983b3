"""A process that merges one adapter into one base: python -m ollama_trainer.exporter.

Reads what is asked from its standard input and writes to its standard output how far it is, line
by line, and last the result, or the error, all as JSON. A process of its own, because the command
line must not import what reads adapters.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ollama_trainer.bases.digests import digest_of
from ollama_trainer.errors import ExportError, InvalidRequest, TrainerError
from ollama_trainer.executors.exporting import Exported, ExportLine, ExportQuestion
from ollama_trainer.executors.parentwatch import exit_with_parent
from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.statistics import InputStatistics
from ollama_trainer.manifests import file_sha256
from ollama_trainer.pipeline.export import check_quantization, export
from ollama_trainer.pipeline.scales import scales_of
from ollama_trainer.records import ErrorInfo

#: Lines of progress at most.
_STEPS = 200


def main() -> int:
    """Answers one question; returns the exit code."""
    exit_with_parent()
    question = ExportQuestion.model_validate_json(sys.stdin.buffer.read())
    line = _answer(question)
    _say(line)
    return 0 if line.error is None else 1


def _answer(question: ExportQuestion) -> ExportLine:
    try:
        return ExportLine(exported=_export(question))
    except TrainerError as error:
        return ExportLine(error=ErrorInfo.of(error))


def _export(question: ExportQuestion) -> Exported:
    started = time.monotonic()
    base = read_gguf(question.base)
    _check_out(question.out, base)
    if question.statistics is not None:
        _check_statistics(question.statistics, question.adapter)
    check_quantization(question.quantization)
    digest = digest_of(base)
    with tempfile.TemporaryDirectory(prefix=".scales-", dir=question.out.parent) as scratch:
        report = export(
            base,
            question.adapter,
            question.out,
            quantization=question.quantization,
            statistics=question.statistics,
            scales=scales_of(base, question.quantization, Path(scratch), digest),
            base_digest=digest,
            add_template=False,
            seed=question.seed,
            progress=_Progress(),
        )
    return Exported(
        path=question.out,
        n_bytes=report.n_bytes,
        digest=file_sha256(question.out),
        n_touched=report.n_touched,
        n_compensated=report.n_compensated,
        n_copied=report.n_copied,
        quantization=question.quantization,
        rounding=question.rounding,
        seed=question.seed,
        seconds=time.monotonic() - started,
    )


def _check_out(out: Path, base: GgufFile) -> None:
    for part in base.parts:
        if out.exists() and out.samefile(part.path):
            raise InvalidRequest(f"{out} is the base itself", "Give the result a name of its own.")


def _check_statistics(statistics: Path, adapter: Path) -> None:
    """Statistics of another model's layers would leave all of them to stochastic rounding."""
    known = InputStatistics(statistics).inputs
    if not any(module in known for module in read_adapter(adapter)):
        raise ExportError(
            f"The statistics in {statistics} know no layer that the adapter changes",
            "Use those of the run that the adapter was trained in.",
        )


class _Progress:
    """Says how far the export is, a limited number of times."""

    def __init__(self) -> None:
        self._said = -1

    def __call__(self, fraction: float) -> None:
        step = int(fraction * _STEPS)
        if step > self._said:
            self._said = step
            _say(ExportLine(progress=fraction))


def _say(line: ExportLine) -> None:
    sys.stdout.buffer.write(line.model_dump_json(exclude_none=True).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
