"""Grids: what is read from a block and written into it, against ggml's own code."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.file import TENSOR_TYPES, TYPE_BY_NAME, TensorType
from ollama_trainer.gguf.grids import (
    MERGEABLE,
    as_float_bytes,
    dequantize,
    grid_of,
)
from tests.quantised import (
    FLOATS,
    GRIDS,
    SCALES_AT,
    normal_rows,
    quantised,
    random_blocks,
    reference_values,
    served_values,
    smollm2_rows,
)

#: Bits of a code, as the names of the types say.
BITS = {kind: int(kind.removeprefix("I")[1]) for kind in GRIDS}


def random_codes(kind: str, n_blocks: int, shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    grid = grid_of(TYPE_BY_NAME[kind])
    generator = np.random.default_rng(seed)
    return generator.integers(grid.low, grid.high, shape, np.uint8, endpoint=True)


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
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, reference_values(raw, kind))


@pytest.mark.parametrize("kind", GRIDS)
def test_arbitrary_blocks_are_read_as_ggml_reads_them(kind: str) -> None:
    """Other quantisers use codes, signs and zero scales that ggml's own never makes."""
    raw = random_blocks(kind, 1000)
    ours = dequantize(raw, TYPE_BY_NAME[kind])
    np.testing.assert_array_equal(ours, reference_values(raw, kind))
    # gguf's Python is a second writing of the C code that serves; both must agree.
    np.testing.assert_array_equal(ours, served_values(raw, kind))


@pytest.mark.parametrize("kind", GRIDS)
def test_rows_of_a_real_model_are_read_as_ggml_reads_them(kind: str) -> None:
    """A trained layer has outliers, dead columns and tiny blocks that no made-up rows have."""
    weights = reference_values(*named(smollm2_rows("blk.7.ffn_down.weight", 48)))
    raw = quantised(weights, kind)
    ours = dequantize(raw, TYPE_BY_NAME[kind])
    assert ours.shape == weights.shape == (48, 1536)
    assert np.corrcoef(ours.ravel(), weights.ravel())[0, 1] > 0.9
    np.testing.assert_array_equal(ours, reference_values(raw, kind))
    np.testing.assert_array_equal(ours, served_values(raw, kind))


def named(rows: tuple[NDArray[np.uint8], TensorType]) -> tuple[NDArray[np.uint8], str]:
    return rows[0], rows[1].name


@pytest.mark.parametrize(
    ("tensor", "kind"), [("blk.0.attn_q.weight", "Q4_1"), ("token_embd.weight", "Q8_0")]
)
def test_a_file_as_people_hold_it(tensor: str, kind: str) -> None:
    """The built-in base comes from another quantiser than the one in these tests."""
    raw, form = smollm2_rows(tensor, 500)
    assert form.name == kind
    ours = dequantize(raw, form)
    assert 1e-3 < ours.std() < 1
    np.testing.assert_array_equal(ours, reference_values(raw, kind))
    grid, blocks = grid_of(form), raw.reshape(-1, form.n_bytes)
    np.testing.assert_array_equal(grid.with_codes(blocks, grid.decode(blocks).codes), blocks)


@pytest.mark.parametrize("kind", GRIDS)
def test_a_block_is_taken_apart_into_codes_and_the_line_they_lie_on(kind: str) -> None:
    """Rounding works on these parts: they alone must give what ggml reads."""
    form = TYPE_BY_NAME[kind]
    raw = random_blocks(kind, 300, seed=2)
    grid = grid_of(form)
    decoded = grid.decode(raw)
    n_groups = decoded.codes.shape[1]
    assert decoded.codes.shape == (300, n_groups, form.block // n_groups)
    assert decoded.scale.shape == decoded.offset.shape == (300, n_groups, 1)
    assert decoded.codes.dtype == np.uint8
    assert decoded.codes.flags.c_contiguous
    assert decoded.scale.dtype == decoded.offset.dtype == np.float32
    assert decoded.codes.min() == 0
    assert decoded.codes.max() == 2 ** BITS[kind] - 1
    codes: NDArray[np.float64] = decoded.codes.astype(np.float64)
    if grid.levels is not None:
        assert decoded.levels is grid.levels
        assert (np.diff(grid.levels) > 0).all()
        codes = grid.levels.astype(np.float64)[decoded.codes]
    values = decoded.scale * codes + decoded.offset
    np.testing.assert_allclose(
        values.reshape(300, -1), reference_values(raw, kind), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("kind", GRIDS)
def test_codes_put_back_give_the_same_bytes(kind: str) -> None:
    """Whatever is not changed, scales above all, must survive a rewrite bit by bit."""
    form = TYPE_BY_NAME[kind]
    grid = grid_of(form)
    # Any bytes at all: scales may even be infinite or no numbers.
    raw = np.random.default_rng(3).integers(0, 256, (1000, form.n_bytes), np.uint8)
    before = raw.copy()
    np.testing.assert_array_equal(grid.with_codes(raw, grid.decode(raw).codes), raw)
    np.testing.assert_array_equal(raw, before, "the input was written to")


@pytest.mark.parametrize("kind", GRIDS)
def test_new_codes_arrive_where_ggml_reads_them(kind: str) -> None:
    """Every code from lowest to highest must land in its own weight and nowhere else."""
    form = TYPE_BY_NAME[kind]
    raw = random_blocks(kind, 300, seed=4)
    grid = grid_of(form)
    old = grid.decode(raw)
    codes = random_codes(kind, 300, old.codes.shape, seed=5)
    codes[0], codes[1] = grid.low, grid.high
    written = grid.with_codes(raw, codes)
    new = grid.decode(written)
    np.testing.assert_array_equal(new.codes, codes)
    np.testing.assert_array_equal(new.scale, old.scale)
    np.testing.assert_array_equal(new.offset, old.offset)
    levels = codes.astype(np.float32) if grid.levels is None else grid.levels[codes]
    expected = old.scale * levels + old.offset
    np.testing.assert_array_equal(served_values(written, kind), expected.reshape(300, -1))


@pytest.mark.parametrize("kind", GRIDS)
def test_only_the_bits_of_codes_are_written(kind: str) -> None:
    """A bit too many is a scale that changed; a bit too few is a code that did not arrive."""
    form = TYPE_BY_NAME[kind]
    grid = grid_of(form)
    raw = np.random.default_rng(6).integers(0, 256, (50, form.n_bytes), np.uint8)
    codes = grid.decode(raw).codes
    all_clear = grid.with_codes(raw, np.zeros_like(codes))
    all_set = grid.with_codes(raw, np.full_like(codes, 2 ** BITS[kind] - 1))
    written = all_clear ^ all_set
    assert (written == written[0]).all()
    assert np.unpackbits(written[0]).sum() == BITS[kind] * form.block
    np.testing.assert_array_equal(raw & ~written, all_clear & ~written)


@pytest.mark.parametrize("kind", GRIDS)
def test_codes_need_not_lie_in_one_piece(kind: str) -> None:
    """Rounding may hand over columns of a larger array, or codes that all blocks share."""
    raw = random_blocks(kind, 40, seed=7)
    grid = grid_of(TYPE_BY_NAME[kind])
    codes = random_codes(kind, 40, grid.decode(raw).codes.shape, seed=8)
    expected = grid.with_codes(raw, codes)
    scattered = np.zeros((*codes.shape[:2], 2 * codes.shape[2]), np.uint8)[..., ::2]
    scattered[...] = codes
    np.testing.assert_array_equal(grid.with_codes(raw, scattered), expected)
    shared = np.broadcast_to(codes[:1], codes.shape)
    np.testing.assert_array_equal(grid.with_codes(raw, shared)[0], expected[0])
    padded = np.zeros((40, raw.shape[1] + 3), np.uint8)[:, 1:-2]
    padded[...] = raw
    np.testing.assert_array_equal(grid.with_codes(padded, codes), expected)
    np.testing.assert_array_equal(grid.decode(padded).values, grid.decode(raw).values)


@pytest.mark.parametrize("kind", GRIDS)
def test_ggml_uses_no_code_outside_the_bounds(kind: str) -> None:
    """Bounds that are too narrow would clamp weights which nobody changed."""
    grid = grid_of(TYPE_BY_NAME[kind])
    raw = quantised(normal_rows(64, 1024, seed=6), kind)
    codes = grid.decode(raw.reshape(-1, TYPE_BY_NAME[kind].n_bytes)).codes
    assert codes.min() >= grid.low
    assert codes.max() <= grid.high


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_no_number_stays_visible(kind: str, scale: float) -> None:
    """A broken file must fail its check, and not only where a warning happens to be an error."""
    raw = random_blocks(kind, 20, seed=9)
    for start in SCALES_AT[kind]:
        raw[:, start : start + 2] = np.full((20, 1), scale, np.float16).view(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = dequantize(raw, TYPE_BY_NAME[kind])
    with np.errstate(invalid="ignore"):
        theirs = reference_values(raw, kind)
    assert not np.isfinite(theirs).any()
    assert not np.isfinite(ours).any()


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_are_written_rounded_to_nearest_even(kind: str) -> None:
    """Truncation would drift every rewritten weight towards zero."""
    values = normal_rows(8, 256, seed=7)
    ours = as_float_bytes(values, TYPE_BY_NAME[kind])
    np.testing.assert_array_equal(ours, quantised(values, kind))
    back = dequantize(ours, TYPE_BY_NAME[kind])
    assert not np.shares_memory(back, ours), "adding to the values would change the bytes"


@pytest.mark.parametrize("kind", FLOATS)
def test_every_kind_of_float_is_written_as_gguf_writes_it(kind: str) -> None:
    """Ties, subnormals, infinities and what is not a number: any 32 bits are some float."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    bits = np.random.default_rng(10).integers(0, 1 << 32, (50, 256), np.uint32)
    bits[:16] &= 0xFFFF0000  # exact bfloat16
    bits[16:32] |= 0x8000  # and, of these, some in the middle between two
    bits[16:24] &= 0xFFFF8000
    bits[49] = np.resize(
        np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7F800001, 0xFFFFFFFF, 1],
                 np.uint32), 256)  # fmt: skip
    values = bits.view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = as_float_bytes(values, TYPE_BY_NAME[kind])
    with np.errstate(over="ignore"):
        theirs = quantize(values, GGMLQuantizationType[kind]).view(np.uint8)
    size = TYPE_BY_NAME[kind].n_bytes
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(
        ours.reshape(50, 256, size)[numbers], theirs.reshape(50, 256, size)[numbers]
    )
    assert np.isnan(dequantize(ours, TYPE_BY_NAME[kind])[~numbers]).all()
    assert (~numbers).sum() > 20


def test_a_type_without_a_grid_is_refused_by_name() -> None:
    """The message is all that a person with such a file gets."""
    with pytest.raises(ExportError, match="I32"):
        grid_of(TYPE_BY_NAME["I32"])
