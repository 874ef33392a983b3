"""New blocks: ggml reads them as we do, and they are no worse than the ones that ggml makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch  # noqa: TID253
from numpy.typing import NDArray

from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.grids import dequantize, grid_of
from ollama_trainer.gguf.quantize import QUANTIZERS, quantize_q6_k
from tests.quantised import normal_rows, quantised, reference_values

#: How much larger than ggml's an RMS error may be: seen are up to 1.004, and 1.04 without a search.
_TOLERANCE = 1.02


def heavy_tailed_rows(n_rows: int, row_length: int, freedom: float) -> NDArray[np.float32]:
    """Weights of Student's t: a few of them are tens of times as large as the rest."""
    generator = np.random.default_rng(9)
    return (generator.standard_t(freedom, (n_rows, row_length)) * 0.02).astype(np.float32)


ROWS = {
    "normal": normal_rows(64, 1024),
    # The super-scale of Q6_K is a subnormal float16 here, as it is in most models.
    "small": normal_rows(64, 1024, seed=2) * np.float32(0.1),
    "large": normal_rows(64, 1024, seed=3) * np.float32(1000),
    "tails": heavy_tailed_rows(64, 1024, 4),
    "heavy tails": heavy_tailed_rows(64, 1024, 2),
    "zeros": np.zeros((4, 1024), dtype=np.float32),
}


def made(values: NDArray[np.float32], kind: str) -> torch.Tensor:
    return QUANTIZERS[kind](torch.from_numpy(values))


def rms_error(raw: torch.Tensor, values: NDArray[np.float32], kind: str) -> float:
    difference = dequantize(raw, TYPE_BY_NAME[kind]).numpy().astype(np.float64) - values
    return float(np.sqrt((difference**2).mean()))


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("rows", ROWS)
def test_ggml_reads_the_values_that_we_read(kind: str, rows: str) -> None:
    """The file is served by ggml: a byte out of place would be noise in every answer."""
    import libgguf
    from gguf import GGMLQuantizationType

    raw = made(ROWS[rows], kind)
    form = TYPE_BY_NAME[kind]
    assert raw.shape == (len(ROWS[rows]), 1024 // form.block * form.n_bytes)
    assert raw.dtype == torch.uint8
    ours = dequantize(raw, form).numpy()
    theirs = libgguf.dequantize_rows(raw.numpy(), GGMLQuantizationType[kind], 1024)
    np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))
    np.testing.assert_array_equal(ours, reference_values(raw, kind))


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("rows", ROWS)
def test_the_error_is_that_of_ggml(kind: str, rows: str) -> None:
    """People compare with llama.cpp's own files of the same type, and of the same size."""
    values = ROWS[rows]
    ours = rms_error(made(values, kind), values, kind)
    theirs = rms_error(quantised(values, kind), values, kind)
    assert ours <= _TOLERANCE * theirs


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("sign", [1, -1])
def test_values_on_a_grid_are_kept(kind: str, sign: int) -> None:
    """What a block can hold exactly must not get lost in the search, whatever its sign."""
    grid = grid_of(TYPE_BY_NAME[kind])
    codes = torch.arange(16).repeat(64, 16).reshape(64, 256).float() * 2
    # The largest makes the scale 2 ** -5 in Q8_0 and, with -128 for a group, in Q6_K.
    codes[:, ::16] = -32.0 if kind == "Q6_K" else grid.low
    values = codes * sign / 32
    torch.testing.assert_close(
        dequantize(QUANTIZERS[kind](values), TYPE_BY_NAME[kind]), values, rtol=0, atol=0
    )


def test_zeros_are_zero_bytes() -> None:
    """Padding rows of an embedding are all zero; 0/0 must reach neither scale nor codes."""
    assert not quantize_q6_k(torch.zeros(3, 512)).any()
    assert not quantize_q6_k(-torch.zeros(3, 512)).any()


def test_groups_of_zeros_beside_others_stay_zero() -> None:
    """One dead group must not take its block with it."""
    values = torch.from_numpy(normal_rows(8, 512))
    values[:, 32:48] = 0
    # Too small for any scale in this block.
    values[:, 48:64] = torch.tensor([1e-9, -1e-9]).repeat(8)
    values[0, :256] = 0
    raw = quantize_q6_k(values)
    back = dequantize(raw, TYPE_BY_NAME["Q6_K"])
    assert torch.equal(back[:, 32:48], values[:, 32:48])
    assert not raw[0, :210].any()
    assert not raw[:, 192 + 2 : 192 + 4].any()
    decoded = grid_of(TYPE_BY_NAME["Q6_K"]).decode(raw.reshape(-1, 210))
    assert not decoded.codes[::2, 2:4].any()
    np.testing.assert_allclose(back.numpy(), values.numpy(), atol=0.005)


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0, 1e5, 2e8])
@pytest.mark.parametrize("sign", [1, -1])
def test_q6_k_holds_every_size_that_its_scales_can(size: float, sign: int) -> None:
    """float16 has no scale below 6e-8: rounded to zero, small rows would vanish as a whole."""
    values = normal_rows(8, 256, seed=4)
    values = sign * values / np.abs(values).max() * np.float32(size)
    raw = quantize_q6_k(torch.from_numpy(values))
    assert rms_error(raw, values, "Q6_K") < 0.05 * np.sqrt((values**2).mean())


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e-9, 1e9, 1e20, 3e38])
def test_q6_k_of_extreme_values_stays_finite(size: float) -> None:
    """What no scale can hold becomes zero or the largest value, never infinite or no number."""
    values = torch.full((2, 256), size)
    values[1, ::2] = -size
    values[:, 5] = 0
    back = dequantize(quantize_q6_k(values), TYPE_BY_NAME["Q6_K"])
    assert torch.isfinite(back).all()
    assert (back.abs() <= 1.01 * size).all()
    assert (back * values >= 0).all()


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_rows_do_not_depend_on_the_rows_beside_them(kind: str) -> None:
    """A merge cuts tensors into chunks; the bytes must be the same wherever it cuts."""
    values = torch.from_numpy(normal_rows(300, 512, seed=5))
    before = values.clone()
    whole = QUANTIZERS[kind](values)
    parts = [QUANTIZERS[kind](part) for part in torch.split(values, [1, 118, 122, 59])]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(QUANTIZERS[kind](values.T.contiguous().T), whole)
    assert torch.equal(values, before), "the input was written to"
