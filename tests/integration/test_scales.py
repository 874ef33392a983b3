"""A base in another quantisation: llama.cpp's scales, and weights that are rounded once."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ollama_trainer.gguf.file import GgufFile, TensorInfo, read_gguf
from ollama_trainer.gguf.grids import dequantize, grid_of
from ollama_trainer.llama import quantize_file
from ollama_trainer.pipeline import scales as scales_module
from ollama_trainer.pipeline.export import export
from ollama_trainer.pipeline.scales import changes_whole_file, scales_of
from tests.integration.test_parity import Parts, computed, divergence, exact_llama_cpp, served

KINDS = {"q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K", "q4_0": "Q4_0"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with exact_llama_cpp():
        yield Parts(tmp_path_factory.mktemp("scales"))


def raw(file: GgufFile, info: TensorInfo) -> bytes:
    with file.open() as tensors:
        return tensors.read(info, 0, info.n_bytes)


def exported(parts: Parts, quantization: str, out: Path, kind: str = "F32") -> GgufFile:
    base = read_gguf(parts.base(kind, True).gguf)
    scales = scales_of(base, quantization, out.parent / "cache", "d" * 64)
    export(base, parts.adapter(True), out, quantization=quantization, scales=scales, seed=1)
    return read_gguf(out)


@pytest.mark.parametrize("quantization", KINDS)
def test_the_whole_file_is_what_llama_cpp_makes_of_the_base(
    parts: Parts, tmp_path: Path, quantization: str
) -> None:
    """Types, scales and untouched tensors are llama.cpp's; codes alone differ."""
    result = exported(parts, quantization, tmp_path / "out.gguf")
    theirs_path = tmp_path / "theirs.gguf"
    mixture = scales_module.WHOLE[quantization]
    quantize_file(parts.base("F32", True).gguf, theirs_path, mixture)
    theirs = read_gguf(theirs_path)
    assert {info.name: info.type for info in result.tensors} == {
        info.name: info.type for info in theirs.tensors
    }
    assert result.by_name["blk.0.ffn_up.weight"].type.name == KINDS[quantization]
    assert result.get("general.file_type") == theirs.get("general.file_type")
    for info in result.tensors:
        ours, other = raw(result, info), raw(theirs, theirs.by_name[info.name])
        is_linear = info.name.startswith("blk.") and "norm" not in info.name
        assert (ours != other) == is_linear
        if is_linear:
            grid = grid_of(info.type)
            blocks, others = (
                np.frombuffer(data, np.uint8).reshape(-1, info.type.n_bytes)
                for data in (ours, other)
            )
            assert np.array_equal(grid.with_codes(blocks, grid.decode(others).codes), others)


@pytest.mark.parametrize(("quantization", "share"), [("q8_0", 0.01), ("q4_k_m", 0.3)])
def test_what_was_learnt_is_in_the_file(
    parts: Parts, tmp_path: Path, quantization: str, share: float
) -> None:
    exact = computed(parts.tuned("F32", True))
    result = exported(parts, quantization, tmp_path / "out.gguf")
    learnt = divergence(exact, served(parts.base("F32", True).gguf))
    assert learnt > 1  # seen: 1.4
    assert divergence(exact, served(result.path)) < share * learnt


def test_weights_and_change_are_rounded_once(parts: Parts, tmp_path: Path) -> None:
    """To the values next to their sum, never by more than a step."""
    result = exported(parts, "q4_0", tmp_path / "out.gguf")
    model = parts.tuned("F32", True).merge_and_unload()
    wanted = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    info = result.by_name["blk.1.ffn_up.weight"]
    blocks = np.frombuffer(raw(result, info), np.uint8)
    values = dequantize(blocks.reshape(info.n_rows, -1), info.type)
    decoded = grid_of(info.type).decode(blocks.reshape(-1, info.type.n_bytes))
    steps = np.abs(values - wanted).reshape(decoded.codes.shape) / np.abs(decoded.scale)
    inside = (decoded.codes > 0) & (decoded.codes < 15)
    assert steps[inside].max() < 1.001
    assert steps[inside].mean() < 0.35  # by chance: 1/3 of a step


def test_the_quantised_base_is_made_once(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = read_gguf(parts.base("F32", True).gguf)
    first = scales_of(base, "q4_0", tmp_path, "a" * 64)
    assert first is not None
    asked = []

    def quantise(_source: Path, target: Path, _kind: str) -> None:
        asked.append(target)
        shutil.copy(first.path, target)

    monkeypatch.setattr(scales_module, "quantize_file", quantise)
    again = scales_of(base, "q4_0", tmp_path, "a" * 64)
    assert again is not None
    assert (again.path, asked) == (first.path, [])
    other = scales_of(base, "q4_0", tmp_path, "b" * 64)
    assert other is not None
    assert asked == [other.path] != [first.path]


def test_a_finer_type_is_for_the_touched_tensors_of_a_quantised_base(parts: Parts) -> None:
    """What was rounded already gets no better by more bits."""
    quantised = read_gguf(parts.base("Q4_0", True).gguf)
    floats = read_gguf(parts.base("F16", True).gguf)
    assert not changes_whole_file(quantised, "q8_0")
    assert not changes_whole_file(quantised, "same")
    assert changes_whole_file(quantised, "q4_k_m")
    assert changes_whole_file(floats, "q8_0")
    assert not changes_whole_file(floats, "f16")


@pytest.mark.parametrize(("kind", "quantization"), [("Q4_0", "same"), ("F32", "q4_k_m")])
def test_a_copy_by_llama_quantize_has_the_same_digest(
    parts: Parts, tmp_path: Path, kind: str, quantization: str
) -> None:
    """Some versions of Ollama store such a copy of what is uploaded."""
    import llama_cpp

    result = exported(parts, quantization, tmp_path / "out.gguf", kind)
    options = llama_cpp.llama_model_quantize_default_params()
    options.only_copy = True
    copy = tmp_path / "copy.gguf"
    names = os.fsencode(result.path), os.fsencode(copy)
    assert llama_cpp.llama_model_quantize(*names, ctypes.byref(options)) == 0
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (result.path, copy)]
    assert digests[0] == digests[1]
