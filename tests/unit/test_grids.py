"""Grids: what is read from a block and written into it, against ggml's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch  # noqa: TID253

from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.file import TENSOR_TYPES, TYPE_BY_NAME, read_gguf
from ollama_trainer.gguf.grids import (
    MERGEABLE,
    as_float_bytes,
    dequantize,
    grid_of,
)
from ollama_trainer.gguf.quantize import quantize_q8_0
from tests.quantised import FLOATS, GRIDS, normal_rows, quantised, random_blocks, reference_values


def test_the_table_of_types_is_that_of_ggml() -> None:
    """A wrong block size or number shifts every byte that follows."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for kind in TENSOR_TYPES.values():
        theirs = GGMLQuantizationType(kind.id)
        assert theirs.name == kind.name
        assert GGML_QUANT_SIZES[theirs] == (kind.block, kind.n_bytes)


def test_every_mergeable_type_is_tested_here() -> None:
    """A grid that nobody compares with ggml must not come in unseen."""
    assert frozenset((*GRIDS, *FLOATS)) == MERGEABLE


@pytest.mark.parametrize("kind", [*GRIDS, *FLOATS])
def test_rows_of_ggml_are_read_as_ggml_reads_them(kind: str) -> None:
    """Deltas are added to these values: they must be the ones that are served."""
    raw = quantised(normal_rows(16, 1024), kind)
    ours = dequantize(raw, TYPE_BY_NAME[kind])
    assert ours.shape == (16, 1024)
    np.testing.assert_array_equal(ours.numpy(), reference_values(raw, kind))


@pytest.mark.parametrize("kind", GRIDS)
def test_arbitrary_blocks_are_read_as_ggml_reads_them(kind: str) -> None:
    """Other quantisers use codes, signs and zero scales that ggml's own never makes."""
    raw = random_blocks(kind, 1000)
    ours = dequantize(raw, TYPE_BY_NAME[kind])
    np.testing.assert_array_equal(ours.numpy(), reference_values(raw, kind))


@pytest.mark.parametrize("kind", GRIDS)
def test_rows_are_read_as_the_c_code_of_ggml_reads_them(kind: str) -> None:
    """gguf's Python is a second writing of the C code that serves; both must agree."""
    import libgguf
    from gguf import GGMLQuantizationType

    raw = quantised(normal_rows(4, 1024, seed=2), kind)
    theirs = libgguf.dequantize_rows(raw.numpy(), GGMLQuantizationType[kind], 1024)
    ours = dequantize(raw, TYPE_BY_NAME[kind])
    np.testing.assert_array_equal(ours.numpy(), theirs.reshape(ours.shape))


@pytest.mark.parametrize("kind", GRIDS)
def test_codes_put_back_give_the_same_bytes(kind: str) -> None:
    """Whatever is not changed, scales above all, must survive a rewrite bit by bit."""
    raw = random_blocks(kind, 1000, seed=3)
    grid = grid_of(TYPE_BY_NAME[kind])
    before = raw.clone()
    assert torch.equal(grid.with_codes(raw, grid.decode(raw).codes), raw)
    assert torch.equal(raw, before), "the input was written to"


@pytest.mark.parametrize("kind", GRIDS)
def test_new_codes_arrive_and_the_scales_stay(kind: str) -> None:
    """Every code from lowest to highest must land in its own weight and nowhere else."""
    raw = random_blocks(kind, 200, seed=4)
    grid = grid_of(TYPE_BY_NAME[kind])
    old = grid.decode(raw)
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(grid.low, grid.high + 1, old.codes.shape, generator=generator).float()
    codes[0], codes[1] = grid.low, grid.high
    new = grid.decode(grid.with_codes(raw, codes))
    assert torch.equal(new.codes, codes)
    assert torch.equal(new.scale, old.scale)
    assert torch.equal(new.offset, old.offset)


@pytest.mark.parametrize("kind", GRIDS)
def test_ggml_uses_no_code_outside_the_bounds(kind: str) -> None:
    """Bounds that are too narrow would clamp weights which nobody changed."""
    grid = grid_of(TYPE_BY_NAME[kind])
    raw = quantised(normal_rows(64, 1024, seed=6), kind)
    codes = grid.decode(raw.reshape(-1, TYPE_BY_NAME[kind].n_bytes)).codes
    assert codes.min() >= grid.low
    assert codes.max() <= grid.high


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_real_rows_of_smollm2(kind: str) -> None:
    """The built-in base comes from another quantiser than the one in these tests."""
    base = read_gguf(resolve_base("smollm2").gguf)
    info = next(tensor for tensor in base.tensors if tensor.type.name == kind)
    with base.path.open("rb") as handle:
        handle.seek(base.data_start + info.offset)
        data = bytearray(handle.read(min(info.n_rows, 500) * info.row_bytes))
    raw = torch.frombuffer(data, dtype=torch.uint8).reshape(-1, info.row_bytes)
    ours = dequantize(raw, info.type)
    assert 1e-3 < ours.std() < 1
    np.testing.assert_array_equal(ours.numpy(), reference_values(raw, kind))
    grid, blocks = grid_of(info.type), raw.reshape(-1, info.type.n_bytes)
    assert torch.equal(grid.with_codes(blocks, grid.decode(blocks).codes), blocks)


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_are_written_rounded_to_nearest_even(kind: str) -> None:
    """Truncation would drift every rewritten weight towards zero."""
    values = normal_rows(8, 256, seed=7)
    ours = as_float_bytes(torch.from_numpy(values), TYPE_BY_NAME[kind])
    assert torch.equal(ours, quantised(values, kind))


def test_q8_0_is_made_as_ggml_makes_it() -> None:
    """New blocks need ggml's scales; a code may differ by one where a tie is broken otherwise."""
    values = normal_rows(64, 1024, seed=8)
    values[0, :32] = 0
    ours, theirs = quantize_q8_0(torch.from_numpy(values)), quantised(values, "Q8_0")
    blocks, expected = ours.reshape(-1, 34), theirs.reshape(-1, 34)
    assert torch.equal(blocks[:, :2], expected[:, :2])
    codes = blocks[:, 2:].contiguous().view(torch.int8).int()
    distance = (codes - expected[:, 2:].contiguous().view(torch.int8).int()).abs()
    assert distance.max() <= 1
    assert (distance > 0).float().mean() < 0.01


def test_q8_0_of_extreme_values_stays_finite() -> None:
    """A block of tiny or huge weights must not become infinite or not a number."""
    values = torch.tensor([[1e-9], [1e-30], [5e4], [-5e4], [0.0]]).repeat(1, 32)
    back = dequantize(quantize_q8_0(values), TYPE_BY_NAME["Q8_0"])
    assert torch.isfinite(back).all()
    np.testing.assert_allclose(back.numpy(), values.numpy(), rtol=0.01, atol=1e-6)


def test_a_type_without_a_grid_is_refused_by_name() -> None:
    """The message is all that a person with an IQ4_NL file gets."""
    with pytest.raises(ExportError, match="IQ4_NL"):
        grid_of(TYPE_BY_NAME["IQ4_NL"])
