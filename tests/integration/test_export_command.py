"""`ollama-trainer export`: an adapter merged by hand, without a run.

The adapter is written here, key by key, and what must come out is computed here, in numpy.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from ollama_trainer.cli import main
from ollama_trainer.errors import ServerError
from ollama_trainer.executors import exporting
from ollama_trainer.executors.exporting import Exported, ExportQuestion, export_adapter
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.llama import open_llama
from tests.tiny_models import (
    HEADS,
    HIDDEN,
    gguf_name,
    rotary_pairs,
    split_gguf,
    tiny_model,
    write_gguf,
)

Weights = NDArray[np.float32]
EXPORT = (sys.executable, "-m", "ollama_trainer", "export")
RANK, ALPHA = 4, 8
CHANGED = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def run_export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EXPORT, *map(str, arguments)], capture_output=True, text=True)


def write_adapter(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Weights]:
    """A LoRA as PEFT saves it; returns its changes, by module."""
    from safetensors.numpy import save_file

    directory.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = np.random.default_rng(3)
    weights: dict[str, Weights] = {}
    changes: dict[str, Weights] = {}
    for module, (n_out, n_in) in shapes.items():
        down: Weights = generator.standard_normal((RANK, n_in), np.float32) / np.float32(16)
        up: Weights = generator.standard_normal((n_out, RANK), np.float32) / np.float32(64)
        weights[f"base_model.model.{module}.lora_A.weight"] = down
        weights[f"base_model.model.{module}.lora_B.weight"] = up
        changes[module] = (ALPHA / RANK * up @ down).astype(np.float32)
    save_file(weights, directory / "adapter_model.safetensors")
    return changes


class Sources:
    """A base in F32, the same in Q4_0, and an adapter."""

    def __init__(self, directory: Path) -> None:
        model = tiny_model()
        self.base = write_gguf(model, directory / "base.gguf", "F32")
        self.q4_0 = write_gguf(model, directory / "q4_0.gguf", "Q4_0")
        parameters = model.state_dict()
        self.weights = {
            module: parameters[f"{module}.weight"].numpy().astype(np.float32) for module in CHANGED
        }
        self.adapter = directory / "adapter"
        shapes = {module: weight.shape for module, weight in self.weights.items()}
        self.changes = write_adapter(self.adapter, shapes)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


def data_of(file: GgufFile) -> dict[str, bytes]:
    with file.open() as source:
        return {info.name: source.read(info, 0, info.n_bytes) for info in file.tensors}


def test_an_adapter_is_merged_and_told_as_json(sources: Sources, tmp_path: Path) -> None:
    """The right rows of the right tensors, all else as it was, and llama.cpp loads it."""
    out = tmp_path / "out.gguf"
    done = run_export(sources.base, sources.adapter, out, "--json", "--seed", 7)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    before, after = read_gguf(sources.base), read_gguf(out)
    assert told.pop("seconds") > 0
    assert told == {
        "path": str(out), "n_bytes": out.stat().st_size, "n_touched": 2, "n_compensated": 0,
        "digest": hashlib.sha256(out.read_bytes()).hexdigest(),
        "n_copied": len(before.tensors) - 2, "quantization": "same", "rounding": "stochastic",
        "seed": 7,
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [out]
    expected = data_of(before)
    for module in CHANGED:
        merged = sources.weights[module] + sources.changes[module]
        if "q_proj" in module:
            merged = merged[rotary_pairs(HIDDEN, HEADS)]
        data = data_of(after)[gguf_name(f"{module}.weight")]
        found = np.frombuffer(data, np.float32).reshape(merged.shape)
        np.testing.assert_allclose(found, merged, rtol=0, atol=1e-6)
        assert np.abs(found).max() > 0
        expected[gguf_name(f"{module}.weight")] = data
    assert data_of(after) == expected
    for key in before.metadata.keys() - {"tokenizer.chat_template"}:
        assert after.metadata[key] == before.metadata[key]
    with open_llama(out, n_ctx=16) as llama:
        assert llama.n_vocab() > 0


def test_a_person_reads_what_was_done(sources: Sources, tmp_path: Path) -> None:
    """With another type, over a file that stands in the way."""
    out = tmp_path / "out.gguf"
    out.write_text("old")
    arguments = (sources.q4_0, sources.adapter, out, "--quantization", "q8_0", "--force")
    done = run_export(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    file = read_gguf(out)
    assert {tensor.name for tensor in file.tensors if tensor.type.name == "Q8_0"} == {
        gguf_name(f"{module}.weight") for module in CHANGED
    }
    wrote, size, digest, tensors, rounding = done.stdout.splitlines()
    assert wrote == f"wrote     {out}"
    assert size.startswith(f"size      {out.stat().st_size:,} bytes in ")
    assert digest == f"digest    sha256:{hashlib.sha256(out.read_bytes()).hexdigest()}"
    n_copied = len(file.tensors) - 2
    assert tensors == f"tensors   2 changed, {n_copied} as they are in the base"
    assert rounding == "rounding  stochastic, seed 1"


def asked(sources: Sources, out: Path, **changes: Any) -> ExportQuestion:
    fields = {"base": sources.q4_0, "adapter": sources.adapter, "statistics": None, "seed": 1}
    return ExportQuestion(**{**fields, "out": out, "quantization": "same", **changes})


async def test_the_seed_decides_the_bytes(sources: Sources, tmp_path: Path) -> None:
    """Who has base, adapter and seed can make the same file again; how far it is is told."""
    digests, told = [], list[float]()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        told.clear()
        exported = await export_adapter(asked(sources, tmp_path / name, seed=seed), told.append)
        digests.append(exported.digest)
        assert len(told) > 5
        assert told == sorted(told)
        assert told[-1] == 1.0
    assert digests[0] == digests[1] != digests[2]


def write_statistics(directory: Path, inputs: Mapping[str, int]) -> Path:
    import torch

    from ollama_trainer.gguf.statistics import write_index, write_moments

    directory.mkdir()
    generator = torch.Generator().manual_seed(1)
    rows = {name: torch.randn(1000, size, generator=generator) for name, size in inputs.items()}
    write_moments(directory, 0, {name: row.T @ row for name, row in rows.items()})
    write_index(directory, {name: name for name in inputs}, {"data": 1000})
    return directory


def test_statistics_make_compensated_rounding_the_default(sources: Sources, tmp_path: Path) -> None:
    """It keeps more; a layer that they do not know is told."""
    statistics = write_statistics(tmp_path / "statistics", {CHANGED[0]: HIDDEN})
    arguments = (sources.q4_0, sources.adapter, tmp_path / "out.gguf", "--statistics", statistics)
    done = run_export(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        "rounding  compensated, but for 1 tensors without statistics, seed 1"
    )


def test_statistics_of_another_model_are_refused(sources: Sources, tmp_path: Path) -> None:
    """They would leave everything to stochastic rounding, and nobody asked for that."""
    statistics = write_statistics(tmp_path / "statistics", {"model.layers.7.mlp.up_proj": 8})
    done = run_export(
        sources.q4_0, sources.adapter, tmp_path / "out.gguf", "--statistics", statistics
    )
    assert done.returncode == 1
    assert "know no layer that the adapter changes" in done.stderr


async def test_a_split_base_is_merged_as_a_whole_one(sources: Sources, tmp_path: Path) -> None:
    """Large models come so; the result is one file, whichever part is named."""
    second = split_gguf(sources.q4_0, tmp_path)[1]
    whole = await export_adapter(asked(sources, tmp_path / "whole"))
    joined = await export_adapter(asked(sources, tmp_path / "joined", base=second))
    # They name what they were made of: one file, or several.
    files = [read_gguf(one.path) for one in (whole, joined)]
    assert files[0].tensors == files[1].tensors
    data = [file.path.read_bytes()[file.data_start :] for file in files]
    assert data[0] == data[1]
    differing = {key for key in files[0].metadata if files[0].get(key) != files[1].get(key)}
    assert differing == {"general.ollama_trainer.base.digest"}
    assert list(files[0].metadata) == list(files[1].metadata)


def refused(sources: Sources, tmp_path: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    """What is asked -> what is said of it."""
    base, adapter, out = sources.base, sources.adapter, tmp_path / "out.gguf"
    (tmp_path / "old.gguf").write_text("old")
    (tmp_path / "link.gguf").symlink_to(base)
    (tmp_path / "none").mkdir()
    return {
        "exists": ((base, adapter, tmp_path / "old.gguf"), "old.gguf exists. Choose another"),
        "a directory": ((base, adapter, tmp_path), "is a directory"),
        "nowhere": ((base, adapter, tmp_path / "no" / "out.gguf"), "there is no directory"),
        "the base": ((base, adapter, tmp_path / "link.gguf", "--force"), "is the base itself"),
        "no statistics": ((base, adapter, out, "--rounding", "compensated"), "needs statistics"),
        "needless statistics": (
            (base, adapter, out, "--rounding", "stochastic", "--statistics", tmp_path),
            "has no use for statistics",
        ),
        "statistics of nothing": ((base, adapter, out, "--statistics", tmp_path), "cannot be read"),
        "no base": ((tmp_path / "none.gguf", adapter, out), "cannot be read"),
        "no adapter": ((base, tmp_path / "none", out), "adapter_config.json cannot be read"),
        "another's adapter": ((base, other_adapter(tmp_path), out), "which base.gguf does not"),
    }


def other_adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "other", {"model.layers.9.mlp.up_proj": (8, 8)})
    return tmp_path / "other"


@pytest.mark.parametrize(
    "case",
    [
        "exists", "a directory", "nowhere", "the base", "no statistics", "needless statistics",
        "statistics of nothing", "no base", "no adapter", "another's adapter",
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told(
    sources: Sources, tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """In words, with exit code 1, and nothing written."""
    arguments, words = refused(sources, tmp_path)[case]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["export", *map(str, arguments)]) == 1
    said, complaints = capfd.readouterr()
    assert (said, complaints[:7]) == ("", "error: ")
    assert words in complaints
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("flags", [("--seed", "-1"), ("--seed", "x"), ("--quantization", "q1")])
def test_wrong_usage_is_told(flags: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "base.gguf", "adapter", "out.gguf", *flags])
    assert ended.value.code == 2
    assert flags[0] in capfd.readouterr().err


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(exporting, "_COMMAND", (sys.executable, "-c", program))


async def test_an_interrupted_export_leaves_nothing(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a process nor half a file; what stood at the name stays."""
    partial = tmp_path / "out.gguf.partial"
    stand_in(
        monkeypatch,
        f"import pathlib, time; pathlib.Path({str(partial)!r}).touch();"
        "print('{\"progress\": 0.5}', flush=True); time.sleep(600)",
    )
    begun = asyncio.Event()
    task = asyncio.create_task(
        export_adapter(asked(sources, tmp_path / "out.gguf"), lambda _fraction: begun.set())
    )
    await asyncio.wait_for(begun.wait(), 60)
    children = psutil.Process().children()
    assert partial.exists()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not partial.exists()
    assert not any(child.is_running() for child in children)


async def test_an_exporter_that_breaks_is_told(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that the system ends for want of memory."""
    stand_in(monkeypatch, "import os; print('{\"progress\": 0.5}', flush=True); os.abort()")
    with pytest.raises(ServerError, match="exit code -6"):
        await export_adapter(asked(sources, tmp_path / "out.gguf"))


def test_a_result_has_every_field_that_is_documented() -> None:
    """A script that reads the JSON finds what it looks for."""
    assert list(Exported.model_fields) == [
        "path", "n_bytes", "digest", "n_touched", "n_compensated", "n_copied", "quantization",
        "rounding", "seed", "seconds",
    ]  # fmt: skip
