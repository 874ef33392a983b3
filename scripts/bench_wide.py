"""Compensated rounding of layers as wide as those of an 8B model: time and memory.

Second moments of correlated inputs; weights in Q6_K; pieces of rows as in a merge, one for each
core, from which the time of all rows follows. Each shape has a process of its own.

Run as a script, it is one of those processes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bench_processes as processes
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ollama_trainer.gguf import touched
from ollama_trainer.gguf.blas import one_thread
from ollama_trainer.gguf.compensation import CPU, PANEL, Feedback, feedback_of
from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.pieces import settle_allocator
from ollama_trainer.gguf.quantize import quantize
from ollama_trainer.gguf.rounding import add_compensated, generator_for

Figures = dict[str, Any]
#: Inputs of a layer, and its outputs.
SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096))
_DIRECTIONS = 64


def bench_wide(console: Console) -> Figures:
    rows = []
    for shape in SHAPES:
        taken = processes.measured(processes.this_script(__file__, *shape))
        rows.append(json.loads(taken.said) | {"peak_gigabytes": taken.peak_bytes / 1e9})
        console.print(rows[-1])
    return {"benchmark": "wide", "rows": rows}


class _Moment:
    """Inputs of some strong directions and of features that fade: made up panel by panel."""

    def __init__(self, n: int) -> None:
        generator = np.random.default_rng(1)
        self.order = generator.permutation(n)
        strengths = np.logspace(-2, 0, n, dtype=np.float32)
        self._directions = generator.standard_normal((_DIRECTIONS, n), np.float32) * strengths
        self._own = 0.1 * strengths**2
        self.diagonal = (self._directions**2).sum(0) + self._own

    def panel(self, index: int) -> NDArray[np.float32]:
        start = index * PANEL
        stop = min(start + PANEL, len(self.order))
        panel = self._directions[:, start:stop].T @ self._directions[:, :stop]
        np.einsum("ii->i", panel[:, start:])[...] += self._own[start:stop]
        return panel


def measure(n_inputs: int, n_outputs: int) -> Figures:
    n_workers = os.cpu_count() or 1
    settle_allocator()
    with one_thread(), ThreadPoolExecutor(n_workers) as executor:
        clock = time.monotonic()
        feedback = feedback_of(_Moment(n_inputs), 0.01, CPU, executor.map)
        feedback_s = time.monotonic() - clock
        n_rows = min(n_outputs, touched.compensated_rows(n_inputs))
        clock = time.monotonic()
        for _ in executor.map(lambda seed: _piece(feedback, n_rows, seed), range(n_workers)):
            pass
        pieces_s = time.monotonic() - clock
    rounding_s = pieces_s * n_outputs / (n_rows * n_workers)
    return {
        "inputs": n_inputs,
        "outputs": n_outputs,
        "cores": n_workers,
        "feedback_s": feedback_s,
        "feedback_gigaflops": n_inputs**3 / 3 / feedback_s / 1e9,
        "rounding_s": rounding_s,
        "weights_a_second": n_inputs * n_outputs / (feedback_s + rounding_s),
        "moment_gigabytes": 4 * n_inputs**2 / 1e9,
    }


def _piece(feedback: Feedback, n_rows: int, seed: int) -> NDArray[np.uint8]:
    generator, n = np.random.default_rng(seed), len(feedback.order)
    kind = TYPE_BY_NAME["Q6_K"]
    few = quantize(generator.standard_normal((8, n), np.float32) * np.float32(0.02), kind)
    raw = np.tile(few, (-(-n_rows // len(few)), 1))[:n_rows]
    down = generator.standard_normal((n, 16), np.float32)
    wished = down @ (generator.standard_normal((16, n_rows), np.float32) * np.float32(1e-5))
    return add_compensated(raw, wished, kind, feedback, 0.6, generator_for(seed, "x"))


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
