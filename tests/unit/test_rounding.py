"""Rounding by chance: what a LoRA changes is kept in expectation, what it does not is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.grids import dequantize, grid_of
from ollama_trainer.gguf.rounding import add_on_grid, generator_for, noise, transposed
from tests.quantised import FLOATS, GRIDS, SCALES_AT, normal_rows, quantised

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
SEEDS = 200


def added(raw: Bytes, delta: Floats, kind: str, seed: int = 1) -> Bytes:
    generator = generator_for(seed, "blk.0.attn_q.weight")
    return add_on_grid(raw, delta.copy(), TYPE_BY_NAME[kind], generator)


class Around:
    """What lies beside each weight of some rows, found by writing neighbouring codes."""

    def __init__(self, raw: Bytes, kind: str) -> None:
        form = TYPE_BY_NAME[kind]
        self._grid, self._blocks, self._form = grid_of(form), raw.reshape(-1, form.n_bytes), form
        self._shape = raw.shape
        codes = self._grid.decode(self._blocks).codes
        self.value = dequantize(raw, form)
        self.above, self.below = self._at(codes.astype(int) + 1), self._at(codes.astype(int) - 1)
        inner = (codes > self._grid.low) & (codes < self._grid.high)
        #: Which weights can move by one code in both directions, to other values.
        self.usable = inner.reshape(self.value.shape) & (self.above != self.value)
        ends = [self._at(np.full_like(codes, end)) for end in (self._grid.low, self._grid.high)]
        self.lowest, self.highest = np.minimum(*ends), np.maximum(*ends)

    def _at(self, codes: NDArray[Any]) -> Floats:
        kept = codes.clip(self._grid.low, self._grid.high).astype(np.uint8)
        return dequantize(
            self._grid.with_codes(self._blocks, kept).reshape(self._shape), self._form
        )

    def towards(self, share: Floats | float) -> Floats:
        """A share of the way to the next code up, or of that down where it is negative."""
        up, down = self.above - self.value, self.value - self.below
        result: Floats = np.where(np.asarray(share) > 0, up, down) * np.float32(1) * share
        return result.astype(np.float32)


@pytest.mark.parametrize("kind", [*GRIDS, *FLOATS])
def test_no_change_gives_the_same_bytes(kind: str) -> None:
    """A merge that moves weights by itself would harm the base; any noise must round away."""
    raw = quantised(normal_rows(32, 1024), kind)
    zeros = np.zeros((32, 1024), np.float32)
    for seed in range(4):
        np.testing.assert_array_equal(added(raw, zeros, kind, seed), raw)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("share", [0.02, -0.02])
def test_a_small_change_is_kept_in_expectation(kind: str, share: float) -> None:
    """Rounded to nearest, 2 % of a step is lost in every weight: the training would be undone."""
    raw = quantised(normal_rows(4, 512), kind)
    around = Around(raw, kind)
    delta = around.towards(share)
    total = np.zeros(delta.shape)
    for seed in range(SEEDS):
        total += dequantize(added(raw, delta, kind, seed), TYPE_BY_NAME[kind])
    whole = around.towards(np.sign(share))
    moved = ((total / SEEDS - around.value)[around.usable] / whole[around.usable]) * np.sign(share)
    # Each draw is 0 or 1 step, so the mean of all has the standard error of a binomial share.
    error = (abs(share) * (1 - abs(share)) / (SEEDS * moved.size)) ** 0.5
    assert abs(moved.mean() - share) < 5 * error
    assert 5 * error < abs(share) / 8, "nearest rounding, which moves nothing, would pass"


@pytest.mark.parametrize("kind", GRIDS)
def test_each_weight_gets_its_own_change_in_expectation(kind: str) -> None:
    """A right mean over a tensor can hide changes that went to the wrong weights."""
    raw = quantised(normal_rows(4, 256, seed=2), kind)
    around = Around(raw, kind)
    share = (np.random.default_rng(3).random(around.value.shape) * 2 - 1).astype(np.float32)
    delta = around.towards(share)
    total = np.zeros(delta.shape)
    for seed in range(SEEDS):
        total += dequantize(added(raw, delta, kind, seed), TYPE_BY_NAME[kind])
    mean = (total / SEEDS - around.value)[around.usable]
    whole = np.abs(delta / share)[around.usable]
    wanted = np.abs(share)[around.usable]
    errors = np.sqrt(wanted * (1 - wanted) / SEEDS) + 1 / SEEDS
    assert (np.abs(mean - delta[around.usable]) < 5 * errors * whole).all()


@pytest.mark.parametrize("kind", GRIDS)
def test_no_weight_lands_further_than_the_next_code(kind: str) -> None:
    """Rounding by chance may choose between two neighbours and nothing else."""
    raw = quantised(normal_rows(16, 512, seed=4), kind)
    around = Around(raw, kind)
    delta = ((np.random.default_rng(1).random(around.value.shape) * 6 - 3).astype(np.float32)
             * np.abs(around.above - around.value))  # fmt: skip
    after = Around(added(raw, delta, kind), kind)
    wanted = np.clip(around.value + delta, around.lowest, around.highest)
    reach = np.maximum(np.abs(after.above - after.value), np.abs(after.value - after.below))
    assert (np.abs(after.value - wanted)[around.usable] <= reach[around.usable] * 1.001).all()


@pytest.mark.parametrize("kind", [*GRIDS, "BF16"])
def test_seed_name_and_row_decide(kind: str) -> None:
    """The same run must give the same file; neither tensors nor chunks may share their noise."""
    raw = quantised(normal_rows(16, 1024), kind)
    size = Around(raw, kind).towards(0.3) if kind in GRIDS else np.full((16, 1024), 1e-4, "f4")
    first, again, *others = (
        add_on_grid(raw, size.copy(), TYPE_BY_NAME[kind], generator_for(*place))
        for place in ((1, "a", 0), (1, "a", 0), (1, "b", 0), (2, "a", 0), (1, "a", 1))
    )
    np.testing.assert_array_equal(first, again)
    assert all(not np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("scale", [0.0, np.inf, np.nan])
def test_a_scale_that_cannot_be_divided_by_is_safe(kind: str, scale: float) -> None:
    """Dividing by it gives infinities and NaN, which as codes would be arbitrary bytes."""
    raw = quantised(normal_rows(4, 512, seed=5), kind)
    blocks = raw.reshape(-1, TYPE_BY_NAME[kind].n_bytes)
    place = SCALES_AT[kind][0]
    blocks[:, place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    for change in (0.0, 1e-3, -1e3):
        delta = np.full((4, 512), change, np.float32)
        np.testing.assert_array_equal(added(raw, delta, kind), raw)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("change", [1e6, -1e6, 1e29])
def test_codes_stop_at_the_edges(kind: str, change: float) -> None:
    """A code past the edge would wrap around to the other end of the grid."""
    raw = quantised(normal_rows(4, 512, seed=6), kind)
    grid = grid_of(TYPE_BY_NAME[kind])
    after = added(raw, np.full((4, 512), change, np.float32), kind)
    decoded = grid.decode(after.reshape(-1, TYPE_BY_NAME[kind].n_bytes))
    edge = np.where(decoded.scale * np.sign(change) > 0, grid.high, grid.low)
    moving = np.broadcast_to(decoded.scale != 0, decoded.codes.shape)
    assert (decoded.codes == edge)[moving].all()


def test_noise_is_even_and_centred() -> None:
    """A bias would be a change of its own, and noise of a half would move weights by itself."""
    drawn = noise(generator_for(1, "x"), 1_000_001)
    assert drawn.shape == (1_000_001,)
    assert (drawn % 2 == 1).all()
    deviation = 65536 / 12**0.5
    assert abs(drawn.mean(dtype=np.float64)) < 5 * deviation / 1000
    assert drawn.std(dtype=np.float64) == pytest.approx(deviation, rel=0.01)
    neighbours = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(neighbours) < 0.005


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_halves_of_the_noise_are_not_related(share: float) -> None:
    """One is worked out from the other: decisions by them must agree no more than by chance."""
    drawn = noise(generator_for(1, "x"), 1 << 22).astype(np.float64)
    first, second = drawn[: 1 << 21], drawn[1 << 21 :]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.005
    up = drawn > 32768 * (1 - 2 * share)
    assert up.mean() == pytest.approx(share, rel=0.02)
    for shift in (0, 1, 1024):
        both = np.roll(up[: 1 << 21], shift) & up[1 << 21 :]
        deviation = share * (1 - share)
        assert abs(both.mean() - share**2) < 0.008 * deviation


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("size", [0.01, 0.5])
def test_a_known_bound_changes_nothing(kind: str, size: float) -> None:
    """It only spares a check; where it is too large for that, all is as without it."""
    raw = quantised(normal_rows(16, 512, seed=4), kind)
    delta = normal_rows(16, 512, seed=8) * np.float32(size / 0.05)
    largest = 1.001 * float(np.abs(delta).max())
    results = [
        add_on_grid(raw, delta.copy(), TYPE_BY_NAME[kind], generator_for(1, "x"), *bound)
        for bound in ((), (largest,))
    ]
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_smallest_changes_are_kept_too(sign: int) -> None:
    """A thousandth of a step, on two million weights: what few bits of noise would lose."""
    raw = quantised(normal_rows(512, 4096), "Q8_0")
    around = Around(raw, "Q8_0")
    after = dequantize(added(raw, around.towards(sign * 1e-3), "Q8_0"), TYPE_BY_NAME["Q8_0"])
    whole = (around.above - around.value)[around.usable]
    moved = (after - around.value)[around.usable] / whole
    assert moved.mean(dtype=np.float64) == pytest.approx(sign * 1e-3, rel=0.1)


def test_bf16_is_rounded_by_chance() -> None:
    """A BF16 weight has 8 bits: most changes of a LoRA are less than half of its last one."""
    base = np.full((64, 1024), 0.5, np.float32)
    raw = quantised(base, "BF16")
    step = 2.0**-8
    delta = np.full_like(base, 0.02 * step)
    after = dequantize(added(raw, delta, "BF16"), TYPE_BY_NAME["BF16"])
    assert set(after.ravel().tolist()) == {0.5, 0.5 + step}
    share = float(((after - base) / step).mean())
    assert abs(share - 0.02) < 5 * (0.02 * 0.98 / base.size) ** 0.5


def test_bf16_of_negative_weights_is_not_biased() -> None:
    """Its bits hold sign and magnitude: rounding them up must not mean towards minus infinity."""
    base = np.full((64, 1024), -0.5, np.float32)
    raw = quantised(base, "BF16")
    step = 2.0**-8
    delta = np.full_like(base, 0.3 * step / 2)
    moved = ((dequantize(added(raw, delta, "BF16"), TYPE_BY_NAME["BF16"]) - base) / step).mean()
    # Towards zero the steps are half as large.
    assert abs(moved - 0.15) < 5 * 0.5 * (0.3 * 0.7 / base.size) ** 0.5


def test_bf16_that_is_no_number_stays_none() -> None:
    """Noise added to its bits would make a number of it, or a NaN of an infinity."""
    base = np.array([[np.inf, -np.inf, np.nan, 1.0]] * 100, np.float32)
    after = dequantize(added(quantised(base, "BF16"), np.zeros_like(base), "BF16"),
                       TYPE_BY_NAME["BF16"])  # fmt: skip
    np.testing.assert_array_equal(after, base)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_finer_floats_are_simply_added_to(kind: str) -> None:
    """They can hold what a LoRA changes; noise would only add error."""
    raw, delta = (
        quantised(normal_rows(8, 256), kind),
        normal_rows(8, 256, seed=9) * np.float32(0.01),
    )
    after = dequantize(added(raw, delta, kind), TYPE_BY_NAME[kind])
    wanted = dequantize(raw, TYPE_BY_NAME[kind]) + delta
    np.testing.assert_array_equal(after, wanted if kind == "F32" else wanted.astype(np.float16))


@pytest.mark.parametrize("shape", [(1, 1), (31, 5), (32, 7), (100, 33)])
def test_transposing_in_stripes(shape: tuple[int, int]) -> None:
    """The last stripe is seldom a whole one."""
    matrix = np.arange(shape[0] * shape[1]).reshape(shape)
    np.testing.assert_array_equal(transposed(matrix), matrix.T)
    assert transposed(matrix).flags.c_contiguous
