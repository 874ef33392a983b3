"""Second moments on disk: what is read is what was gathered, or the error says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: TID253
from safetensors.torch import load_file, save_file

from ollama_trainer.errors import ExportError
from ollama_trainer.gguf.statistics import InputStatistics, write_index, write_moments
from tests.moments import dense


def moments(n: int, seed: int = 1) -> torch.Tensor:
    """Correlated features whose strengths differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2 * n + 3, n, generator=generator) @ torch.randn(n, n, generator=generator)
    inputs *= torch.logspace(-4, 3, n)
    return inputs.T @ inputs


def correlations(moment: torch.Tensor) -> torch.Tensor:
    roots = moment.diagonal().sqrt()
    return moment / roots[:, None] / roots


def read(directory: Path, name: str = "x") -> torch.Tensor:
    """The square that was written, as far as it is kept."""
    return torch.from_numpy(dense(InputStatistics(directory).moment(name)))


def written(directory: Path, *parts: dict[str, torch.Tensor]) -> Path:
    for number, part in enumerate(parts):
        write_moments(directory, number, part)
    names = [name for part in parts for name in part]
    write_index(directory, {f"model.{name}": name for name in names}, {"rows": 7})
    return directory


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 511, 512, 600])
def test_what_was_written_is_read(tmp_path: Path, n: int) -> None:
    """Panels end at 256: a row too many or too few would shift all that follow."""
    moment = moments(n)
    found = read(written(tmp_path, {"x": moment}))
    torch.testing.assert_close(found.diagonal(), moment.diagonal(), rtol=1e-3, atol=0)
    # float16 holds a correlation to 0.0005.
    difference = correlations(found) - correlations(moment)
    assert difference.abs().max() < 1e-3


@pytest.mark.parametrize("n", [1, 300])
def test_the_strongest_features_stand_last(tmp_path: Path, n: int) -> None:
    """Their errors are made good first, by all the others; see compensation.py."""
    moment = moments(n)[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    found = InputStatistics(written(tmp_path, {"x": moment @ moment.T})).moment("x")
    assert sorted(found.order) == list(range(n))
    np.testing.assert_array_equal(found.diagonal, np.sort(found.diagonal))
    np.testing.assert_allclose(
        found.diagonal, (moment @ moment.T).diagonal().numpy()[found.order], rtol=1e-5
    )
    for index in range(-(-n // 256)):
        own = found.panel(index)[:, index * 256 :].diagonal()
        np.testing.assert_allclose(own, found.diagonal[index * 256 :][:256], rtol=1e-3)


def test_half_of_the_matrix_is_kept(tmp_path: Path) -> None:
    """A model of a billion weights has gigabytes of them."""
    n = 1024
    directory = written(tmp_path, {"x": moments(n)})
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert size < 0.65 * 2 * n * n + 4 * n + 2000


def test_features_of_zero(tmp_path: Path) -> None:
    """Dead features are common; 0/0 in one of them must not spoil the others."""
    moment = moments(300)
    dead = torch.arange(0, 300, 7)
    moment[dead] = 0
    moment[:, dead] = 0
    found = read(written(tmp_path, {"x": moment}))
    assert torch.isfinite(found).all()
    assert not found[dead].any()
    assert not found[:, dead].any()
    alive = moment.diagonal() > 0
    torch.testing.assert_close(
        found[alive][:, alive].diagonal(), moment.diagonal()[alive], rtol=1e-3, atol=0
    )
    assert not read(written(tmp_path, {"x": torch.zeros(40, 40)})).any()


def test_several_parts(tmp_path: Path) -> None:
    """What does not fit into memory at once is gathered part by part."""
    parts = [{"a": moments(20, 1), "b": moments(30, 2)}, {"c": moments(20, 3)}]
    statistics = InputStatistics(written(tmp_path, *parts))
    assert statistics.inputs == {"model.a": "a", "model.b": "b", "model.c": "c"}
    for part in parts:
        for name, moment in part.items():
            found = read(tmp_path, name)
            assert (correlations(found) - correlations(moment)).abs().max() < 1e-3


def test_moments_that_are_no_numbers_stay_none(tmp_path: Path) -> None:
    """Cleaned up on the way, they would pass for statistics; `feedback_of` refuses them."""
    moment = moments(10)
    moment[3, 3] = float("nan")
    assert torch.isnan(read(written(tmp_path, {"x": moment}))[3, 3])


def check_refused(directory: Path) -> None:
    with pytest.raises(ExportError) as caught:
        InputStatistics(directory).moment("x")
    assert str(directory) in caught.value.cause
    assert "stochastic" in caught.value.remedy


@pytest.mark.parametrize(
    "index",
    [None, "", "{", "[]", "3", "{}", '{"inputs": 3}', '{"inputs": ["a"]}', "\x00\xff"],
)
def test_an_index_that_is_missing_or_damaged(tmp_path: Path, index: str | None) -> None:
    """It is written last: without it the statistics are not whole."""
    written(tmp_path, {"x": moments(5)})
    path = tmp_path / "index.json"
    path.unlink()
    if index is not None:
        path.write_text(index, encoding="latin-1")
    check_refused(tmp_path)


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    """A run directory that was tidied up must not end in a traceback."""
    check_refused(tmp_path / "none")


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 100, "cut"])
def test_a_part_that_is_missing_or_damaged(tmp_path: Path, content: bytes | str | None) -> None:
    """Half a matrix would compensate for inputs that there never were."""
    path = written(tmp_path, {"x": moments(50)}) / "part-000.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:-100] if isinstance(content, str) else content)
    check_refused(tmp_path)


def test_a_part_that_goes_missing_later(tmp_path: Path) -> None:
    """Files are opened one at a time, so one may be gone by then."""
    statistics = InputStatistics(written(tmp_path, {"x": moments(5)}))
    (tmp_path / "part-000.safetensors").unlink()
    with pytest.raises(ExportError, match="statistics of x"):
        statistics.moment("x")


def test_a_part_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """Panels are read one at a time: a matrix whose end is missing is none."""
    moment = InputStatistics(written(tmp_path, {"x": moments(300)})).moment("x")
    path = tmp_path / "part-000.safetensors"
    moment.panel(1)
    path.write_bytes(path.read_bytes()[:-150_000])
    with pytest.raises(ExportError, match="statistics of x"):
        moment.panel(1)


def test_an_input_that_no_part_holds(tmp_path: Path) -> None:
    """An index may name more than there is."""
    written(tmp_path, {"y": moments(5)})
    write_index(tmp_path, {"model.x": "x"}, {})
    check_refused(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"x.correlations": torch.ones(24).half()},
        {"x.correlations": torch.ones(5, 5).half()},
        {"x.roots": torch.ones(4)},
        {"x.roots": torch.ones(5, 1)},
        {"x.order": torch.zeros(5).int()},
        {"x.order": torch.arange(1, 6).int()},
        {"x.order": torch.arange(4).int()},
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_together(tmp_path: Path, wrong: dict[str, torch.Tensor]) -> None:
    """Another program's file of the same names must not be taken apart at the wrong places."""
    path = written(tmp_path, {"x": moments(5)}) / "part-000.safetensors"
    save_file(load_file(path) | wrong, path)
    check_refused(tmp_path)


@pytest.mark.parametrize("missing", ["order", "roots", "correlations"])
def test_an_array_that_is_missing(tmp_path: Path, missing: str) -> None:
    """So an older version's file looks, which had no order."""
    path = written(tmp_path, {"x": moments(5)}) / "part-000.safetensors"
    tensors = load_file(path)
    del tensors[f"x.{missing}"]
    save_file(tensors, path)
    check_refused(tmp_path)


def test_the_index_tells_how_much_was_read(tmp_path: Path) -> None:
    """Whoever looks into a run directory can see what the statistics rest on."""
    index = json.loads((written(tmp_path, {"x": moments(3)}) / "index.json").read_text())
    assert index == {"inputs": {"model.x": "x"}, "n_tokens": {"rows": 7}}
