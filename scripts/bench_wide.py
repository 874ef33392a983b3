"""Compensated rounding of layers as wide as those of an 8B model: time and memory.

Second moments of 4,096 tokens' worth of correlated inputs; weights in Q6_K; chunks of rows as in a
merge. `cholesky` times a bare factorisation of the same size: what the feedback cannot do without.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

from rich.console import Console

from ollama_trainer.gguf.compensation import feedback_of
from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.quantize import quantize_q6_k
from ollama_trainer.gguf.rounding import Compensation, add_on_grid, generator_for

Figures = dict[str, Any]
#: Inputs of a layer, and its outputs.
SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096))
_TOKENS = 4096
_CHUNK_WEIGHTS = 1 << 22


def bench_wide(console: Console) -> Figures:
    rows = []
    for n_inputs, n_outputs in SHAPES:
        rows.append(_measure(n_inputs, n_outputs))
        console.print(rows[-1])
    return {"benchmark": "wide", "rows": rows}


def _measure(n_inputs: int, n_outputs: int) -> Figures:
    import torch

    torch.manual_seed(1)
    moment = _moment(n_inputs)
    damped = moment.clone()
    damped.diagonal().add_(0.01)
    clock = time.monotonic()
    torch.linalg.cholesky(damped, out=damped)
    cholesky_s = time.monotonic() - clock
    del damped
    clock = time.monotonic()
    feedback = feedback_of(moment, 0.01)
    feedback_s = time.monotonic() - clock
    del moment
    n_rows = min(n_outputs, max(1, _CHUNK_WEIGHTS // n_inputs))
    kind = TYPE_BY_NAME["Q6_K"]
    raw = quantize_q6_k(torch.randn(n_rows, n_inputs) * 0.02)
    delta = torch.randn(n_rows, 16) @ torch.randn(16, n_inputs) * 1e-5
    clock = time.monotonic()
    add_on_grid(raw, delta, kind, generator_for(1, "x"), Compensation(feedback, 0.6))
    chunk_s = time.monotonic() - clock
    rounding_s = chunk_s * n_outputs / n_rows
    return {
        "inputs": n_inputs,
        "outputs": n_outputs,
        "cholesky_s": cholesky_s,
        "feedback_s": feedback_s,
        "rounding_s": rounding_s,
        "weights_a_second": n_inputs * n_outputs / (feedback_s + rounding_s),
        "moment_gigabytes": 4 * n_inputs**2 / 1e9,
        "peak_gigabytes": _peak_bytes() / 1e9,
    }


def _moment(n: int) -> Any:
    """X'X / tokens of inputs with a falling spectrum, as layers have them."""
    import torch

    x = torch.randn(_TOKENS, n) * torch.logspace(0, -2, n)
    x += torch.randn(_TOKENS, 1) * torch.randn(n) * 0.3
    return x.T @ x / _TOKENS


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
