"""The recipe: every hyperparameter settled from rows, base and options, before time is spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import (
    TYPE_BY_NAME,
    GgufFile,
    TensorInfo,
    read_gguf,
    string_entry,
    uint32_entry,
)
from ollama_trainer.pipeline.plan import check_trainable, recipe_for
from ollama_trainer.records import TrainingOptions
from tests.quantised import FLOATS, GRIDS

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base(
    kinds: dict[str, str] | None = None, *, architecture: str = "llama", hidden: int = 576
) -> GgufFile:
    """A header of one block, without a file; `kinds` are types of tensors by their names."""
    metadata = {
        "general.architecture": string_entry("general.architecture", architecture),
        f"{architecture}.block_count": uint32_entry(f"{architecture}.block_count", 1),
        f"{architecture}.embedding_length": uint32_entry(
            f"{architecture}.embedding_length", hidden
        ),
    }
    kinds = {"token_embd": "Q8_0", "blk.0.attn_q": "Q4_0", "blk.0.ffn_up": "Q4_0"} | (kinds or {})
    tensors = tuple(
        TensorInfo(f"{name}.weight", (256, 256), TYPE_BY_NAME[kind], 0)
        for name, kind in kinds.items()
    )
    return GgufFile(Path("tiny.gguf"), metadata, tensors, 32, 0)


@pytest.mark.parametrize(
    ("rows", "batch", "steps"),
    # 20 steps at least, 90 for some dozen rows, five times through 150 rows, 400 at most.
    [(1, 1, 20), (10, 8, 40), (50, 8, 90), (150, 8, 94), (5000, 8, 400)],
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
    ("hidden", "rate"), [(576, 1e-3), (1023, 1e-3), (1024, 2e-4), (4096, 2e-4)]
)
def test_the_learning_rate_follows_the_size(hidden: int, rate: float) -> None:
    """What teaches a small model in a minute makes a large one diverge."""
    assert recipe_for(base(hidden=hidden), TrainingOptions(), 150).learning_rate == rate


def test_options_win() -> None:
    """Whoever sets a number wants that number."""
    options = TrainingOptions(
        rank=4, alpha=6, learning_rate=0.5, steps=3, batch_size=2, max_length=77, seed=9
    )
    recipe = recipe_for(base(), options, 150)
    assert (recipe.rank, recipe.alpha, recipe.learning_rate) == (4, 6, 0.5)
    assert (recipe.steps, recipe.batch_size, recipe.max_length) == (3, 2, 77)
    assert (recipe.seed, recipe.warmup_steps) == (9, 1)


def test_a_single_step_is_a_recipe() -> None:
    """The smallest run that can be asked for has a batch and a step."""
    recipe = recipe_for(base(), TrainingOptions(steps=1), 1)
    assert (recipe.steps, recipe.batch_size) == (1, 1)


def test_smollm2_can_be_trained_on() -> None:
    """The base that everyone starts with."""
    recipe = recipe_for(read_gguf(resolve_base("smollm2").gguf), TrainingOptions(), 150)
    assert recipe.target_modules == MODULES
    assert recipe.learning_rate == 1e-3


@pytest.mark.parametrize("kind", [*GRIDS, *FLOATS])
def test_types_that_can_be_merged_into_are_accepted(kind: str) -> None:
    """Refused here, a base can never be used, however well the merge knows its type."""
    assert check_trainable(base({"blk.0.attn_q": kind})) == MODULES


@pytest.mark.parametrize("kind", ["IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K", "I8"])
def test_types_that_cannot_are_refused_by_name(kind: str) -> None:
    """Found only at the merge, the refusal would come after the training."""
    with pytest.raises(BaseModelError, match=rf"blk\.0\.ffn_up\.weight of tiny\.gguf.*{kind}"):
        recipe_for(base({"blk.0.ffn_up": kind}), TrainingOptions(), 10)


def test_types_of_tensors_that_no_lora_touches_do_not_matter() -> None:
    """They are copied byte for byte, whatever they are."""
    assert check_trainable(base({"token_embd": "Q2_K"})) == MODULES


@pytest.mark.parametrize("architecture", ["mamba", "qwen2", "no-such-thing", ""])
def test_an_unknown_architecture_is_refused_by_name(architecture: str) -> None:
    """A guess at its row order would ruin the model without an error."""
    with pytest.raises(BaseModelError, match=f"{architecture or 'none'}.*tiny") as caught:
        recipe_for(base(architecture=architecture), TrainingOptions(), 10)
    assert "llama" in caught.value.remedy


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_exps", "blk.0.ssm_in", "rope_freqs", "v.patch"])
def test_a_tensor_that_the_architecture_should_not_have_is_refused(name: str) -> None:
    """Mixtures of experts call themselves llama too; their experts would stay untrained."""
    with pytest.raises(BaseModelError, match=name):
        recipe_for(base({name: "F32"}), TrainingOptions(), 10)
