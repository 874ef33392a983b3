"""New blocks: the very ones that ggml makes, and nothing that a scale cannot hold."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from ollama_trainer.errors import ExportError, NotANumber
from ollama_trainer.gguf.file import TYPE_BY_NAME
from ollama_trainer.gguf.grids import dequantize
from ollama_trainer.gguf.quantize import QUANTIZABLE, quantize
from tests.quantised import GRIDS, normal_rows, quantised, reference_values, smollm2_rows


def heavy_tailed_rows(n_rows: int, row_length: int, freedom: float) -> NDArray[np.float32]:
    """Weights of Student's t: a few of them are tens of times as large as the rest."""
    generator = np.random.default_rng(9)
    return (generator.standard_t(freedom, (n_rows, row_length)) * 0.02).astype(np.float32)


ROWS = {
    "normal": normal_rows(16, 1024),
    # The super-scale of Q6_K is a subnormal float16 here, as it is in most models.
    "small": normal_rows(16, 1024, seed=2) * np.float32(0.1),
    # Too small for any scale.
    "vanishing": normal_rows(4, 1024, seed=2) * np.float32(1e-30),
    "large": normal_rows(16, 1024, seed=3) * np.float32(1000),
    "heavy tails": heavy_tailed_rows(16, 1024, 2),
    "zeros": np.zeros((4, 1024), dtype=np.float32),
}


def test_every_grid_can_be_made() -> None:
    """A type that can be merged into must be one that an export can choose."""
    assert frozenset(GRIDS) == QUANTIZABLE


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("rows", ROWS)
def test_blocks_are_those_of_ggml(kind: str, rows: str) -> None:
    """People compare with llama.cpp's own files. libgguf is a build of ggml of its own."""
    values = ROWS[rows]
    before = values.copy()
    raw = quantize(values, TYPE_BY_NAME[kind])
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, quantised(values, kind))
    np.testing.assert_array_equal(values, before, "the input was written to")


@pytest.mark.parametrize("kind", GRIDS)
def test_blocks_of_a_real_model(kind: str) -> None:
    """What comes back must be the weights, to within what the bits of the type allow."""
    rows, form = smollm2_rows("blk.7.ffn_down.weight", 32)
    weights = reference_values(rows, form.name)
    raw = quantize(weights, TYPE_BY_NAME[kind])
    np.testing.assert_array_equal(raw, quantised(weights, kind))
    error = dequantize(raw, TYPE_BY_NAME[kind]) - weights
    bits = TYPE_BY_NAME[kind].bits_per_weight
    # Every bit halves it: seen are 0.30 for the 2.6 bits of Q2_K, 0.005 for the 8.5 of Q8_0.
    assert error.std() / weights.std() < 3.2 * 0.5**bits


@pytest.mark.parametrize("kind", GRIDS)
def test_the_largest_values_that_are_let_in_stay_finite(kind: str) -> None:
    """ggml writes scales that are infinite without a word; such a model answers nothing."""
    generator = np.random.default_rng(4)
    values = generator.uniform(-65504, 65504, (60, 256))
    values[:10] = generator.choice([-65504, 65504], (10, 256))
    values[10:20] = generator.normal(size=(10, 256))
    values[10:20, ::50] = 65504
    values[20], values[21] = 65504, -65504
    rows = values.astype(np.float32)
    back = dequantize(quantize(rows, TYPE_BY_NAME[kind]), TYPE_BY_NAME[kind])
    assert np.isfinite(back).all()
    # Seen is up to 0.13, for two bits.
    assert np.abs(back - rows).mean() < 0.2 * np.abs(rows).mean()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_refused(value: float) -> None:
    """One such weight makes its block's scale not a number, and every answer with it."""
    values = normal_rows(2, 256)
    values[1, 77] = value
    with pytest.raises(NotANumber, match="Q4_K"):
        quantize(values, TYPE_BY_NAME["Q4_K"])


@pytest.mark.parametrize("sign", [1, -1])
def test_what_no_scale_can_hold_is_refused(sign: int) -> None:
    values = normal_rows(2, 256)
    values[1, 77] = sign * 1e5
    with pytest.raises(ExportError, match="too large"):
        quantize(values, TYPE_BY_NAME["Q4_1"])


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    """ggml would end the process, and with it the run."""
    with pytest.raises(ExportError, match="576"):
        quantize(normal_rows(2, 576), TYPE_BY_NAME["Q6_K"])


@pytest.mark.parametrize("kind", ["F16", "I32"])
def test_types_without_blocks_are_refused(kind: str) -> None:
    with pytest.raises(ExportError, match=kind):
        quantize(normal_rows(2, 256), TYPE_BY_NAME[kind])


@pytest.mark.parametrize("kind", GRIDS)
def test_rows_do_not_depend_on_the_rows_beside_them(kind: str) -> None:
    """A merge cuts tensors into chunks for its threads; the bytes are the same in any cut."""
    values, form = normal_rows(30, 512, seed=5), TYPE_BY_NAME[kind]
    whole = quantize(values, form)
    with ThreadPoolExecutor(2) as threads:
        parts = threads.map(lambda part: quantize(part, form), np.split(values, [1, 12, 29]))
    np.testing.assert_array_equal(np.concatenate(list(parts)), whole)
    np.testing.assert_array_equal(quantize(values.T.copy().T, form), whole)


def test_a_missing_ggml_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own installation has no llama-cpp-python."""
    from ollama_trainer.gguf.quantize import _quantizer

    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/nowhere")
    _quantizer.cache_clear()
    with pytest.raises(ExportError, match=r"llama-cpp-python.*ollama-trainer\[train\]"):
        quantize(normal_rows(1, 256), TYPE_BY_NAME["Q4_K"])


def test_neither_torch_nor_llama_cpp_is_imported() -> None:
    """They take seconds and hundreds of megabytes, which an export is to do without."""
    program = (
        "import sys, numpy as np\n"
        "from ollama_trainer.gguf.file import TYPE_BY_NAME as T\n"
        "from ollama_trainer.gguf.grids import dequantize\n"
        "from ollama_trainer.gguf.quantize import quantize\n"
        "raw = quantize(np.ones((1, 256), np.float32), T['Q6_K'])\n"
        "print(dequantize(raw, T['Q6_K']).mean().round(2), {'torch', 'llama_cpp'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["1.0", "set()"], done.stderr
