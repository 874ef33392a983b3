"""What compensated rounding knows of each layer: which matrix, what is added, where it lies."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ollama_trainer.gguf import feedbacks
from ollama_trainer.gguf.adapter import LoraPair
from ollama_trainer.gguf.compensation import CPU
from ollama_trainer.gguf.feedbacks import Feedbacks, Protected, RoundingOptions
from tests.merging import LAYERS, Q_PROJ, UP_PROJ, V_PROJ, inputs, lora, statistics
from tests.moments import PlainMoment, dense


def protected_by_hand(
    square: NDArray[np.float32], pairs: list[LoraPair], protection: float
) -> NDArray[np.float64]:
    """H + c D'D for every change D, written out in full."""
    total = square.astype(np.float64)
    share = protection * square.diagonal().mean() * sum(len(pair.down) for pair in pairs)
    for pair in pairs:
        change = pair.up.astype(np.float64) @ pair.down.astype(np.float64)
        reads = change.T @ change
        total = total + reads * share / np.trace(reads)
    return total


@pytest.mark.parametrize("width", [40, 300, 520])
@pytest.mark.parametrize("n_pairs", [0, 1, 3])
def test_what_adapters_read_is_added(width: int, n_pairs: int) -> None:
    """Panels end at 256, and stand in another order than the adapter's features."""
    x = inputs(1, 8 * (width // 8))
    square: NDArray[np.float32] = x.T @ x / np.float32(len(x))
    generator = np.random.default_rng(3)
    pairs = [
        LoraPair(
            generator.standard_normal((rank, len(square)), np.float32),
            generator.standard_normal((9, rank), np.float32) * np.float32(1e-3),
        )
        for rank in range(2, 2 + n_pairs)
    ]
    found = Protected(PlainMoment(square), pairs, 5.0)
    wanted = protected_by_hand(square, pairs, 5.0)
    tolerance = 1e-5 * wanted.diagonal().max()
    np.testing.assert_allclose(dense(found), wanted, rtol=1e-4, atol=tolerance)
    np.testing.assert_allclose(found.diagonal, wanted.diagonal()[found.order], rtol=1e-4)


def test_a_change_of_nothing_adds_nothing() -> None:
    """An adapter whose training has not begun: 0/0 would make the statistics none."""
    square = np.eye(5, dtype=np.float32)
    pair = LoraPair(np.ones((2, 5), np.float32), np.zeros((3, 2), np.float32))
    np.testing.assert_array_equal(dense(Protected(PlainMoment(square), [pair], 5.0)), square)


def made(directory: Path, *modules: str) -> Feedbacks:
    """For modules that share one input, and an adapter on all layers."""
    known = statistics(directory, *modules)
    return Feedbacks(known, lora(), list(LAYERS), RoundingOptions(), map)


def test_modules_of_one_input_share_one_matrix(tmp_path: Path) -> None:
    """It is as large as all of a layer's weights, and gone once nobody needs it."""
    found = made(tmp_path / "statistics", Q_PROJ, UP_PROJ)
    first, none, second = (found.take(module) for module in (Q_PROJ, V_PROJ, UP_PROJ))
    assert none is None
    assert first is not None
    assert second is not None
    assert first.feedback is second.feedback
    assert found.n_taken == 2
    assert not found._kept


def test_room_is_asked_for_before_a_large_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is there already, or that nobody knows, takes none."""
    found = made(tmp_path / "statistics", Q_PROJ, UP_PROJ)
    assert not found.needs_room(Q_PROJ)
    monkeypatch.setattr(feedbacks, "_LARGE_BYTES", 1000)
    assert found.needs_room(Q_PROJ)
    assert not found.needs_room(V_PROJ)
    assert found.n_bytes == 0
    found.take(Q_PROJ)
    assert not found.needs_room(UP_PROJ)
    assert found.n_bytes > 1000


@pytest.mark.parametrize(
    ("n", "loaded", "has_gpu", "device"),
    [
        (4096, True, True, "cuda"),
        (2047, True, True, None),
        (4096, True, False, None),
        (4096, False, True, None),
    ],
)
def test_a_gpu_is_used_where_torch_is_loaded_anyway(
    monkeypatch: pytest.MonkeyPatch, n: int, loaded: bool, has_gpu: bool, device: str | None
) -> None:
    """Loading torch takes longer than a whole export."""
    torch: Any = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: has_gpu))
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", torch)
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    arrays = feedbacks._arrays_for(n)
    assert arrays.device == device
    assert (arrays is CPU) == (device is None)
    assert ("torch" in sys.modules) == loaded
