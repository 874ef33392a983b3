"""The streaming pass: what the adapter changes is changed, all else is the base, or nothing is."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from safetensors.torch import save_file

from ollama_trainer.errors import ExportError, MergedEqualsBase, TrainerError
from ollama_trainer.gguf import blas
from ollama_trainer.gguf import merge as merge_module
from ollama_trainer.gguf import touched as touched_module
from ollama_trainer.gguf.adapter import CONFIG_NAME, WEIGHTS_NAME, LoraPair
from ollama_trainer.gguf.file import GgufFile, read_gguf, string_entry
from ollama_trainer.gguf.merge import MergeReport, merge
from ollama_trainer.gguf.tensors import original_row_order, row_order
from ollama_trainer.pipeline.export import export, rungs
from ollama_trainer.testing import tiny_gguf
from tests.merging import (
    FEW_CODES,
    HEADS,
    HIDDEN,
    K_PROJ,
    LAYERS,
    O_PROJ,
    Q_PROJ,
    UP_PROJ,
    V_PROJ,
    lora,
    raw,
    statistics,
    values,
    wanted,
    write_base,
)
from tests.quantised import FLOATS, GRIDS
from tests.tiny_models import rotary_pairs, tiny_model, write_gguf


@pytest.fixture
def base(tmp_path: Path) -> GgufFile:
    return write_base(tmp_path / "base.gguf")


def test_what_the_adapter_leaves_alone_is_copied(base: GgufFile, tmp_path: Path) -> None:
    """Everything but the touched tensors' codes is the base, byte for byte, in the same places."""
    out = tmp_path / "out.gguf"
    report = merge(base, lora(Q_PROJ), out)
    before, after = base.path.read_bytes(), out.read_bytes()
    info = base.by_name["blk.0.attn_q.weight"]
    start = base.data_start + info.offset
    assert len(after) == len(before)
    assert after[:start] == before[:start]
    assert after[start + info.n_bytes :] == before[start + info.n_bytes :]
    assert after[start : start + info.n_bytes] != before[start : start + info.n_bytes]
    assert report == MergeReport(
        n_touched=1, n_compensated=0, n_copied=6, n_bytes=len(after), changed=True
    )


@pytest.mark.parametrize("kind", [*GRIDS, *FLOATS])
def test_every_type_keeps_size_and_learns(tmp_path: Path, kind: str) -> None:
    """`same` promises the base's size; that the change arrives is what the program is for."""
    base = write_base(tmp_path / "base.gguf", kind)
    adapter = lora()
    merge(base, adapter, tmp_path / "out.gguf")
    result = read_gguf(tmp_path / "out.gguf")
    # Of few codes, more are at an edge, where one half of all changes is cut off.
    tolerance = 0.2 if kind in FEW_CODES else 0.1
    assert result.path.stat().st_size == base.path.stat().st_size
    assert result.tensors == base.tensors
    for module, (name, _) in LAYERS.items():
        before = values(base, name)
        change, meant = values(result, name) - before, wanted(base, adapter, module) - before
        # Rounding is noise beside the change: a regression on it finds the factor 1.
        assert np.vdot(change, meant) / np.vdot(meant, meant) == pytest.approx(1, abs=tolerance)


def test_f32_gets_the_sum_with_rows_in_the_order_of_llama_cpp(tmp_path: Path) -> None:
    """A change in the wrong row order ruins attention while every size and name stays right."""
    base = write_base(tmp_path / "base.gguf", "F32")
    adapter = lora()
    merge(base, adapter, tmp_path / "out.gguf")
    result = read_gguf(tmp_path / "out.gguf")
    for module, (name, _) in LAYERS.items():
        np.testing.assert_allclose(values(result, name), wanted(base, adapter, module), atol=1e-6)


def test_the_row_order_has_its_inverse(base: GgufFile) -> None:
    """Bases are read into the order of transformers and changes put back into this one."""
    rows: Any = np.arange(256)[:, None]
    for module in (Q_PROJ, K_PROJ, V_PROJ):
        there, back = row_order(base, module), original_row_order(base, module)
        np.testing.assert_array_equal(back(there(rows)), rows)
        assert np.array_equal(there(rows), rows) == (module == V_PROJ)
    assert row_order(base, Q_PROJ)(rows).flatten().tolist() == rotary_pairs(256, HEADS).tolist()


@pytest.mark.parametrize("kind", ["Q4_0", "F32", "BF16", "Q8_0"])
@pytest.mark.parametrize(("target", "bound"), [("f16", 1e-4), ("q8_0", 1e-3)])
def test_targets_other_than_same(tmp_path: Path, kind: str, target: str, bound: float) -> None:
    """People with the room for it can have the change almost exactly."""
    base, adapter = write_base(tmp_path / "base.gguf", kind), lora(Q_PROJ, UP_PROJ)
    merge(base, adapter, tmp_path / "out.gguf", quantization=target)
    result = read_gguf(tmp_path / "out.gguf")
    for module, (name, _) in LAYERS.items():
        if module in adapter:
            assert result.by_name[name].type.name.lower() == target
            # The change itself is 0.016 on average; a Q8_0 base keeps its scales even here.
            error = np.abs(values(result, name) - wanted(base, adapter, module))
            assert error.mean() < bound
        else:
            assert raw(result, result.by_name[name]) == raw(base, base.by_name[name])
    other = tiny_gguf.read(result.path)
    assert [info.offset for info in other.tensors] == [info.offset for info in result.tensors]


def test_metadata_is_carried_over_replaced_and_appended(base: GgufFile, tmp_path: Path) -> None:
    """A new chat template must not cost a key, nor any key its bytes."""
    entries = {key: string_entry(key, "new – one") for key in ("general.name", "test.added")}
    merge(base, lora(Q_PROJ), tmp_path / "out.gguf", metadata=entries)
    result = read_gguf(tmp_path / "out.gguf")
    *others, version, file_type = base.metadata
    assert list(result.metadata) == [*others, "test.added", version, file_type]
    for key, entry in result.metadata.items():
        assert entry == entries.get(key, base.metadata.get(key))
    for info in result.tensors:
        if info.name != "blk.0.attn_q.weight":
            assert raw(result, info) == raw(base, base.by_name[info.name])


def test_the_seed_decides_the_file(base: GgufFile, tmp_path: Path) -> None:
    """A run that is repeated must give the model that was judged."""
    hashes = []
    for index, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{index}.gguf"
        merge(base, lora(), out, seed=seed)
        hashes.append(hashlib.sha256(out.read_bytes()).hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("options", [{}, {"quantization": "q6_k"}, {"at_least": "q8_0"}], ids=str)
@pytest.mark.parametrize("compensated", [False, True])
def test_threads_do_not_change_the_file(
    base: GgufFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    compensated: bool,
) -> None:
    """Equal digests on machines of few and of many cores; chunks are ready in any order."""
    monkeypatch.setattr(touched_module, "_CHUNK_WEIGHTS", 5 * HIDDEN)
    monkeypatch.setattr(touched_module, "_COMPENSATED_ROWS", 48)
    known = statistics(tmp_path / "statistics", Q_PROJ, UP_PROJ) if compensated else None
    hashes = set()
    for n_cores in (1, 2, 7):
        monkeypatch.setattr("os.cpu_count", lambda n_cores=n_cores: n_cores)
        out = tmp_path / f"{n_cores}.gguf"
        merge(base, lora(), out, statistics=known, **options)
        hashes.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(hashes) == 1


PROGRAM = """
import sys
from pathlib import Path
from ollama_trainer.gguf.adapter import read_adapter
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.gguf.merge import merge
from ollama_trainer.gguf.statistics import InputStatistics
base, adapter, known, out = map(Path, sys.argv[1:])
print(merge(read_gguf(base), read_adapter(adapter), out, statistics=InputStatistics(known)))
print(sorted({"torch", "scipy", "transformers", "safetensors", "llama_cpp"} & sys.modules.keys()))
"""


def test_a_merge_loads_nothing_large(base: GgufFile, tmp_path: Path) -> None:
    """Loading torch takes longer than a merge, and more memory than a small computer spares."""
    key = f"base_model.model.{O_PROJ}.lora_"
    tensors = {f"{key}A.weight": torch.ones(4, HIDDEN), f"{key}B.weight": torch.ones(HIDDEN, 4)}
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    (tmp_path / CONFIG_NAME).write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    known = statistics(tmp_path / "statistics", O_PROJ)
    paths = [base.path, tmp_path, tmp_path / "statistics", tmp_path / "out.gguf"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths], capture_output=True, text=True, check=True
    )
    report, loaded = done.stdout.splitlines()
    assert known.inputs == {O_PROJ: "shared"}
    assert "n_compensated=1" in report
    assert loaded == "[]"


def test_products_take_one_thread_each(base: GgufFile, tmp_path: Path) -> None:
    """On several, sums come out in another order on each machine; afterwards all is as it was."""
    if (found := blas._openblas()) is None:
        pytest.skip("numpy computes with another library than OpenBLAS here")
    ask, tell = found
    before = ask()
    tell(2)
    seen = []
    try:
        merge(base, lora(), tmp_path / "out.gguf", progress=lambda _fraction: seen.append(ask()))
        assert ask() == 2
    finally:
        tell(before)
    assert set(seen) == {1}


def test_chunks_are_not_seen_in_f32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Big tensors go through in pieces; a piece that is off by a row would shift the rest."""
    base = write_base(tmp_path / "base.gguf", "F32")
    adapter = lora()
    merge(base, adapter, tmp_path / "whole.gguf")
    monkeypatch.setattr(touched_module, "_CHUNK_WEIGHTS", 7 * HIDDEN)
    monkeypatch.setattr(merge_module, "_COPY_BYTES", 100)
    merge(base, adapter, tmp_path / "pieces.gguf")
    whole, pieces = (read_gguf(tmp_path / f"{name}.gguf") for name in ("whole", "pieces"))
    for info in whole.tensors:
        np.testing.assert_allclose(values(pieces, info.name), values(whole, info.name), atol=1e-6)


def test_progress_rises_to_one(base: GgufFile, tmp_path: Path) -> None:
    """The bar that people watch."""
    seen: list[float] = []
    merge(base, lora(), tmp_path / "out.gguf", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def refused(
    base: GgufFile, adapter: dict[str, LoraPair], out: Path, match: str, **options: Any
) -> None:
    """Merges, expects a refusal in these words, and that `out` is as it was."""
    before = out.read_bytes() if out.exists() else None
    with pytest.raises(TrainerError, match=match):
        merge(base, adapter, out, **options)
    assert (out.read_bytes() if out.exists() else None) == before
    assert not list(out.parent.glob("*.partial"))


def test_an_adapter_of_another_base_is_refused_by_name(base: GgufFile, tmp_path: Path) -> None:
    """Adding it where it happens to fit would give a model that nobody trained."""
    out = tmp_path / "out.gguf"
    pair = lora(Q_PROJ)[Q_PROJ]
    refused(base, {"model.layers.1.self_attn.q_proj": pair}, out, r"layers\.1\.self_attn\.q_proj")
    refused(base, {"transformer.h.0.attn": pair}, out, "transformer.h.0.attn")
    refused(base, {V_PROJ: pair}, out, "attn_v")
    refused(base, lora(Q_PROJ, width=128), out, "attn_q")


def test_q8_0_of_rows_that_do_not_fit_is_refused(tmp_path: Path) -> None:
    """Its blocks are 32 wide; a row of 48 would run into the next."""
    base = write_base(tmp_path / "base.gguf", "F16", width=48)
    adapter = lora(O_PROJ, width=48)
    refused(base, adapter, tmp_path / "out.gguf", "48 weights", quantization="q8_0")
    merge(base, adapter, tmp_path / "out.gguf", quantization="f16")


@pytest.mark.parametrize("quantization", ["same", "f16"])
def test_a_type_that_cannot_be_merged_into_is_refused(tmp_path: Path, quantization: str) -> None:
    """The message names tensor and type, since the choice of base is the person's."""
    base = write_base(tmp_path / "base.gguf", "I8")
    refused(base, lora(Q_PROJ), tmp_path / "out.gguf", "attn_q.*I8", quantization=quantization)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantization", ["same", "f16", "q8_0"])
def test_an_adapter_that_diverged_is_refused(
    base: GgufFile, tmp_path: Path, number: float, quantization: str
) -> None:
    """NaN becomes some code or other without a word."""
    adapter = lora()
    adapter[O_PROJ].up[3, 1] = number
    out = tmp_path / "out.gguf"
    out.write_bytes(b"an older result")
    refused(base, adapter, out, "attn_output.*not a finite", quantization=quantization)


def test_a_disk_that_takes_no_more_leaves_nothing(base: GgufFile, tmp_path: Path) -> None:
    """Half a model under a final name would be published as if it were whole."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (base.path.stat().st_size // 2, limits[1]))
    try:
        refused(base, lora(UP_PROJ), tmp_path / "out.gguf", "File too large.*Make room for")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf"]


@pytest.mark.parametrize("touched", [Q_PROJ, UP_PROJ])
def test_a_base_that_is_cut_while_it_is_read(base: GgufFile, tmp_path: Path, touched: str) -> None:
    """Another program may replace the file; the result must not be made of what was left."""
    data = base.path.read_bytes()
    base.path.write_bytes(data[: len(data) - 100])
    with pytest.raises(ExportError, match="ended while it was read"):
        merge(base, lora(touched), tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf"]


def test_a_folder_that_does_not_exist(base: GgufFile, tmp_path: Path) -> None:
    """Not a traceback, but the path and what to do."""
    with pytest.raises(ExportError, match="nowhere"):
        merge(base, lora(Q_PROJ), tmp_path / "nowhere" / "out.gguf")


@pytest.mark.parametrize(
    ("kind", "at_least", "width", "becomes"),
    [
        ("Q4_0", "q6_k", 256, "Q6_K"),
        ("Q5_1", "q6_k", 256, "Q6_K"),
        ("Q4_0", "q6_k", 96, "Q8_0"),
        ("Q4_0", "q8_0", 256, "Q8_0"),
        ("Q6_K", "q6_k", 256, "Q6_K"),
        ("Q6_K", "q8_0", 256, "Q8_0"),
        ("Q8_0", "q6_k", 256, "Q8_0"),
        ("Q8_0", "q8_0", 256, "Q8_0"),
        ("F16", "q6_k", 256, "F16"),
        ("BF16", "q8_0", 256, "BF16"),
        ("F32", "q8_0", 48, "F32"),
    ],
)
@pytest.mark.parametrize("compensated", [False, True])
def test_types_only_rise(
    tmp_path: Path, kind: str, at_least: str, width: int, becomes: str, compensated: bool
) -> None:
    """A rung is there to keep more of what was learned, never less."""
    base = write_base(tmp_path / "base.gguf", kind, width)
    adapter = lora(O_PROJ, UP_PROJ, width=width, size=0.002)
    known = statistics(tmp_path / "statistics", UP_PROJ, width=width) if compensated else None
    report = merge(base, adapter, tmp_path / "out.gguf", at_least=at_least, statistics=known)
    assert report.changed
    # Floats hold every change as it is.
    assert report.n_compensated == (compensated and becomes not in FLOATS)
    result = read_gguf(tmp_path / "out.gguf")
    for module, (name, _) in LAYERS.items():
        before, after = base.by_name[name], result.by_name[name]
        if module not in adapter:
            assert raw(result, after) == raw(base, before)
            continue
        assert after.type.name == becomes
        assert (after.shape, after.type.bits_per_weight) >= (
            before.shape,
            before.type.bits_per_weight,
        )
        if after.type != before.type:
            error = np.abs(values(result, name) - wanted(base, adapter, module))
            assert error.mean() < 0.1 * 0.05


@pytest.mark.parametrize("kind", [*GRIDS, *FLOATS])
@pytest.mark.parametrize("compensated", [False, True])
def test_an_adapter_of_zeros_changes_nothing(tmp_path: Path, kind: str, compensated: bool) -> None:
    """What a training that learned nothing leaves; the report must say so."""
    base = write_base(tmp_path / "base.gguf", kind)
    known = statistics(tmp_path / "statistics", *LAYERS) if compensated else None
    report = merge(base, lora(size=0.0), tmp_path / "out.gguf", statistics=known)
    assert not report.changed
    assert report.n_touched == 5
    assert (tmp_path / "out.gguf").read_bytes() == base.path.read_bytes()


@pytest.mark.parametrize("quantization", ["f16", "q8_0", "q6_k"])
def test_another_type_alone_is_no_change(tmp_path: Path, quantization: str) -> None:
    """The base in a larger type is the base still."""
    base = write_base(tmp_path / "base.gguf")
    out = tmp_path / "out.gguf"
    assert not merge(base, lora(size=0.0), out, quantization=quantization).changed
    assert merge(base, lora(UP_PROJ), out, quantization=quantization).changed


@pytest.mark.parametrize("module", LAYERS)
@pytest.mark.parametrize("row", [0, 77, 127])
def test_a_change_of_one_row_is_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, row: int
) -> None:
    """What is equal after it must not hide it, nor what is equal before it."""
    monkeypatch.setattr(touched_module, "_CHUNK_WEIGHTS", 7 * HIDDEN)
    base = write_base(tmp_path / "base.gguf", "F32")
    adapter = lora(size=0.0)
    adapter[module].up[row] = 0.01
    assert merge(base, adapter, tmp_path / "out.gguf").changed


@pytest.mark.parametrize(
    ("kind", "width", "ladder"),
    [
        ("Q4_0", 256, (None, "q6_k", "q8_0")),
        ("Q5_1", 256, (None, "q6_k", "q8_0")),
        # Rows that Q6_K cannot hold become Q8_0 at its rung, so there is no other above it.
        ("Q4_0", 96, (None, "q6_k")),
        ("Q6_K", 256, (None, "q8_0")),
        ("Q8_0", 256, (None,)),
        ("F16", 256, (None,)),
    ],
)
def test_the_rungs_of_a_base(
    tmp_path: Path, kind: str, width: int, ladder: tuple[str | None, ...]
) -> None:
    """Each rung that changes nothing would cost an export and a reading for the same file."""
    base = write_base(tmp_path / "base.gguf", kind, width)
    assert rungs(base, "same", (0,)) == ladder
    assert rungs(base, "same", (1, 10)) == (None,), "what is not trained climbs nowhere"
    for wanted_type in ("f16", "q8_0", "q6_k"):
        assert rungs(base, wanted_type, (0,)) == (None,)


def adapter_directory(path: Path, size: float) -> Path:
    """A PEFT adapter on the linear layers of `tests.tiny_models`, as its backends save it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(tiny_model(), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=size)
    model.save_pretrained(path)
    return path


def test_an_export_that_equals_its_base_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Under a new name, the base would pass for a model that has learned."""
    base = read_gguf(write_gguf(tiny_model(), tmp_path / "base.gguf", "Q4_0"))
    out = tmp_path / "out.gguf"
    for size in (0.0, 1e-30):
        adapter = adapter_directory(tmp_path / str(size), size)
        with pytest.raises(MergedEqualsBase) as caught:
            export(base, adapter, out, quantization="same", seed=1)
        assert caught.value.code == "merged_equals_base"
        assert "learning rate" in caught.value.remedy
        assert sorted(path.name for path in tmp_path.glob("*.*gguf*")) == ["base.gguf"]
    changing = adapter_directory(tmp_path / "changing", 0.01)
    assert export(base, changing, out, quantization="same", seed=1).changed
    assert out.exists()


def test_an_export_reads_its_statistics_first(tmp_path: Path) -> None:
    """Statistics that are not whole must not leave half a file."""
    base = read_gguf(write_gguf(tiny_model(), tmp_path / "base.gguf", "Q4_0"))
    adapter = adapter_directory(tmp_path / "adapter", 0.01)
    out = tmp_path / "out.gguf"
    with pytest.raises(ExportError, match="statistics"):
        export(base, adapter, out, quantization="same", statistics=tmp_path / "none", seed=1)
    assert not list(tmp_path.glob("out.gguf*"))
