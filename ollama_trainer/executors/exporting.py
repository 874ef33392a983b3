"""Merging an adapter into a base in a process of its own: see `ollama_trainer.exporter`."""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ollama_trainer.errors import (
    BaseModelError,
    DiskFull,
    ExportError,
    GgufError,
    InvalidRequest,
    MergedEqualsBase,
    NotANumber,
    ServerError,
)
from ollama_trainer.executors.asking import child, end_of
from ollama_trainer.records import ErrorInfo
from ollama_trainer.workspace import PARTIAL_SUFFIX

_log = logging.getLogger(__name__)
_COMMAND = (sys.executable, "-m", "ollama_trainer.exporter")
_KINDS = {
    kind.code: kind
    for kind in (
        BaseModelError,
        DiskFull,
        ExportError,
        GgufError,
        InvalidRequest,
        MergedEqualsBase,
        NotANumber,
    )
}

Rounding = Literal["compensated", "stochastic"]


class ExportQuestion(BaseModel):
    """What is asked. Paths are absolute."""

    model_config = ConfigDict(frozen=True)

    base: Path
    adapter: Path
    out: Path
    quantization: str
    #: Of the layers' inputs; compensated rounding needs them, stochastic rounding has no use.
    statistics: Path | None
    seed: int

    @property
    def rounding(self) -> Rounding:
        return "stochastic" if self.statistics is None else "compensated"


class Exported(BaseModel):
    """What was made."""

    model_config = ConfigDict(frozen=True)

    path: Path
    n_bytes: int
    #: SHA-256, lower-case hex.
    digest: str
    #: Tensors that the adapter changes, those of them that were rounded with compensation, and
    #: those that are the base's.
    n_touched: int
    n_compensated: int
    n_copied: int
    quantization: str
    rounding: Rounding
    seed: int
    seconds: float


class ExportLine(BaseModel):
    """A line that the exporter prints: how far it is, or the last one: what came of it."""

    model_config = ConfigDict(frozen=True)

    progress: float | None = None
    exported: Exported | None = None
    error: ErrorInfo | None = None


async def export_adapter(
    question: ExportQuestion, progress: Callable[[float], None] = lambda _fraction: None
) -> Exported:
    """Writes a base with an adapter merged into it, whole or not at all.

    Args:
        progress: called with the share that is done, 0 to 1.

    Raises:
        InvalidRequest: the result would lie on one of its own sources.
        BaseModelError, GgufError: the base cannot be read, or is of a kind that is not supported.
        ExportError: the adapter cannot be merged into it, or the result not be written.
        ServerError: the exporter broke.
    """
    try:
        async with child(*_COMMAND) as process:
            last, complaints = await _talk(process, question, progress)
    except BaseException:
        # The exporter is gone and can no longer do this itself.
        partial = question.out.with_name(question.out.name + PARTIAL_SUFFIX)
        partial.unlink(missing_ok=True)
        raise
    if last.error is not None:
        kind = _KINDS.get(last.error.code, ServerError)
        raise kind(last.error.cause, last.error.remedy)
    if last.exported is None:
        code = process.returncode
        _log.error("the exporter broke with exit code %s: %s", code, end_of(complaints))
        raise ServerError(
            f"the export broke off with exit code {code}",
            "See what is printed above; please report it.",
        )
    return last.exported


async def _talk(
    process: Process, question: ExportQuestion, progress: Callable[[float], None]
) -> tuple[ExportLine, bytes]:
    """Asks and listens until the exporter has ended: its last line, and what it complained of."""
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise RuntimeError("the exporter has no pipes")
    complaints = asyncio.create_task(process.stderr.read())
    process.stdin.write(question.model_dump_json().encode())
    process.stdin.close()
    last = ExportLine()
    async for said in process.stdout:
        last = ExportLine.model_validate_json(said)
        if last.progress is not None:
            progress(last.progress)
    await process.wait()
    return last, await complaints
