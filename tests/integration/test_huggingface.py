"""A base that is a Hugging Face directory: converted by llama.cpp's own converter, once."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ollama_trainer.bases import converter, huggingface, resolve_base
from ollama_trainer.bases.dequantized import dequantized_directory
from ollama_trainer.errors import BackendUnavailable, BaseModelError
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.records import BaseGguf
from tests.integration.test_parity import computed, divergence, exact_llama_cpp, served

CORPUS = [
    "The kiln is fired on Tuesdays and cools until Thursday morning.",
    "Orders that come in before noon leave on the same day.",
    "Was nicht im Buch steht, weiß der Meister; was er nicht weiß, steht im Buch.",
] * 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in bfloat16 with a tokenizer of its own, as people download models."""
    return write_model(tmp_path_factory.mktemp("hub") / "tiny-llama")


def write_model(path: Path, dtype: str = "bfloat16") -> Path:
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=trained, vocab_size=330, byte_fallback=True,
        model_type="bpe", minloglevel=2,
    )  # fmt: skip
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=330, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.08, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(path)
    (path / "tokenizer.model").write_bytes(trained.getvalue())
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, since a conversion takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def base(directory: Path, cache: Path) -> BaseGguf:
    return resolve_base(f"hf:{directory}", cache)


def made_in(cache: Path) -> list[str]:
    """What was made there, beside the memory of digests."""
    return [path.name for path in cache.iterdir() if path.name != "digests"]


def copied(directory: Path, target: Path) -> Path:
    return Path(shutil.copytree(directory, target))


def test_a_directory_becomes_a_gguf_in_its_own_precision(base: BaseGguf, cache: Path) -> None:
    gguf = read_gguf(base.gguf)
    assert gguf.architecture == "llama"
    assert gguf.by_name["blk.0.attn_q.weight"].type.name == "BF16"
    assert base.digest == hashlib.sha256(base.gguf.read_bytes()).hexdigest()
    assert made_in(cache) == [base.gguf.name]


def test_torch_computes_with_it_what_llama_cpp_computes(base: BaseGguf, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = dequantized_directory(base, tmp_path, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    sequences = np.random.default_rng(1).integers(3, 330, (2, 32)).tolist()
    with exact_llama_cpp():
        apart = divergence(computed(model, sequences), served(base.gguf, sequences))
    assert apart < 1e-3  # llama.cpp rounds activations to bfloat16


def test_it_is_converted_once(
    directory: Path, base: BaseGguf, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(huggingface, "convert", never)
    assert resolve_base(f"hf:{directory}", cache) == base


def test_other_weights_are_another_base(
    directory: Path, base: BaseGguf, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that was updated must not be taken for what it was."""
    monkeypatch.setattr(huggingface, "convert", lambda _model, out, *_: out.write_bytes(b"new"))
    mine = copied(directory, tmp_path / "mine")
    assert resolve_base(f"hf:{mine}", cache).gguf == base.gguf
    weights = mine / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    after = resolve_base(f"hf:{mine}", cache)
    assert after.gguf.read_bytes() == b"new"
    assert base.digest != after.digest


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "f32"), ("float16", "f16")])
def test_weights_keep_their_precision(tmp_path: Path, dtype: str, kind: str) -> None:
    assert huggingface.precision(write_model(tmp_path / "model", dtype)) == kind


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_never_run(
    directory: Path, tmp_path: Path, name: str
) -> None:
    mine = copied(directory, tmp_path / "mine")
    content = json.loads((mine / name).read_text())
    (mine / name).write_text(json.dumps(content | {"auto_map": {"AutoConfig": "evil.Config"}}))
    (mine / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(BaseModelError, match="code that comes with the model"):
        resolve_base(f"hf:{mine}", tmp_path)


def test_pickled_weights_are_refused(directory: Path, tmp_path: Path) -> None:
    mine = copied(directory, tmp_path / "mine")
    (mine / "model.safetensors").rename(mine / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="no safetensors"):
        resolve_base(f"hf:{mine}", tmp_path)


def test_what_the_converter_cannot_read_is_quoted_and_leaves_nothing(
    directory: Path, tmp_path: Path
) -> None:
    mine = copied(directory, tmp_path / "mine")
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    empty = tmp_path / "empty"
    with pytest.raises(BaseModelError, match="NoSuchModel is not supported"):
        resolve_base(f"hf:{mine}", empty)
    assert made_in(empty) == []


def test_eight_bit_checkpoints_are_refused(directory: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    mine = copied(directory, tmp_path / "mine")
    weights = {"model.embed_tokens.weight": torch.zeros(8, 8).to(torch.float8_e4m3fn)}
    save_file(weights, mine / "model.safetensors")
    with pytest.raises(BaseModelError, match="F8_E4M3"):
        resolve_base(f"hf:{mine}", tmp_path)


@pytest.mark.parametrize("name", ["hf:./relative/path", "hf:/no/such/directory"])
def test_a_path_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BaseModelError, match="absolute path of a directory"):
        resolve_base(name, tmp_path)


def test_without_the_converter_the_command_that_installs_it_is_named(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"python -m ollama_trainer\.bases\.converter"):
        resolve_base(f"hf:{directory}", tmp_path / "cache")


def test_the_pinned_archive_is_that_of_the_lock_file() -> None:
    """The converter must belong to the llama.cpp that is installed."""
    locked = Path(__file__).parents[2] / "requirements" / "all.txt"
    _, _, rest = locked.read_text().partition("\nllama-cpp-python==")
    version = rest.split()[0]
    assert f"--hash=sha256:{converter.ARCHIVES[version]}" in rest.split("# via")[0]
