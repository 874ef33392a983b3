"""Rounding by chance: what a LoRA changes is kept in expectation, what it does not is kept."""

from __future__ import annotations

import pytest
import torch  # noqa: TID253

from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.grids import dequantize, grid_of
from ollama_trainer.gguf.rounding import add_on_grid, generator_for
from tests.quantised import FLOATS, GRIDS, SCALES_AT, normal_rows, quantised

SEEDS = 200


def added(raw: torch.Tensor, delta: torch.Tensor, kind: str, seed: int = 1) -> torch.Tensor:
    return add_on_grid(raw, delta, TYPE_BY_NAME[kind], generator_for(seed, "blk.0.attn_q.weight"))


def step_sizes(raw: torch.Tensor, kind: str) -> torch.Tensor:
    """The distance to the next code, for each weight."""
    decoded = grid_of(TYPE_BY_NAME[kind]).decode(raw.reshape(-1, TYPE_BY_NAME[kind].n_bytes))
    return decoded.scale.abs().expand(decoded.codes.shape).reshape(len(raw), -1)


def inner(raw: torch.Tensor, kind: str) -> torch.Tensor:
    """Which weights can move by one code in both directions."""
    grid = grid_of(TYPE_BY_NAME[kind])
    codes = grid.decode(raw.reshape(-1, TYPE_BY_NAME[kind].n_bytes)).codes.reshape(len(raw), -1)
    return (codes > grid.low) & (codes < grid.high)


@pytest.mark.parametrize("kind", [*GRIDS, *FLOATS])
def test_no_change_gives_the_same_bytes(kind: str) -> None:
    """A merge that moves weights by itself would harm the base; any noise must round away."""
    raw = quantised(normal_rows(32, 1024), kind)
    for seed in range(4):
        assert torch.equal(added(raw, torch.zeros(32, 1024), kind, seed), raw)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("share", [0.02, -0.02])
def test_a_small_change_is_kept_in_expectation(kind: str, share: float) -> None:
    """Rounded to nearest, 2 % of a step is lost in every weight: the training would be undone."""
    raw = quantised(normal_rows(4, 512), kind)
    before, steps = dequantize(raw, TYPE_BY_NAME[kind]), step_sizes(raw, kind)
    delta = share * steps
    total = torch.zeros_like(before)
    for seed in range(SEEDS):
        total += dequantize(added(raw, delta, kind, seed), TYPE_BY_NAME[kind])
    moved = ((total / SEEDS - before) / steps)[inner(raw, kind) & (steps > 0)]
    # Each draw is 0 or 1 step, so the mean of all has the standard error of a binomial share.
    error = (abs(share) * (1 - abs(share)) / (SEEDS * moved.numel())) ** 0.5
    assert abs(moved.mean().item() - share) < 5 * error
    assert 5 * error < abs(share) / 10, "nearest rounding, which moves nothing, would pass"


@pytest.mark.parametrize("kind", GRIDS)
def test_each_weight_gets_its_own_change_in_expectation(kind: str) -> None:
    """A right mean over a tensor can hide changes that went to the wrong weights."""
    raw = quantised(normal_rows(4, 256, seed=2), kind)
    before, steps = dequantize(raw, TYPE_BY_NAME[kind]), step_sizes(raw, kind)
    share = torch.rand(before.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    total = torch.zeros_like(before)
    for seed in range(SEEDS):
        total += dequantize(added(raw, share * steps, kind, seed), TYPE_BY_NAME[kind])
    usable = inner(raw, kind) & (steps > 0)
    moved, wanted = ((total / SEEDS - before) / steps)[usable], share[usable]
    errors = (wanted.abs() * (1 - wanted.abs()) / SEEDS).sqrt() + 1 / SEEDS
    assert ((moved - wanted).abs() < 5 * errors).all()


@pytest.mark.parametrize("kind", GRIDS)
def test_no_weight_lands_further_than_the_next_code(kind: str) -> None:
    """Rounding by chance may choose between two neighbours and nothing else."""
    raw = quantised(normal_rows(16, 512, seed=4), kind)
    before, steps = dequantize(raw, TYPE_BY_NAME[kind]), step_sizes(raw, kind)
    delta = (torch.rand(before.shape, generator=torch.Generator().manual_seed(1)) * 6 - 3) * steps
    after = dequantize(added(raw, delta, kind), TYPE_BY_NAME[kind])
    usable = (steps > 0) & inner(raw, kind)
    grid = grid_of(TYPE_BY_NAME[kind])
    blocks = raw.reshape(-1, TYPE_BY_NAME[kind].n_bytes)
    decoded = grid.decode(blocks)
    ends = torch.stack([decoded.scale * code + decoded.offset for code in (grid.low, grid.high)])
    low, high = (
        end.expand(decoded.codes.shape).reshape(before.shape)
        for end in (ends.amin(0), ends.amax(0))
    )
    wanted = torch.minimum(torch.maximum(before + delta, low), high)
    assert ((after - wanted).abs()[usable] <= steps[usable] * 1.001).all()


@pytest.mark.parametrize("kind", [*GRIDS, "BF16"])
def test_seed_and_name_decide(kind: str) -> None:
    """The same run must give the same file; tensors of one shape must not share their noise."""
    raw = quantised(normal_rows(16, 1024), kind)
    size = step_sizes(raw, kind) * 0.3 if kind in GRIDS else torch.full((16, 1024), 1e-4)
    results = [
        add_on_grid(raw, size, TYPE_BY_NAME[kind], generator_for(seed, name))
        for seed, name in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[3])


@pytest.mark.parametrize("kind", GRIDS)
def test_a_scale_of_zero_is_safe(kind: str) -> None:
    """Dividing by it gives infinities and NaN, which as codes would be arbitrary bytes."""
    raw = quantised(normal_rows(4, 512, seed=5), kind)
    blocks = raw.reshape(-1, TYPE_BY_NAME[kind].n_bytes)
    blocks[:, SCALES_AT[kind][0] : SCALES_AT[kind][0] + 2] = 0
    for change in (0.0, 1e-3, -1e3):
        assert torch.equal(added(raw, torch.full((4, 512), change), kind), raw)


@pytest.mark.parametrize("kind", GRIDS)
def test_codes_stop_at_the_edges(kind: str) -> None:
    """A code past the edge would wrap around to the other end of the grid."""
    raw = quantised(normal_rows(4, 512, seed=6), kind)
    grid = grid_of(TYPE_BY_NAME[kind])
    for change in (1e6, -1e6):
        after = added(raw, torch.full((4, 512), change), kind)
        decoded = grid.decode(after.reshape(-1, TYPE_BY_NAME[kind].n_bytes))
        edge = torch.where(decoded.scale * change > 0, grid.high, grid.low)
        moving = decoded.scale.expand(decoded.codes.shape) != 0
        assert (decoded.codes == edge)[moving].all()


def test_bf16_is_rounded_by_chance() -> None:
    """A BF16 weight has 8 bits: most changes of a LoRA are less than half of its last one."""
    base = torch.full((64, 1024), 0.5)
    raw = quantised(base.numpy(), "BF16")
    step = 2.0**-8
    delta = torch.full_like(base, 0.02 * step)
    after = dequantize(added(raw, delta, "BF16"), TYPE_BY_NAME["BF16"])
    assert set(after.flatten().tolist()) == {0.5, 0.5 + step}
    share = ((after - base) / step).mean().item()
    assert abs(share - 0.02) < 5 * (0.02 * 0.98 / base.numel()) ** 0.5


def test_bf16_of_negative_weights_is_not_biased() -> None:
    """Its bits hold sign and magnitude: rounding them up must not mean towards minus infinity."""
    base = torch.full((64, 1024), -0.5)
    raw = quantised(base.numpy(), "BF16")
    step = 2.0**-8
    after = dequantize(
        added(raw, torch.full_like(base, 0.3 * step / 2), "BF16"), TYPE_BY_NAME["BF16"]
    )
    moved = ((after - base) / step).mean().item()
    # Towards zero the steps are half as large.
    assert abs(moved - 0.15) < 5 * 0.5 * (0.3 * 0.7 / base.numel()) ** 0.5


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_finer_floats_are_simply_added_to(kind: str) -> None:
    """They can hold what a LoRA changes; noise would only add error."""
    values = normal_rows(8, 256)
    raw, delta = quantised(values, kind), torch.from_numpy(normal_rows(8, 256, seed=9)) * 0.01
    after = dequantize(added(raw, delta, kind), TYPE_BY_NAME[kind])
    wanted = dequantize(raw, TYPE_BY_NAME[kind]) + delta
    assert torch.equal(after, wanted if kind == "F32" else wanted.half().float())
