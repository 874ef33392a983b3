"""What a model says, in llama.cpp and in torch: the base's own texts, readings, statistics.

All on tiny models. Unsloth is not part of it: what is shown here must hold for plain transformers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_trainer import fidelity, replay
from ollama_trainer.backends._forward import read_model
from ollama_trainer.backends._inputs import gather_inputs
from ollama_trainer.backends._replay import divergence_from_base
from ollama_trainer.bases import resolve_base
from ollama_trainer.bases.dequantized import dequantized_directory
from ollama_trainer.errors import BaseModelError, GgufError, NotANumber, Unloadable
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.gguf.statistics import InputStatistics
from ollama_trainer.llama import Sequences, logits_at, logits_of, open_sequences
from ollama_trainer.pipeline.dataset import PreparedData, probe_text
from ollama_trainer.pipeline.verify import base_losses
from ollama_trainer.prompts import open_prompt_format
from ollama_trainer.records import BaseGguf, DatasetReport, Example, ReplayText, TokenizedExample
from ollama_trainer.replay import ReplaySettings, replay_texts
from tests.moments import dense
from tests.tiny_models import HIDDEN, INTERMEDIATE, LAYERS, TOKENS, tiny_model, write_gguf

#: Fewer texts than there would be; all of the vocabulary counts one by one, but for two tokens.
SETTINGS = ReplaySettings(n_texts=20, n_tokens=24, n_likeliest=len(TOKENS) - 2)
END = TOKENS.index("<|im_end|>")
#: Of no interest here.
REPORT: dict[str, object] = {
    "format": "from_feedback", "rows_read": 3, "rows_used": 3, "examples": 3, "dropped": {},
    "method": "sft", "method_reason": "", "trained_with": "sft", "good": 3, "bad": 0, "pairs": 0,
    "secrets": {}, "near_duplicates": 0, "held_out": 0, "tokens": 9, "steps": 1, "warnings": (),
    "samples": (),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a model this small two mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseGguf:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    return resolve_base(f"gguf:{write_gguf(tiny_model(), path, 'F16')}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def texts(base: BaseGguf, cache: Path) -> tuple[ReplayText, ...]:
    return replay_texts(base, cache, SETTINGS)


@pytest.fixture
def model(base: BaseGguf, cache: Path) -> Any:
    """What the base is in torch."""
    import torch
    from transformers import AutoModelForCausalLM

    directory = dequantized_directory(base, cache, torch.float32)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@contextlib.contextmanager
def away(base: BaseGguf) -> Iterator[None]:
    """The base's file is elsewhere for a while."""
    hidden = base.gguf.with_suffix(".away")
    base.gguf.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(base.gguf)


def examples(base: BaseGguf, count: int = 20) -> list[TokenizedExample]:
    """Rows of different lengths."""
    with open_prompt_format(read_gguf(base.gguf)) as form:
        return [
            form.tokenize(
                Example.of(prompt="Who? " * (n % 7 + 1), completion="Oda is it. " * (n % 4), line=n)
            )
            for n in range(1, count + 1)
        ]


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def ids_of(texts: Sequence[ReplayText]) -> list[tuple[int, ...]]:
    return [text.ids for text in texts]


def test_texts_are_whole(texts: tuple[ReplayText, ...], base: BaseGguf) -> None:
    """Every backend relies on these shapes."""
    assert 10 <= len(texts) <= SETTINGS.n_texts
    openings = set()
    for text in texts:
        written = len(text.ids) - text.start
        assert text.start >= 1
        assert 8 <= written <= SETTINGS.n_tokens
        assert text.likeliest.shape == text.log_probabilities.shape
        assert text.likeliest.shape == (written, SETTINGS.n_likeliest)
        assert text.likeliest.dtype == np.int32
        assert text.log_probabilities.dtype == np.float16
        assert all(len(set(row.tolist())) == len(row) for row in text.likeliest)
        assert (np.exp(text.log_probabilities.astype(float)).sum(1) < 1.001).all()
        # The end of a turn ends a text; the model goes no further, so neither does training.
        assert END not in text.ids[text.start : -1]
        openings.add(text.ids[: text.start])
    assert len(openings) == len(texts)
    with open_prompt_format(read_gguf(base.gguf)) as form:
        prompts = [text for text in openings if form.end_of_turn in text]
    assert 0 < len(prompts) < len(openings), "neither all answers nor all continuations"


def test_a_text_may_end_early(base: BaseGguf, tmp_path: Path) -> None:
    """A model that ends its turn is held to that, too: the token belongs to what it said."""
    long = dataclasses.replace(SETTINGS, n_texts=16, n_tokens=200, temperature=1.5)
    ends = [text for text in replay_texts(base, tmp_path, long) if text.ids[-1] == END]
    assert ends
    assert any(len(text.ids) - text.start < long.n_tokens for text in ends)


def test_what_was_said_is_what_llama_cpp_says(
    texts: tuple[ReplayText, ...], base: BaseGguf
) -> None:
    """Noted while several texts were written at once, read again one at a time."""
    with open_sequences(base.gguf, n_sequences=1, n_tokens=512) as sequences:
        for text in texts:
            places = range(text.start, len(text.ids))
            logits = logits_at(sequences, text.ids, [place - 1 for place in places])
            wanted = np.take_along_axis(log_softmax(logits), text.likeliest.astype(int), 1)
            np.testing.assert_allclose(text.log_probabilities, wanted, atol=0.03)


def test_texts_are_kept_for_the_next_run(
    texts: tuple[ReplayText, ...], base: BaseGguf, cache: Path
) -> None:
    """Half a minute of every run otherwise; the base is not even opened."""
    with away(base):
        again = replay_texts(base, cache, SETTINGS)
    assert ids_of(again) == ids_of(texts)
    for one, other in zip(again, texts, strict=True):
        assert one.start == other.start
        np.testing.assert_array_equal(one.likeliest, other.likeliest)
        np.testing.assert_array_equal(one.log_probabilities, other.log_probabilities)


@pytest.mark.parametrize("change", [{"seed": 2}, {"n_tokens": 9}, {"n_likeliest": 7}])
def test_other_settings_are_other_texts(
    texts: tuple[ReplayText, ...], base: BaseGguf, cache: Path, change: dict[str, int]
) -> None:
    """Texts that were written otherwise must not be taken for these."""
    other = dataclasses.replace(SETTINGS, **change)
    with away(base), pytest.raises(GgufError):
        replay_texts(base, cache, other)
    written = replay_texts(base, cache, other)
    assert written[0].likeliest.shape[1] == other.n_likeliest
    if "seed" in change:
        assert ids_of(written) != ids_of(texts)


def test_another_base_has_its_own_texts(
    texts: tuple[ReplayText, ...], cache: Path, tmp_path: Path
) -> None:
    """The digest decides, not the name."""
    path = write_gguf(tiny_model(seed=2), tmp_path / "base.gguf", "F16")
    assert ids_of(replay_texts(resolve_base(f"gguf:{path}"), cache, SETTINGS)) != ids_of(texts)


def test_the_seed_decides(texts: tuple[ReplayText, ...], base: BaseGguf, tmp_path: Path) -> None:
    """A run that is repeated on another day, without its cache, must give the same adapter."""
    assert ids_of(replay_texts(base, tmp_path, SETTINGS)) == ids_of(texts)
    assert not list(tmp_path.glob("*.partial"))


def test_texts_with_one_opening_are_different_texts(
    base: BaseGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is drawn with random numbers of its own, whoever it is written together with."""
    monkeypatch.setattr(replay, "_OPENINGS", ("The",))
    monkeypatch.setattr(replay, "_PROMPTS", ("Why?",))
    written = ids_of(replay_texts(base, tmp_path, SETTINGS))
    assert len(written) > 10
    assert len(set(written)) == len(written)


def test_progress_rises_to_one_and_a_budget_ends_it(base: BaseGguf, tmp_path: Path) -> None:
    """On a slow machine with a large base, fewer texts are better than half an hour."""
    seen: list[float] = []
    replay_texts(base, tmp_path / "whole", SETTINGS, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    few = replay_texts(base, tmp_path / "few", SETTINGS, budget_s=0)
    assert 0 < len(few) <= 16


def test_a_base_that_writes_nothing_is_refused(
    base: BaseGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty list of texts would divide by zero within the training."""
    monkeypatch.setattr(Sequences, "ends_generation", lambda *_: True)
    with pytest.raises(BaseModelError, match="writes nothing"):
        replay_texts(base, tmp_path, SETTINGS)
    assert not list(tmp_path.glob("*"))


def test_texts_read_together_are_read_alike(base: BaseGguf) -> None:
    """Sixteen sequences share one cache: each must see itself alone."""
    asked = [(example.ids, range(len(example.ids))) for example in examples(base)]
    with open_sequences(base.gguf, n_sequences=8, n_tokens=600) as sequences:
        together = list(logits_of(sequences, asked))
    with open_sequences(base.gguf, n_sequences=1, n_tokens=600) as sequences:
        for (ids, positions), logits in zip(asked, together, strict=True):
            alone = logits_at(sequences, ids, positions)
            assert logits.shape == (len(ids), len(TOKENS))
            np.testing.assert_allclose(logits, alone, atol=0.05)


def test_what_texts_begin_with_is_computed_once(base: BaseGguf) -> None:
    """A template puts the same tokens before every question; that must change no answer."""
    rows = [example.ids for example in examples(base)]
    asked = [(ids, range(len(ids) - 3, len(ids))) for ids in rows]
    with open_sequences(base.gguf, n_sequences=8, n_tokens=600) as sequences:
        assert 4 < sequences.begin(rows[:8], 1000) < min(map(len, rows))
        assert sequences.begin(rows[:8], 2) == 2
        assert sequences.begin(rows[:1], 2) == 0
        assert sequences.begin([(5, 6), (7, 6)], 2) == 0
        together = list(logits_of(sequences, asked))
    with open_sequences(base.gguf, n_sequences=1, n_tokens=600) as sequences:
        for (ids, positions), logits in zip(asked, together, strict=True):
            np.testing.assert_allclose(logits, logits_at(sequences, ids, positions), atol=0.05)


def test_the_bases_loss_on_the_probe_text_is_kept(base: BaseGguf, tmp_path: Path) -> None:
    """Read once a base; a probe text that max_length cut is another one."""
    rows = tuple(examples(base, 3))
    with open_prompt_format(read_gguf(base.gguf)) as form:
        whole, cut = (probe_text(form.tokenizer, length)[:2] for length in (40, 10))
    data = PreparedData(
        examples=rows, held_out=rows, n_kept=0, probe=whole, question="", stop="", prompts=(),
        candidates=(), report=DatasetReport.model_validate(REPORT),
    )  # fmt: skip
    first = base_losses(base, None, data, tmp_path)
    assert first.unrelated == fidelity.answer_loss(base.gguf, whole)
    assert first.held_out == fidelity.answer_loss(base.gguf, rows)
    other = base_losses(base, None, dataclasses.replace(data, probe=cut), tmp_path)
    assert other.unrelated == fidelity.answer_loss(base.gguf, cut) != first.unrelated
    (kept,) = (
        path for path in tmp_path.iterdir() if json.loads(path.read_text()) == first.unrelated
    )
    kept.write_text("1.5")
    assert base_losses(base, None, data, tmp_path).unrelated == 1.5


def test_read_is_the_mean_over_single_texts(base: BaseGguf) -> None:
    """The loss that runs are judged by."""
    rows = examples(base)
    reading = fidelity.read(base.gguf, rows)
    losses: list[float] = []
    top: list[int] = []
    with open_sequences(base.gguf, n_sequences=1, n_tokens=600) as sequences:
        for row in rows:
            logits = log_softmax(logits_at(sequences, row.ids, range(len(row.ids))))
            for place in range(1, len(row.ids)):
                if row.mask[place]:
                    losses.append(-logits[place - 1, row.ids[place]])
                    top.append(int(logits[place - 1].argmax()))
    assert reading.loss == pytest.approx(np.mean(losses), abs=1e-3)
    assert len(reading.top) == len(top)
    assert np.mean(np.array(reading.top) == np.array(top)) > 0.98


def test_answers_together_are_answers_alone(base: BaseGguf) -> None:
    """Greedy answers to prompts of different lengths, more of them than are written together."""
    prompts = [row.ids[: row.mask.index(1)] for row in examples(base)]
    written = fidelity.answers(base.gguf, prompts, 10)
    assert len(written) == len(prompts) == 20
    alike = 0
    with open_sequences(base.gguf, n_sequences=1, n_tokens=600) as sequences:
        for prompt, answer in zip(prompts, written, strict=True):
            ids = list(prompt)
            while len(ids) < len(prompt) + 10:
                token = int(logits_at(sequences, ids, [len(ids) - 1])[0].argmax())
                if sequences.ends_generation(token):
                    break
                ids.append(token)
            alike += ids[len(prompt) :] == answer
    # Sums in another order may turn two tokens of one probability round.
    assert alike >= 18


def test_an_answer_ends_with_its_turn_and_without_it(
    base: BaseGguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that ends an answer is no part of it; the other answers go on."""
    prompts = [row.ids[: row.mask.index(1)] for row in examples(base, 3)]
    free = fidelity.answers(base.gguf, prompts, 12)
    stop = free[0][3]
    monkeypatch.setattr(Sequences, "ends_generation", lambda _self, token: token == stop)
    for answer, whole in zip(fidelity.answers(base.gguf, prompts, 12), free, strict=True):
        assert answer == (whole[: whole.index(stop)] if stop in whole else whole)


@pytest.mark.parametrize("kind", ["garbage", "empty", "cut", "missing"])
def test_a_file_that_llama_cpp_cannot_load_is_told(
    base: BaseGguf, tmp_path: Path, kind: str
) -> None:
    """A finished model that nobody can load must never be published."""
    path = tmp_path / "model.gguf"
    if kind == "garbage":
        path.write_bytes(b"GGUF" + bytes(range(256)) * 50)
    elif kind != "missing":
        data = base.gguf.read_bytes()
        path.write_bytes(data[: len(data) // 2] if kind == "cut" else b"")
    with pytest.raises(Unloadable, match=r"model\.gguf") as caught:
        fidelity.read(path, examples(base, 2))
    assert caught.value.code == "unloadable"
    assert caught.value.remedy


def test_a_model_that_computes_no_numbers_is_told(base: BaseGguf, tmp_path: Path) -> None:
    """It would answer with one token for ever, or with whatever comes first."""
    info = read_gguf(base.gguf).by_name["output_norm.weight"]
    path = Path(shutil.copy(base.gguf, tmp_path / "model.gguf"))
    with path.open("r+b") as handle:
        handle.seek(read_gguf(base.gguf).data_start + info.offset)
        handle.write(np.full(info.n_rows * info.row_length, np.nan, np.float32).tobytes())
    with pytest.raises(NotANumber, match=r"model\.gguf"):
        fidelity.read(path, examples(base, 2))
    spoilt = dataclasses.replace(base, gguf=path, digest="f" * 64)
    with pytest.raises(NotANumber):
        replay_texts(spoilt, tmp_path, SETTINGS)


def test_torch_reads_what_llama_cpp_reads(base: BaseGguf, model: Any) -> None:
    """Learning kept is measured between the two: a shift of one token would fail every run."""
    with open_prompt_format(read_gguf(base.gguf)) as form:
        probe = probe_text(form.tokenizer, 300)
    for texts in (examples(base), probe[:6]):
        ours, theirs = read_model(model, texts), fidelity.read(base.gguf, texts)
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-2)
        assert len(ours.top) == len(theirs.top)
        assert np.mean(np.array(ours.top) == np.array(theirs.top)) > 0.97


def test_reading_keeps_the_mode(base: BaseGguf, model: Any) -> None:
    """The held-out rows are read in the middle of a training, too."""
    for training in (True, False):
        model.train(training)
        read_model(model, examples(base, 2))
        assert model.training is training


def perturb(model: Any, size: float) -> None:
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=size)


def test_the_base_does_not_diverge_from_itself(texts: tuple[ReplayText, ...], model: Any) -> None:
    """Otherwise replay would pull on a model that is the base already."""
    for batch in replay.in_batches(texts, 4, 1):
        assert abs(float(divergence_from_base(model, batch).detach())) < 2e-3


def test_the_divergence_is_that_of_the_whole_distributions(
    texts: tuple[ReplayText, ...], base: BaseGguf, model: Any
) -> None:
    """Two tokens in one are nearly all of the vocabulary one by one."""
    import torch

    perturb(model, 0.01)
    found = float(divergence_from_base(model, texts[:5]).detach())
    exact = []
    with open_sequences(base.gguf, n_sequences=1, n_tokens=512) as sequences, torch.no_grad():
        for text in texts[:5]:
            places = [place - 1 for place in range(text.start, len(text.ids))]
            p = log_softmax(logits_at(sequences, text.ids, places))
            q = log_softmax(model(torch.tensor([text.ids])).logits[0, places].numpy())
            exact += (np.exp(p) * (p - q)).sum(1).tolist()
    assert found > 0.01
    assert found == pytest.approx(np.mean(exact), rel=0.1)


def test_fewer_tokens_give_a_lower_bound(
    texts: tuple[ReplayText, ...], base: BaseGguf, model: Any, tmp_path: Path
) -> None:
    """What is kept of each place is little; the penalty must still see a change, and no more."""
    few = tuple(
        dataclasses.replace(
            text,
            likeliest=np.take_along_axis(text.likeliest, best, 1),
            log_probabilities=np.take_along_axis(text.log_probabilities, best, 1),
        )
        for text in texts
        for best in [np.argsort(-text.log_probabilities.astype(float), axis=1)[:, :16]]
    )
    perturb(model, 0.02)
    whole = float(divergence_from_base(model, texts[:6]).detach())
    bound = float(divergence_from_base(model, few[:6]).detach())
    assert 0.2 * whole < bound < 1.01 * whole


def test_its_gradient_brings_a_model_back(texts: tuple[ReplayText, ...], model: Any) -> None:
    """The penalty must pull towards the base: a wrong sign would push away from it."""
    import torch

    perturb(model, 0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    for _ in range(6):
        divergence: Any = divergence_from_base(model, texts[:8])
        seen.append(float(divergence.detach()))
        optimizer.zero_grad()
        divergence.backward()
        optimizer.step()
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 0.8 * seen[0]


def with_adapter(model: Any) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=modules))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return tuned


@pytest.mark.parametrize("budget", [None, 1])
def test_the_moments_are_those_of_the_layers_inputs(
    texts: tuple[ReplayText, ...],
    base: BaseGguf,
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: int | None,
) -> None:
    """Padding, a wrong layer or a wrong weight would compensate for inputs that never come."""
    import torch

    if budget is not None:
        # So small that the texts are read anew for each matrix.
        monkeypatch.setattr("ollama_trainer.backends._inputs._BUDGET", budget)
    tuned = with_adapter(model)
    rows = [row.ids for row in examples(base)]
    replayed = [text.ids for text in texts]
    gather_inputs(tuned, {"rows": rows, "replay": replayed}, tmp_path / "out")
    found = InputStatistics(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("part-*"))) == (4 * LAYERS if budget else 1)

    sums: dict[str, Any] = {}
    weight = 0.0

    def hook(name: str) -> Any:
        def note(_module: Any, arguments: Any) -> None:
            x = arguments[0][0].double()
            sums[name] = sums.get(name, 0) + weight * (x.T @ x)

        return note

    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in tuned.named_modules()
        if name.endswith("_proj")
    }
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    with torch.no_grad():
        for share, some in ((3.0, rows), (1.0, replayed)):
            weight = share / sum(map(len, some))
            for ids in some:
                tuned(torch.tensor([ids]))
    for handle in handles:
        handle.remove()

    assert found.inputs.keys() == layers.keys()
    assert len(layers) == 7 * LAYERS
    for name in layers:
        moment = torch.from_numpy(dense(found.moment(found.inputs[name]))).double()
        width = INTERMEDIATE if name.endswith("down_proj") else HIDDEN
        assert moment.shape == (width, width)
        roots = sums[name].diagonal().sqrt()
        difference = (moment - sums[name]) / roots[:, None] / roots
        assert difference.abs().max() < 3e-3


def test_layers_that_share_an_input_share_its_moments(
    base: BaseGguf, model: Any, tmp_path: Path
) -> None:
    """Three times the memory and the time otherwise, and a layer too many is a wrong one."""
    tuned = with_adapter(model)
    gather_inputs(tuned, {"rows": [row.ids for row in examples(base, 4)]}, tmp_path / "out")
    inputs = InputStatistics(tmp_path / "out").inputs
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        attention = {inputs[f"{prefix}self_attn.{name}_proj"] for name in "qkv"}
        assert attention == {f"{prefix}self_attn.q_proj"}
        assert {inputs[f"{prefix}mlp.{name}_proj"] for name in ("gate", "up")} == {
            f"{prefix}mlp.gate_proj"
        }
    assert len(set(inputs.values())) == 4 * LAYERS
    assert len(inputs) == 7 * LAYERS


def test_statistics_without_any_text_of_a_kind(base: BaseGguf, model: Any, tmp_path: Path) -> None:
    """Without replay there are rows only."""
    tuned = with_adapter(model)
    rows = [row.ids for row in examples(base, 4)]
    gather_inputs(tuned, {"rows": rows, "replay": []}, tmp_path / "out")
    assert len(InputStatistics(tmp_path / "out").inputs) == 7 * LAYERS
    assert not list(tmp_path.glob("*.partial"))
