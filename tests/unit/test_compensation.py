"""Error-compensated rounding: what a layer computes on its inputs is kept, not each weight.

It runs on numpy, and on torch where there is a GPU; here torch stands in for one on the CPU.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.compensation import (
    CPU,
    PANEL,
    Arrays,
    Feedback,
    Grain,
    feedback_of,
    round_compensated,
)
from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.grids import dequantize
from ollama_trainer.gguf.rounding import add_compensated, add_on_grid, generator_for, noise
from tests.moments import PlainMoment
from tests.quantised import GRIDS, SCALES_AT, normal_rows, quantised

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
ARRAYS = {"numpy": CPU, "torch": Arrays(torch, "cpu")}
on_both = pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS)
#: A grid whose ends nobody reaches from its middle.
MIDDLE, HIGHEST = 128, 255
#: Levels as IQ4_NL has them: the further from the middle, the further apart.
UNEVEN = np.array([-127, -83, -49, -22, 1, 25, 53, 113], np.float32)


def correlated(n: int, seed: int = 1, n_inputs: int = 4096, rank: int = 0) -> Floats:
    """Second moments of inputs as layers get them: few strong directions, some strong features."""
    generator = np.random.default_rng(seed)
    rank = rank or max(1, n // 8)
    mixing = generator.standard_normal((rank, n)) * generator.lognormal(0, 1, n)
    inputs = generator.standard_normal((n_inputs, rank)) @ mixing
    inputs += 0.1 * generator.standard_normal((n_inputs, n))
    moment: Floats = (inputs.T @ inputs / n_inputs).astype(np.float32)
    return moment


def normal(rows: int, n: int, size: float = 1.0, seed: int = 2) -> Floats:
    return (np.random.default_rng(seed).standard_normal((rows, n)) * size).astype(np.float32)


@cache
def correlated_512() -> tuple[Floats, Feedback]:
    """Moments and feedback that many tests share."""
    return correlated(512), known(correlated(512))


def known(square: Floats, damping: float = 0.01, arrays: Arrays = CPU) -> Feedback:
    return feedback_of(PlainMoment(square), damping, arrays)


def rounded(
    delta: Floats,
    feedback: Feedback,
    *,
    scale: Floats | None = None,
    codes: Any = MIDDLE,
    high: int = HIGHEST,
    levels: Floats | None = None,
    dither: float = 0.0,
    seed: int = 1,
) -> Floats:
    """Steps that weights move by, of shape (rows, columns) like all that is given."""
    order = feedback.order
    before = np.broadcast_to(np.asarray(codes, np.uint8), delta.shape)
    size = np.ones_like(delta) if scale is None else scale
    # Every column is a group of its own.
    grain = Grain(size.T[order].copy(), np.arange(len(order)), 0, high, levels)
    generator = generator_for(seed, "x")
    after, _ = round_compensated(
        delta.T[order],
        before.T[order],
        grain,
        feedback,
        (lambda n: noise(generator, n) * np.float32(dither / 65536)) if dither else None,
    )
    placed = np.empty_like(after)
    placed[order] = after
    result: Floats = placed.T.astype(np.float32) - before
    return result


def by_chance(delta: Floats) -> Floats:
    result: Floats = np.floor(delta + np.random.default_rng(1).random(delta.shape, np.float32))
    return result


def output_error(error: Floats, moment: Floats) -> float:
    """Sum of squares of what a layer computes wrongly on inputs of these moments."""
    exact = error.astype(np.float64)
    return float((exact @ moment.astype(np.float64) * exact).sum())


@on_both
@pytest.mark.parametrize("n", [64, 200])
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_errors_on_the_inputs_are_much_smaller(arrays: Arrays, n: int, size: float) -> None:
    """What it is for: changes of a twentieth of a step arrive in what the layer computes."""
    moment, delta = correlated(n), normal(40, n, size)
    compensated = output_error(delta - rounded(delta, known(moment, arrays=arrays)), moment)
    # Seen: at most 0.18 of nearest rounding, and 0.02 of rounding by chance.
    assert compensated < 0.4 * output_error(delta - delta.round(), moment)
    assert compensated < 0.05 * output_error(delta - by_chance(delta), moment)


def test_dither_costs_less_than_chance_alone() -> None:
    """The default leaves a part to chance; most of the gain must remain."""
    moment, delta = correlated(128), normal(40, 128)
    feedback = known(moment)
    errors = [
        output_error(delta - rounded(delta, feedback, dither=dither), moment)
        for dither in (0.0, 0.6, 1.0)
    ]
    alone = output_error(delta - by_chance(delta), moment)
    assert errors[0] < errors[1] < errors[2] < 0.1 * alone


@given(
    n=st.integers(1, 150),
    rows=st.integers(1, 5),
    size=st.floats(0.01, 5),
    seed=st.integers(0, 99),
    arrays=st.sampled_from(list(ARRAYS.values())),
)
@settings(max_examples=30, deadline=None)
def test_without_correlations_it_is_rounding_to_nearest(
    n: int, rows: int, size: float, seed: int, arrays: Arrays
) -> None:
    """No column can make good the error of another then, whatever the order."""
    delta = normal(rows, n, size, seed)
    weights = np.random.default_rng(seed).random(n, np.float32) + np.float32(0.1)
    steps = rounded(delta, known(np.diag(weights), arrays=arrays))
    # Beside a large code, a ten-thousandth of a step is not told from none.
    clear = np.abs(delta + 0.5 - np.round(delta + 0.5)) > 1e-4
    np.testing.assert_array_equal(steps[clear], np.floor(delta + 0.5)[clear])
    assert clear.mean() > 0.5


def by_hand(
    delta: Doubles,
    scale: Doubles,
    codes: NDArray[np.int64],
    levels: Doubles,
    moment: Doubles,
    damping: float,
) -> Doubles:
    """GPTQ as it is usually written: a column's error is spread over what is not rounded yet.

    The next column is eliminated from the inverse of H, which is another way to the same numbers.
    """
    rows, n = delta.shape
    damp = moment + damping * np.diag(moment).mean() * np.eye(n)
    order = np.argsort(np.diag(moment), kind="stable")[::-1]
    inverse = np.linalg.inv(damp[np.ix_(order, order)])
    wish, steps = delta[:, order].copy(), np.zeros((rows, n))
    for k in range(n):
        size, old = scale[:, order[k]], codes[:, order[k]]
        aim = levels[old] + np.where(size == 0, 0, wish[:, k] / np.where(size == 0, 1, size))
        new = np.floor(np.interp(aim, levels, np.arange(len(levels))) + 0.5).astype(int)
        steps[:, order[k]] = new - old
        error = (wish[:, k] - (levels[new] - levels[old]) * size) / inverse[k, k]
        wish[:, k:] -= np.outer(error, inverse[k, k:])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return steps


@on_both
@pytest.mark.parametrize("n", [1, 2, 16, 17, 65, 192, 257, 520])
@pytest.mark.parametrize("grid", ["free", "bounded", "uneven"])
def test_the_usual_algorithm_gives_the_same_numbers(arrays: Arrays, n: int, grid: str) -> None:
    """Blocks of columns, panels, an order turned round: one wrong index is mere noise."""
    moment = correlated(n, n_inputs=200, rank=max(1, n // 3))
    generator = np.random.default_rng(4)
    delta = normal(6, n, 0.8)
    scale = generator.random((6, n), np.float32) + np.float32(0.5)
    scale[:, 1::3] *= -1
    scale[0, ::2] = 0
    levels, codes = np.arange(256.0), np.full((6, n), MIDDLE)
    if grid == "bounded":
        levels, codes = np.arange(4.0), np.ones((6, n), np.int64)
    if grid == "uneven":
        levels, codes = UNEVEN.astype(np.float64), generator.integers(0, len(UNEVEN), (6, n))
        delta *= 20
    steps = rounded(
        delta.copy(),
        known(moment, 0.05, arrays),
        scale=scale,
        codes=codes,
        high=len(levels) - 1,
        levels=UNEVEN if grid == "uneven" else None,
    )
    wanted = by_hand(
        delta.astype(np.float64), scale.astype(np.float64), codes, levels,
        moment.astype(np.float64), 0.05,
    )  # fmt: skip
    assert np.abs(wanted).sum() > 0 or n == 1
    # Sums in another order and in another precision: a value on the edge may fall either way.
    assert (steps == wanted).mean() > (0.98 if n > 200 else 0.999)


@given(data=st.data(), n=st.integers(2, 100), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_bounds_and_zero_scales_are_kept(data: st.DataObject, n: int, seed: int) -> None:
    """A step past the edge of a grid would wrap around to its other end."""
    dither = data.draw(st.sampled_from([0.0, 0.6, 1.0]))
    levels = data.draw(st.sampled_from([None, UNEVEN[:5]]))
    arrays = data.draw(st.sampled_from(list(ARRAYS.values())))
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 5, (4, n))
    scale = generator.random((4, n), np.float32) - np.float32(0.5)
    scale[:, :: data.draw(st.integers(1, 5))] = 0
    steps = rounded(
        normal(4, n, 20.0 if levels is not None else 2.0, seed),
        known(correlated(n, seed, n_inputs=100), arrays=arrays),
        scale=scale,
        codes=codes,
        high=4,
        levels=levels,
        dither=dither,
    )
    after = codes + steps
    assert ((after >= 0) & (after <= 4)).all()
    assert not steps[scale == 0].any()


def test_what_an_edge_cuts_off_is_made_good_by_others() -> None:
    """An error at an edge is no different from one of rounding: its neighbours can carry it."""
    n = 40
    moment = correlated(n, rank=3)
    delta = normal(30, n)
    codes = np.full((30, n), MIDDLE)
    strongest = int(moment.diagonal().argmax())
    delta[:, strongest] = 2.4
    codes[:, strongest] = HIGHEST
    steps = rounded(delta.copy(), known(moment), codes=codes)
    assert not (steps[:, strongest] > 0).any()
    alone = rounded(delta.copy(), known(moment))
    alone[:, strongest] = alone[:, strongest].clip(max=0)
    error, clamped = (output_error(delta - some, moment) for some in (steps, alone))
    assert error < 0.3 * clamped


@on_both
def test_the_seed_decides(arrays: Arrays) -> None:
    """A run that is repeated must give the model that was judged."""
    feedback, delta = known(correlated(70), arrays=arrays), normal(8, 70, 0.3)
    first, again, other = (
        rounded(delta.copy(), feedback, dither=0.6, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    exact = [rounded(delta.copy(), feedback, seed=seed) for seed in (1, 2)]
    np.testing.assert_array_equal(exact[0], exact[1])


def test_the_order_of_columns_is_the_inputs_own() -> None:
    """It follows from the strength of the inputs, not from where a column happens to stand."""
    n = 90
    moment, delta = correlated(n), normal(10, n)
    generator = np.random.default_rng(3)
    scale = generator.random((10, n), np.float32) + np.float32(0.5)
    moved = generator.permutation(n)
    steps = rounded(delta.copy(), known(moment, 0.05), scale=scale)
    elsewhere = moment[np.ix_(moved, moved)]
    permuted = rounded(delta[:, moved], known(elsewhere, 0.05), scale=scale[:, moved])
    # Sums in another order: a value that lies on the edge between two codes may fall either way.
    assert (permuted == steps[:, moved]).mean() > 0.98
    assert output_error(delta - steps * scale, moment) == pytest.approx(
        output_error(delta[:, moved] - permuted * scale[:, moved], elsewhere), rel=0.05
    )


def whole(feedback: Feedback) -> Doubles:
    """L, from its panels."""
    n = len(feedback.order)
    lower = np.zeros((n, n))
    for index, panel in enumerate(feedback.panels):
        lower[index * PANEL : (index + 1) * PANEL, : panel.shape[1]] = feedback.arrays.get(panel)
    return np.tril(lower)


@given(
    n=st.integers(1, 600),
    seed=st.integers(0, 99),
    damping=st.sampled_from([1e-3, 0.01, 0.3]),
    arrays=st.sampled_from(list(ARRAYS.values())),
)
@settings(max_examples=25, deadline=None)
def test_the_factor_is_that_of_the_damped_moments(
    n: int, seed: int, damping: float, arrays: Arrays
) -> None:
    """H = L D L' with ones on the diagonal of L, or no error is made good."""
    moment = correlated(n, seed, n_inputs=300)
    feedback = known(moment, damping, arrays)
    assert sorted(feedback.order) == list(range(n))
    strengths = moment.diagonal()[feedback.order]
    np.testing.assert_array_equal(strengths, np.sort(strengths))
    lower = whole(feedback)
    np.testing.assert_array_equal(lower.diagonal(), 1)
    damped = moment.astype(np.float64) + damping * moment.diagonal().mean() * np.eye(n)
    damped = damped[np.ix_(feedback.order, feedback.order)]
    inverse = np.linalg.inv(lower)
    pivots = (inverse @ damped @ inverse.T).diagonal()
    assert (pivots > 0).all()
    tolerance = 1e-3 * damped.diagonal().max()
    np.testing.assert_allclose(lower * pivots @ lower.T, damped, rtol=0, atol=tolerance)


def test_threads_do_not_change_the_factor() -> None:
    """The same seed must give the same file on a machine with more cores."""
    moment = correlated(700)
    alone = known(moment)
    with ThreadPoolExecutor(3) as executor:
        shared = feedback_of(PlainMoment(moment), 0.01, CPU, executor.map)
    np.testing.assert_array_equal(whole(alone), whole(shared))


@on_both
@pytest.mark.parametrize("n", [2, 64, 150])
def test_singular_moments_are_damped_until_they_are_not(arrays: Arrays, n: int) -> None:
    """One token repeated, or fewer tokens than features: no inverse, yet an answer."""
    direction = normal(1, n)[0]
    moment = np.outer(direction, direction)
    delta = normal(20, n, 0.3, seed=3)
    for damping in (0.01, 1e-7):
        feedback = known(moment, damping, arrays)
        assert np.isfinite(whole(feedback)).all()
        error = output_error(delta - rounded(delta.copy(), feedback), moment)
        assert error < 0.7 * output_error(delta - delta.round(), moment)


@on_both
def test_moments_of_zero_are_rounding_to_nearest(arrays: Arrays) -> None:
    """A layer whose inputs were never anything but zero has nothing to compensate for."""
    delta = normal(3, 70)
    steps = rounded(delta.copy(), known(np.zeros((70, 70), np.float32), arrays=arrays))
    np.testing.assert_array_equal(steps, delta.round())


def test_features_of_zero_beside_others() -> None:
    """Dead features must neither divide by zero nor take the others with them."""
    moment = correlated(66)
    moment[10:20] = 0
    moment[:, 10:20] = 0
    delta = normal(20, 66, 0.4)
    steps = rounded(delta.copy(), known(moment))
    np.testing.assert_array_equal(steps[:, 10:20], delta[:, 10:20].round())
    error = output_error(delta - steps, moment)
    assert error < 0.5 * output_error(delta - delta.round(), moment)


@on_both
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 5), (-1, -1), (-1, 0)])
def test_moments_that_are_no_numbers_are_refused(
    arrays: Arrays, number: float, place: tuple[int, int]
) -> None:
    """Rounding by them would write arbitrary codes without a word."""
    moment = correlated(270)
    moment[place] = moment[place[::-1]] = number
    with pytest.raises(ExportError, match="no second moments") as caught:
        known(moment, arrays=arrays)
    assert "stochastic" in caught.value.remedy


@on_both
def test_a_matrix_that_is_no_second_moment_is_refused(arrays: Arrays) -> None:
    """Damping mends rounding errors of sums, not a matrix that is something else."""
    moment = correlated(20)
    moment[4, 4] *= -1000
    with pytest.raises(ExportError, match="no second moments"):
        known(moment, arrays=arrays)


def added(
    raw: NDArray[np.uint8], delta: Floats, kind: str, feedback: Feedback, dither: float
) -> NDArray[np.uint8]:
    wished = delta.T[feedback.order]
    return add_compensated(raw, wished, TYPE_BY_NAME[kind], feedback, dither, generator_for(1, "x"))


@pytest.mark.parametrize("kind", GRIDS)
def test_every_grid_gains_from_it(kind: str) -> None:
    """Codes, signs of scales and bounds of every type go through the same few lines."""
    raw = quantised(normal_rows(24, 512), kind)
    form = TYPE_BY_NAME[kind]
    moment, feedback = correlated_512()
    before = dequantize(raw, form)
    delta = normal(24, 512, 5e-4, seed=8)
    alone = add_on_grid(raw, delta.copy(), form, generator_for(1, "x"))
    made_good = added(raw, delta, kind, feedback, 0.0)
    errors = [
        output_error(before + delta - dequantize(after, form), moment)
        for after in (alone, made_good)
    ]
    # Seen: at most 0.01.
    assert errors[1] < 0.05 * errors[0]


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("dither", [0.0, 0.6, 1.0])
def test_no_change_gives_the_same_bytes(kind: str, dither: float) -> None:
    """A merge that moves weights by itself would harm the base."""
    raw = quantised(normal_rows(8, 512), kind)
    zeros = np.zeros((8, 512), np.float32)
    np.testing.assert_array_equal(added(raw, zeros, kind, correlated_512()[1], dither), raw)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("scale", [0, np.inf, np.nan])
def test_blocks_with_a_scale_of_zero_keep_their_bytes(kind: str, scale: float) -> None:
    """They have one value only; 0/0 as a code would be an arbitrary byte."""
    raw = quantised(normal_rows(8, 512, seed=5), kind)
    form = TYPE_BY_NAME[kind]
    blocks = raw.reshape(-1, form.n_bytes)
    for start in SCALES_AT[kind]:
        blocks[::2, start : start + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    delta = normal(8, 512, 0.1)
    after = added(raw, delta, kind, correlated_512()[1], 0.6)
    changed = (after != raw).reshape(-1, form.n_bytes).any(1)
    assert not changed[::2].any()
    assert changed[1::2].all()
