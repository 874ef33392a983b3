"""The streaming pass with statistics: layers compute what was trained, on inputs as they come."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253

from ollama_trainer.errors import ExportError, NotANumber
from ollama_trainer.gguf import compensation
from ollama_trainer.gguf import feedbacks as feedbacks_module
from ollama_trainer.gguf.feedbacks import RoundingOptions
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.merge import merge
from ollama_trainer.gguf.statistics import InputStatistics, write_index, write_moments
from tests.merging import (
    FEW_CODES,
    HIDDEN,
    K_PROJ,
    LAYERS,
    O_PROJ,
    Q_PROJ,
    UP_PROJ,
    V_PROJ,
    inputs,
    lora,
    output_error,
    raw,
    statistics,
    values,
    wanted,
    write_base,
)
from tests.quantised import GRIDS


@pytest.fixture
def base(tmp_path: Path) -> GgufFile:
    return write_base(tmp_path / "base.gguf")


@pytest.mark.parametrize("kind", GRIDS)
def test_layers_with_statistics_compute_what_was_trained(tmp_path: Path, kind: str) -> None:
    """Rows in another order than their errors, or another layer's inputs, would be mere noise."""
    base = write_base(tmp_path / "base.gguf", kind)
    adapter = lora(size=0.0005)
    known = statistics(tmp_path / "statistics", Q_PROJ, K_PROJ, UP_PROJ)
    plain = merge(base, adapter, tmp_path / "plain.gguf")
    report = merge(base, adapter, tmp_path / "out.gguf", statistics=known)
    assert (plain.n_compensated, report.n_compensated, report.n_touched) == (0, 3, 5)
    by_chance, result = (read_gguf(tmp_path / f"{name}.gguf") for name in ("plain", "out"))
    assert result.tensors == base.tensors
    for module in (Q_PROJ, K_PROJ, UP_PROJ):
        # Seen: 0.06 for Q8_0 to 0.25 for the 4-bit types, 0.51 for Q2_K.
        error = output_error(base, result, adapter, module)
        assert error < (0.7 if kind in FEW_CODES else 0.4) * output_error(
            base, by_chance, adapter, module
        )
    for module in (V_PROJ, O_PROJ):
        info = result.by_name[LAYERS[module][0]]
        assert raw(result, info) == raw(by_chance, info)


def test_compensated_changes_go_as_far_as_they_should(tmp_path: Path) -> None:
    """Beside the known inputs there are others, for which the change itself must arrive."""
    base, adapter = write_base(tmp_path / "base.gguf"), lora(size=0.002)
    known = statistics(tmp_path / "statistics", *LAYERS)
    merge(base, adapter, tmp_path / "out.gguf", statistics=known)
    result = read_gguf(tmp_path / "out.gguf")
    for module, (name, _) in LAYERS.items():
        before = values(base, name)
        change, meant = values(result, name) - before, wanted(base, adapter, module) - before
        assert np.vdot(change, meant) / np.vdot(meant, meant) == pytest.approx(1, abs=0.1)


def test_what_the_adapter_reads_is_protected(tmp_path: Path) -> None:
    """Other questions have other inputs; the adapter's own directions are known all the same."""
    base, adapter = write_base(tmp_path / "base.gguf"), lora(UP_PROJ, size=0.002)
    known = statistics(tmp_path / "statistics", UP_PROJ)
    down = adapter[UP_PROJ].down
    errors = []
    for protection in (0.0, 10.0):
        out = tmp_path / f"{protection}.gguf"
        rounding = RoundingOptions(protection=protection)
        merge(base, adapter, out, statistics=known, rounding=rounding)
        error = values(read_gguf(out), LAYERS[UP_PROJ][0]) - wanted(base, adapter, UP_PROJ)
        errors.append(float(((error @ down.T) ** 2).mean()))
    # Seen: 0.016.
    assert errors[1] < 0.1 * errors[0]


def test_the_seed_decides_a_compensated_file(base: GgufFile, tmp_path: Path) -> None:
    """A run that is repeated must give the model that was judged."""
    known = statistics(tmp_path / "statistics", *LAYERS)
    hashes = []
    for index, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{index}.gguf"
        merge(base, lora(), out, seed=seed, statistics=known)
        hashes.append(hashlib.sha256(out.read_bytes()).hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


def test_statistics_of_modules_that_are_not_touched_do_not_matter(
    base: GgufFile, tmp_path: Path
) -> None:
    """Statistics are gathered of all layers; an adapter may leave some alone."""
    known = statistics(tmp_path / "statistics", *LAYERS, "model.layers.7.mlp.up_proj")
    report = merge(base, lora(Q_PROJ), tmp_path / "out.gguf", statistics=known)
    assert (report.n_touched, report.n_compensated) == (1, 1)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("half", ["up", "down"])
@pytest.mark.parametrize("at_least", [None, "q6_k"])
def test_an_adapter_that_diverged_is_told_apart_from_bad_statistics(
    base: GgufFile, tmp_path: Path, number: float, half: str, at_least: str | None
) -> None:
    """The remedy is another learning rate, not another rounding."""
    adapter = lora()
    getattr(adapter[O_PROJ], half)[3, 1] = number
    known = statistics(tmp_path / "statistics", *LAYERS)
    out = tmp_path / "out.gguf"
    with pytest.raises(NotANumber, match=r"attn_output.*learning rate"):
        merge(base, adapter, out, statistics=known, at_least=at_least)
    assert not out.exists()


def test_statistics_that_are_no_numbers_leave_nothing(base: GgufFile, tmp_path: Path) -> None:
    """Rounded by them, a tensor would be noise."""
    directory = tmp_path / "statistics"
    directory.mkdir()
    write_moments(directory, 0, {"x": torch.full((HIDDEN, HIDDEN), float("nan"))})
    write_index(directory, {Q_PROJ: "x"}, {})
    out = tmp_path / "out.gguf"
    with pytest.raises(ExportError, match="no second moments"):
        merge(base, lora(), out, statistics=InputStatistics(directory))
    assert not list(tmp_path.glob("out*"))


def test_matrices_that_there_is_no_room_for_are_made_again(
    base: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers with one input may stand far apart in a file; memory is bounded all the same."""
    directory = tmp_path / "statistics"
    directory.mkdir()
    moments = {name: inputs(seed).T @ inputs(seed) for seed, name in enumerate("ab", 1)}
    write_moments(directory, 0, {name: torch.from_numpy(x) for name, x in moments.items()})
    # In the file's order: a, b, a, b, and once more.
    in_order = sorted(LAYERS, key=LAYERS.__getitem__)
    write_index(directory, dict(zip(in_order, "ababa", strict=True)), {})
    made = []

    def feedback_of(*arguments: Any) -> Any:
        made.append(arguments)
        return compensation.feedback_of(*arguments)

    monkeypatch.setattr(feedbacks_module, "feedback_of", feedback_of)
    files = []
    for n_bytes, times in ((1 << 20, 2), (feedbacks_module._n_bytes(HIDDEN), 5)):
        monkeypatch.setattr(feedbacks_module, "_KEPT_BYTES", n_bytes)
        monkeypatch.setattr(feedbacks_module, "_LARGE_BYTES", 0)
        out = tmp_path / f"{times}.gguf"
        report = merge(base, lora(), out, statistics=InputStatistics(directory))
        assert (report.n_compensated, len(made)) == (5, times)
        files.append(out.read_bytes())
        made.clear()
    assert files[0] == files[1]


@pytest.mark.parametrize("target", ["q6_k", "q8_0"])
def test_compensation_helps_a_new_grid_too(tmp_path: Path, target: str) -> None:
    """Its scales fit the weights, and the errors that are left are made good."""
    base, adapter = write_base(tmp_path / "base.gguf"), lora(UP_PROJ)
    known = statistics(tmp_path / "statistics", UP_PROJ)
    errors = []
    for name, given in (("plain", None), ("out", known)):
        out = tmp_path / f"{name}.gguf"
        merge(base, adapter, out, quantization=target, statistics=given)
        errors.append(output_error(base, read_gguf(out), adapter, UP_PROJ))
    # Seen: 0.06 and 0.05.
    assert errors[1] < 0.2 * errors[0]
