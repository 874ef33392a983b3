"""Error-compensated rounding: what a layer computes on its inputs is kept, not each weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch  # noqa: TID253
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.compensation import Feedback, feedback_of, round_compensated
from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.grids import dequantize
from ollama_trainer.gguf.rounding import Compensation, add_on_grid, generator_for
from tests.quantised import GRIDS, SCALES_AT, normal_rows, quantised

WIDE = (torch.tensor(-1e9), torch.tensor(1e9))


def correlated(n: int, seed: int = 1, n_inputs: int = 4096, rank: int = 0) -> torch.Tensor:
    """Second moments of inputs as layers get them: few strong directions, some strong features."""
    generator = np.random.default_rng(seed)
    rank = rank or n // 8
    mixing = generator.standard_normal((rank, n)) * generator.lognormal(0, 1, n)
    inputs = generator.standard_normal((n_inputs, rank)) @ mixing
    inputs += 0.1 * generator.standard_normal((n_inputs, n))
    return torch.from_numpy(inputs.T @ inputs / n_inputs).float()


def normal(rows: int, n: int, size: float = 1.0, seed: int = 2) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)) * size


def rounded(
    delta: torch.Tensor,
    feedback: Feedback,
    *,
    scale: torch.Tensor | None = None,
    bounds: tuple[torch.Tensor, torch.Tensor] = WIDE,
    dither: float = 0.0,
    seed: int = 1,
) -> torch.Tensor:
    scale = torch.ones_like(delta) if scale is None else scale
    low, high = (bound.expand(delta.shape) for bound in bounds)
    return round_compensated(
        delta, scale, (low, high), feedback, dither, torch.Generator().manual_seed(seed)
    )


def output_error(error: torch.Tensor, moment: torch.Tensor) -> float:
    """Sum of squares of what a layer computes wrongly on inputs of these moments."""
    exact = error.double()
    return float((exact @ moment.double() * exact).sum())


def damped(moment: torch.Tensor, damping: float) -> torch.Tensor:
    return moment + damping * moment.diagonal().mean() * torch.eye(len(moment))


@pytest.mark.parametrize("n", [64, 200])
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_errors_on_the_inputs_are_much_smaller(n: int, size: float) -> None:
    """What it is for: changes of a twentieth of a step arrive in what the layer computes."""
    moment, delta = correlated(n), normal(40, n, size)
    feedback = feedback_of(moment.clone(), 0.01)
    compensated = output_error(delta - rounded(delta, feedback), moment)
    nearest = output_error(delta - delta.round(), moment)
    by_chance = (delta + torch.rand(delta.shape, generator=torch.Generator())).floor()
    # Seen: at most 0.18 of nearest rounding, and 0.02 of rounding by chance.
    assert compensated < 0.4 * nearest
    assert compensated < 0.05 * output_error(delta - by_chance, moment)


def test_dither_costs_less_than_chance_alone() -> None:
    """The default leaves a part to chance; most of the gain must remain."""
    moment, delta = correlated(128), normal(40, 128)
    feedback = feedback_of(moment.clone(), 0.01)
    errors = [
        output_error(delta - rounded(delta, feedback, dither=dither), moment)
        for dither in (0.0, 0.6, 1.0)
    ]
    by_chance = (delta + torch.rand(delta.shape, generator=torch.Generator())).floor()
    assert errors[0] < errors[1] < errors[2] < 0.1 * output_error(delta - by_chance, moment)


@given(
    n=st.integers(1, 150),
    rows=st.integers(1, 5),
    size=st.floats(0.01, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_without_correlations_it_is_rounding_to_nearest(
    n: int, rows: int, size: float, seed: int
) -> None:
    """No column can make good the error of another then, whatever the order."""
    delta = normal(rows, n, size, seed)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 0.1
    steps = rounded(delta, feedback_of(torch.diag(weights), 0.01))
    assert torch.equal(steps, (delta + 0.5).floor())


def by_hand(
    delta: NDArray[np.float64],
    scale: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    moment: NDArray[np.float64],
    damping: float,
) -> NDArray[np.float64]:
    """GPTQ as it is usually written: a column's error is spread over what is not rounded yet.

    The next column is eliminated from the inverse of H, which is another way to the same numbers.
    """
    rows, n = delta.shape
    damp = moment + damping * np.diag(moment).mean() * np.eye(n)
    order = np.argsort(-np.diag(moment), kind="stable")
    inverse = np.linalg.inv(damp[np.ix_(order, order)])
    wish, steps = delta[:, order].copy(), np.zeros((rows, n))
    for k in range(n):
        size = scale[:, order[k]]
        whole = np.where(size == 0, 0, np.floor(wish[:, k] / np.where(size == 0, 1, size) + 0.5))
        steps[:, order[k]] = np.clip(whole, low[:, order[k]], high[:, order[k]])
        error = (wish[:, k] - steps[:, order[k]] * size) / inverse[k, k]
        wish[:, k:] -= np.outer(error, inverse[k, k:])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return steps


@pytest.mark.parametrize("n", [1, 2, 17, 63, 64, 65, 130, 192])
@pytest.mark.parametrize("bounded", [False, True], ids=["free", "bounded"])
def test_the_usual_algorithm_gives_the_same_numbers(n: int, bounded: bool) -> None:
    """Blocks of columns, a factor turned round, an order: one wrong index is mere noise."""
    moment = correlated(n, n_inputs=200, rank=max(1, n // 3))
    delta = normal(6, n, 0.8)
    scale = torch.rand(6, n, generator=torch.Generator().manual_seed(4)) + 0.5
    scale[:, 1::3] *= -1
    scale[0, ::2] = 0
    ends = (-1.0, 2.0) if bounded else (-1e9, 1e9)
    bounds = torch.full_like(delta, ends[0]), torch.full_like(delta, ends[1])
    steps = rounded(delta, feedback_of(moment.clone(), 0.05), scale=scale, bounds=bounds)
    wanted = by_hand(
        delta.double().numpy(),
        scale.double().numpy(),
        bounds[0].double().numpy(),
        bounds[1].double().numpy(),
        moment.double().numpy(),
        0.05,
    )
    assert np.abs(wanted).sum() > 0 or n == 1
    np.testing.assert_array_equal(steps.numpy(), wanted)


@given(data=st.data(), n=st.integers(2, 100), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_bounds_and_zero_scales_are_kept(data: st.DataObject, n: int, seed: int) -> None:
    """A step past the edge of a grid would wrap around to its other end."""
    dither = data.draw(st.sampled_from([0.0, 0.6, 1.0]))
    feedback = feedback_of(correlated(n, seed, n_inputs=100), 0.01)
    generator = torch.Generator().manual_seed(seed)
    low = -torch.randint(0, 3, (4, n), generator=generator).float()
    high = torch.randint(0, 3, (4, n), generator=generator).float()
    scale = torch.rand(4, n, generator=generator) - 0.5
    scale[:, :: data.draw(st.integers(1, 5))] = 0
    steps = rounded(
        normal(4, n, 2.0, seed), feedback, scale=scale, bounds=(low, high), dither=dither
    )
    assert torch.equal(steps, steps.floor())
    assert (steps >= low).all()
    assert (steps <= high).all()
    assert not steps[scale == 0].any()


def test_what_an_edge_cuts_off_is_made_good_by_others() -> None:
    """An error at an edge is no different from one of rounding: its neighbours can carry it."""
    n = 40
    moment = correlated(n, rank=3)
    delta = normal(30, n)
    high = torch.full_like(delta, 1e9)
    strongest = int(moment.diagonal().argmax())
    delta[:, strongest] = 2.4
    high[:, strongest] = 0
    steps = rounded(delta, feedback_of(moment.clone(), 0.01), bounds=(-high - 1e9, high))
    assert not (steps[:, strongest] > 0).any()
    alone = rounded(delta, feedback_of(moment.clone(), 0.01))
    alone[:, strongest].clamp_(max=0)
    error, clamped = (output_error(delta - some, moment) for some in (steps, alone))
    assert error < 0.3 * clamped


def test_the_seed_decides() -> None:
    """A run that is repeated must give the model that was judged."""
    feedback, delta = feedback_of(correlated(70), 0.01), normal(8, 70, 0.3)
    first, again, other = (rounded(delta, feedback, dither=0.6, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    exact = [rounded(delta, feedback, seed=s) for s in (1, 2)]
    assert torch.equal(exact[0], exact[1])


def test_the_order_of_columns_is_the_inputs_own() -> None:
    """It follows from the strength of the inputs, not from where a column happens to stand."""
    n = 90
    moment, delta = correlated(n), normal(10, n)
    scale = torch.rand(10, n, generator=torch.Generator().manual_seed(3)) + 0.5
    moved = torch.randperm(n, generator=torch.Generator().manual_seed(5))
    steps = rounded(delta, feedback_of(moment.clone(), 0.05), scale=scale)
    permuted = rounded(
        delta[:, moved],
        feedback_of(moment[moved][:, moved].clone(), 0.05),
        scale=scale[:, moved],
    )
    # Sums in another order: a value that lies on the edge between two codes may fall either way.
    assert (permuted == steps[:, moved]).float().mean() > 0.98
    assert output_error(delta - steps * scale, moment) == pytest.approx(
        output_error(delta[:, moved] - permuted * scale[:, moved], moment[moved][:, moved]),
        rel=0.05,
    )


@given(n=st.integers(1, 130), seed=st.integers(0, 99), damping=st.sampled_from([1e-3, 0.01, 0.3]))
@settings(max_examples=25, deadline=None)
def test_the_factor_is_that_of_the_damped_moments(n: int, seed: int, damping: float) -> None:
    """H = (F + I) D (F + I)' with F strictly above the diagonal, or no error is made good."""
    moment = correlated(n, seed, n_inputs=300)
    feedback = feedback_of(moment.clone(), damping)
    order, factor = feedback.order, feedback.factor.double()
    assert sorted(order.tolist()) == list(range(n))
    strengths = moment.diagonal()[order]
    assert torch.equal(strengths, strengths.sort(descending=True).values)
    assert not factor.tril().any()
    whole = damped(moment, damping)[order][:, order].double()
    unit = factor + torch.eye(n)
    inverse = torch.linalg.inv(unit)
    between = inverse @ whole @ inverse.T
    diagonal = between.diagonal()
    assert (diagonal > 0).all()
    rebuilt = unit @ torch.diag(diagonal) @ unit.T
    tolerance = 1e-3 * float(whole.diagonal().max())
    torch.testing.assert_close(rebuilt, whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", [2, 64, 150])
def test_singular_moments_are_damped_until_they_are_not(n: int) -> None:
    """One token repeated, or fewer tokens than features: no inverse, yet an answer."""
    direction = torch.randn(n, generator=torch.Generator().manual_seed(1))
    moment = torch.outer(direction, direction)
    delta = normal(20, n, 0.3)
    for damping in (0.01, 1e-7):
        feedback = feedback_of(moment.clone(), damping)
        assert torch.isfinite(feedback.factor).all()
        error = output_error(delta - rounded(delta, feedback), moment)
        assert error < 0.7 * output_error(delta - delta.round(), moment)


def test_moments_of_zero_are_rounding_to_nearest() -> None:
    """A layer whose inputs were never anything but zero has nothing to compensate for."""
    delta = normal(3, 70)
    assert torch.equal(rounded(delta, feedback_of(torch.zeros(70, 70), 0.01)), delta.round())


def test_features_of_zero_beside_others() -> None:
    """Dead features must neither divide by zero nor take the others with them."""
    moment = correlated(66)
    moment[10:20] = 0
    moment[:, 10:20] = 0
    delta = normal(20, 66, 0.4)
    steps = rounded(delta, feedback_of(moment.clone(), 0.01))
    assert torch.isfinite(steps).all()
    assert torch.equal(steps[:, 10:20], delta[:, 10:20].round())
    error = output_error(delta - steps, moment)
    assert error < 0.5 * output_error(delta - delta.round(), moment)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 5), (-1, -1)])
def test_moments_that_are_no_numbers_are_refused(number: float, place: tuple[int, int]) -> None:
    """Rounding by them would write arbitrary codes without a word."""
    moment = correlated(20)
    moment[place] = moment[place[::-1]] = number
    with pytest.raises(ExportError, match="no second moments") as caught:
        feedback_of(moment, 0.01)
    assert "stochastic" in caught.value.remedy


def test_a_matrix_that_is_no_second_moment_is_refused() -> None:
    """Damping mends rounding errors of sums, not a matrix that is something else."""
    moment = correlated(20)
    moment[4, 4] *= -1000
    with pytest.raises(ExportError, match="no second moments"):
        feedback_of(moment, 0.01)


@pytest.mark.parametrize("kind", GRIDS)
def test_every_grid_gains_from_it(kind: str) -> None:
    """Codes, signs of scales and bounds of every type go through the same few lines."""
    raw = quantised(normal_rows(24, 512), kind)
    form = TYPE_BY_NAME[kind]
    moment = correlated(512)
    before = dequantize(raw, form)
    delta = normal(24, 512, 5e-4, seed=8)
    feedback = feedback_of(moment.clone(), 0.01)
    errors = {}
    for name, compensation in (("chance", None), ("made good", Compensation(feedback, 0.0))):
        after = dequantize(add_on_grid(raw, delta, form, generator_for(1, "x"), compensation), form)
        errors[name] = output_error(before + delta - after, moment)
    # Seen: at most 0.01.
    assert errors["made good"] < 0.05 * errors["chance"]


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("dither", [0.0, 0.6, 1.0])
def test_no_change_gives_the_same_bytes(kind: str, dither: float) -> None:
    """A merge that moves weights by itself would harm the base."""
    raw = quantised(normal_rows(8, 512), kind)
    compensation = Compensation(feedback_of(correlated(512), 0.01), dither)
    zeros = torch.zeros(8, 512)
    form = TYPE_BY_NAME[kind]
    assert torch.equal(add_on_grid(raw, zeros, form, generator_for(1, "x"), compensation), raw)


@pytest.mark.parametrize("kind", GRIDS)
def test_blocks_with_a_scale_of_zero_keep_their_bytes(kind: str) -> None:
    """They have one value only; 0/0 as a code would be an arbitrary byte."""
    raw = quantised(normal_rows(8, 512, seed=5), kind)
    form = TYPE_BY_NAME[kind]
    blocks = raw.reshape(-1, form.n_bytes)
    for start in SCALES_AT[kind]:
        blocks[::2, start : start + 2] = 0
    compensation = Compensation(feedback_of(correlated(512), 0.01), 0.6)
    delta = normal(8, 512, 0.02)
    after = add_on_grid(raw, delta, form, generator_for(1, "x"), compensation)
    changed = (after != raw).reshape(-1, form.n_bytes).any(1)
    assert not changed[::2].any()
    assert changed[1::2].all()
