"""The recipe: every hyperparameter settled from rows, base and options, before time is spent."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_trainer.backends import Recipe, ReplayPlan
from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import (
    TYPE_BY_NAME,
    Entry,
    GgufFile,
    TensorInfo,
    read_gguf,
    string_entry,
    uint32_entry,
)
from ollama_trainer.pipeline.plan import check_trainable, recipe_for, replay_plan
from ollama_trainer.records import ReplayText, TokenizedExample, TrainingOptions
from tests.quantised import FLOATS, GRIDS

ROWS = (TokenizedExample(ids=(1,) * 50, mask=(1,) * 50),) * 30
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def float32_entry(key: str, value: float) -> Entry:
    length = struct.pack("<Q", len(key))
    return Entry(value, length + key.encode() + struct.pack("<If", 6, value))


def base(
    kinds: dict[str, str] | None = None,
    *,
    architecture: str = "llama",
    hidden: int = 576,
    layers: int = 1,
) -> GgufFile:
    """A header without a file; `kinds` are types of tensors by their names."""
    numbers = {
        "block_count": layers, "embedding_length": hidden, "context_length": 512,
        "feed_forward_length": 512, "attention.head_count": 4,
    }  # fmt: skip
    epsilon = f"{architecture}.attention.layer_norm_rms_epsilon"
    metadata = {
        "general.architecture": string_entry("general.architecture", architecture),
        epsilon: float32_entry(epsilon, 1e-5),
    }
    for name, value in numbers.items():
        metadata[f"{architecture}.{name}"] = uint32_entry(f"{architecture}.{name}", value)
    kinds = {"token_embd": "Q8_0", "blk.0.attn_q": "Q4_0", "blk.0.ffn_up": "Q4_0"} | (kinds or {})
    tensors = tuple(
        TensorInfo(f"{name}.weight", (256, 256), TYPE_BY_NAME[kind], 0)
        for name, kind in kinds.items()
    )
    return GgufFile(Path("tiny.gguf"), metadata, tensors, 32, 0)


@pytest.mark.parametrize(
    ("rows", "batch", "steps"),
    # 20 steps at least, 84 for some dozen rows, five times through 150 rows, 400 at most.
    [(1, 1, 20), (10, 8, 40), (50, 8, 84), (150, 8, 94), (5000, 8, 400)],
)
def test_steps_follow_the_rows(rows: int, batch: int, steps: int) -> None:
    """One row must not take zero steps, nor thousands of rows a day."""
    recipe = recipe_for(base(), TrainingOptions(), rows)
    assert (recipe.batch_size, recipe.steps) == (batch, steps)
    assert 1 <= recipe.warmup_steps < recipe.steps


@pytest.mark.parametrize("rows", range(1, 200, 7))
def test_a_batch_never_exceeds_the_rows(rows: int) -> None:
    """A sampler with fewer rows than a batch gives none at all."""
    for batch in (None, 1, 8, 64):
        recipe = recipe_for(base(), TrainingOptions(batch_size=batch), rows)
        assert 1 <= recipe.batch_size <= rows
        assert 20 <= recipe.steps <= 400


@pytest.mark.parametrize(
    ("hidden", "rate"), [(576, 2e-3), (1023, 2e-3), (1024, 3e-4), (4096, 3e-4)]
)
def test_the_learning_rate_follows_the_size(hidden: int, rate: float) -> None:
    """What teaches a small model in a minute makes a large one diverge."""
    assert recipe_for(base(hidden=hidden), TrainingOptions(), 150).learning_rate == rate


def test_gemma_3_stands_a_lower_rate() -> None:
    """At that of other small models it forgot a third of a nat of everything else."""
    gemma = base(architecture="gemma3")
    assert recipe_for(gemma, TrainingOptions(), 150).learning_rate == 7e-4
    assert recipe_for(gemma, TrainingOptions(learning_rate=2e-3), 150).learning_rate == 2e-3


def test_options_win() -> None:
    """Whoever sets a number wants that number."""
    options = TrainingOptions(
        rank=4, alpha=6, learning_rate=0.5, steps=3, batch_size=2, max_length=77, seed=9
    )
    recipe = recipe_for(base(), options, 150)
    assert (recipe.rank, recipe.alpha, recipe.learning_rate) == (4, 6, 0.5)
    assert (recipe.steps, recipe.batch_size, recipe.max_length) == (3, 2, 77)
    assert (recipe.seed, recipe.warmup_steps) == (9, 1)


@pytest.mark.parametrize(
    ("asked", "trained"),
    [("auto", (2, 3, 4)), ("all", (0, 1, 2, 3, 4)), (1, (4,)), (5, (0, 1, 2, 3, 4))],
)
def test_the_last_layers_are_trained(asked: Any, trained: tuple[int, ...]) -> None:
    """What is not trained is not rounded either, and costs no backward pass."""
    five = base({f"blk.{n}.ffn_up": "Q4_0" for n in range(5)}, layers=5)
    assert recipe_for(five, TrainingOptions(layers=asked), 10).layers == trained


def test_more_layers_than_there_are_are_refused() -> None:
    """Whoever sets a number wants that number."""
    with pytest.raises(BaseModelError, match="2 layers were asked for, and tiny") as no:
        recipe_for(base(), TrainingOptions(layers=2), 10)
    assert "1 at most" in no.value.remedy


def test_a_single_step_is_a_recipe() -> None:
    """The smallest run that can be asked for has a batch and a step."""
    recipe = recipe_for(base(), TrainingOptions(steps=1), 1)
    assert (recipe.steps, recipe.batch_size) == (1, 1)


def test_smollm2_can_be_trained_on() -> None:
    """The base that everyone starts with."""
    recipe = recipe_for(read_gguf(resolve_base("smollm2").gguf), TrainingOptions(), 150)
    assert recipe.target_modules == MODULES
    assert recipe.learning_rate == 2e-3
    assert recipe.layers == tuple(range(15, 30))


@pytest.mark.parametrize("kind", [*GRIDS, *FLOATS])
def test_types_that_can_be_merged_into_are_accepted(kind: str) -> None:
    """Refused here, a base can never be used, however well the merge knows its type."""
    assert check_trainable(base({"blk.0.attn_q": kind})) == MODULES


@pytest.mark.parametrize("kind", ["I8", "I32"])
def test_types_that_cannot_are_refused_by_name(kind: str) -> None:
    """Found only at the merge, the refusal would come after the training."""
    with pytest.raises(BaseModelError, match=rf"blk\.0\.ffn_up\.weight of tiny\.gguf.*{kind}"):
        recipe_for(base({"blk.0.ffn_up": kind}), TrainingOptions(), 10)


def test_types_of_tensors_that_no_lora_touches_do_not_matter() -> None:
    """They are copied byte for byte, whatever they are."""
    assert check_trainable(base({"token_embd": "Q2_K"})) == MODULES


@pytest.mark.parametrize("architecture", ["mamba", "rwkv7", "no-such-thing", ""])
def test_an_unknown_architecture_is_refused_by_name(architecture: str) -> None:
    """A guess at its row order would ruin the model without an error."""
    with pytest.raises(BaseModelError, match=f"{architecture or 'none'}.*tiny") as caught:
        recipe_for(base(architecture=architecture), TrainingOptions(), 10)
    assert "llama" in caught.value.remedy


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_exps", "blk.0.ssm_in", "v.patch"])
def test_a_tensor_that_the_architecture_should_not_have_is_refused(name: str) -> None:
    """Mixtures of experts call themselves llama too; their experts would stay untrained."""
    with pytest.raises(BaseModelError, match=name):
        recipe_for(base({name: "F32"}), TrainingOptions(), 10)


def recipe(batch_size: int, steps: int = 400) -> Recipe:
    return recipe_for(base(), TrainingOptions(batch_size=batch_size, steps=steps), len(ROWS))


def texts(*lengths: int) -> tuple[ReplayText, ...]:
    """Texts of so many tokens, of which the base wrote all but one."""
    return tuple(
        ReplayText(
            ids=tuple(range(length)),
            start=1,
            likeliest=np.zeros((length - 1, 2), np.int32),
            log_probabilities=np.zeros((length - 1, 2), np.float16),
        )
        for length in lengths
    )


def test_every_replayed_text_has_its_turn() -> None:
    """A text that never comes up was written for nothing."""
    written = texts(*range(10, 31))
    plan = replay_plan(written, TrainingOptions(), ROWS, recipe(8))
    assert sorted(len(text.ids) for batch in plan.batches for text in batch) == list(range(10, 31))
    asked = [plan.batch_of(step) for step in range(plan.every * len(plan.batches))]
    assert [batch for batch in asked if batch is not None] == list(plan.batches)
    assert plan.batch_of(plan.every * len(plan.batches)) == plan.batches[0]
    assert all(batch is None for step, batch in enumerate(asked) if step % plan.every)


def test_texts_of_one_length_are_read_together() -> None:
    """What is padded is computed for nothing."""
    plan = replay_plan(texts(10, 90, 11, 91, 12, 92, 13, 93), TrainingOptions(), ROWS, recipe(8))
    lengths = [sorted(len(text.ids) for text in batch) for batch in plan.batches]
    assert sorted(lengths) == [[10, 11], [12, 13], [90, 91], [92, 93]]


def test_the_weight_of_replay_may_be_set() -> None:
    """Whoever sets a number wants that number."""
    plan = replay_plan(texts(10), TrainingOptions(replay=0.25), ROWS, recipe(8))
    assert (plan.weight, plan.is_on) == (0.25, True)
    assert replay_plan(texts(10), TrainingOptions(), ROWS, recipe(8)).weight > 0


def test_replay_off_keeps_the_texts_and_penalises_nothing() -> None:
    """Compensated rounding reads them, too."""
    plan = replay_plan(texts(10, 20), TrainingOptions(replay="off"), ROWS, recipe(8))
    assert not plan.is_on
    assert sum(len(batch) for batch in plan.batches) == 2
    assert [plan.batch_of(step) for step in range(20)] == [None] * 20


def test_replay_is_rarer_where_its_texts_are_long_beside_the_rows() -> None:
    """It must not take longer than the training that it goes along with."""
    every = [
        replay_plan(texts(*([length] * 8)), TrainingOptions(), ROWS, recipe(8)).every
        for length in (2, 80, 160, 4000)
    ]
    assert every == sorted(every)
    assert 1 <= every[0] < every[1] < every[2] <= every[3] < 20
    assert replay_plan(texts(80, 80), TrainingOptions(), ROWS, recipe(1)).every > every[1]


def test_a_short_training_is_replayed_at_every_step() -> None:
    """Twenty steps on one row spoil as much as eighty on a hundred, and take no time."""
    long = texts(*([160] * 8))
    every = [
        replay_plan(long, TrainingOptions(), ROWS, recipe(8, steps)).every
        for steps in (1, 20, 84, 400)
    ]
    assert every[:2] == [1, 1]
    assert every[2] <= 2 < every[3]


def test_the_seed_decides_the_order_of_replay() -> None:
    """A run that is repeated must give the same adapter."""
    written = texts(*range(10, 90))
    plans = [
        replay_plan(written, TrainingOptions(seed=seed), ROWS, recipe(8)) for seed in (1, 1, 2)
    ]
    orders = [[len(batch[0].ids) for batch in plan.batches] for plan in plans]
    assert orders[0] == orders[1] != orders[2]


def test_without_replay_no_step_has_any() -> None:
    """`off` must cost nothing."""
    assert not ReplayPlan().is_on
    assert [ReplayPlan().batch_of(step) for step in range(5)] == [None] * 5
