"""The judgement of a finished file: each bound by itself, and what a person is told of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ollama_trainer.display import in_words
from ollama_trainer.errors import NothingLearned
from ollama_trainer.pipeline.verify import BaseLosses, can_be_mended, check_learned, figures_of
from ollama_trainer.records import Fidelity, FidelityOptions, Figures, Losses, Reading

OPTIONS = FidelityOptions(
    min_learning_kept=0.9,
    min_agreement=0.8,
    max_unrelated_over_trained=0.05,
    max_unrelated_over_base=0.1,
)
BASE = BaseLosses(held_out=3.0, unrelated=2.0)
TOP = tuple(range(10))


def judged(
    *,
    trained: float = 1.0,
    served: float = 1.0,
    unrelated_trained: float = 2.0,
    unrelated_served: float = 2.0,
    differing: int = 0,
    base: BaseLosses = BASE,
    options: FidelityOptions = OPTIONS,
) -> Figures:
    """Figures of a good file, with some readings of another kind."""
    other = tuple(-1 for _ in range(differing)) + TOP[differing:]
    return figures_of(
        "same",
        (Reading(loss=trained, top=TOP), Reading(loss=unrelated_trained, top=(1,))),
        (Reading(loss=served, top=other), Reading(loss=unrelated_served, top=(2,))),
        base,
        options,
    )


def test_a_good_file_misses_nothing() -> None:
    """What the figures are, and that the probe text's most likely tokens do not count."""
    figures = judged(served=1.125)
    assert figures == Figures(
        quantization="same",
        learning_kept=0.9375,
        agreement=1.0,
        held_out=Losses(base=3.0, trained=1.0, served=1.125),
        unrelated=Losses(base=2.0, trained=2.0, served=2.0),
    )


@pytest.mark.parametrize(
    ("within", "beyond", "words"),
    [
        ({"served": 1.19}, {"served": 1.21}, "89.5% of what was learned"),
        ({"differing": 2}, {"differing": 3}, "70.0% of the answers' tokens"),
        (
            {"unrelated_served": 2.049},
            {"unrelated_served": 2.051},
            "0.051 nats a token against the trained model",
        ),
        (
            {"unrelated_trained": 2.09, "unrelated_served": 2.099},
            {"unrelated_trained": 2.09, "unrelated_served": 2.101},
            "0.101 nats a token against its base",
        ),
    ],
)
def test_each_bound_is_missed_by_itself(
    within: dict[str, Any], beyond: dict[str, Any], words: str
) -> None:
    """Each shows another way in which a file is not the model that was trained."""
    assert not judged(**within).missed
    (missed,) = judged(**beyond).missed
    assert words in missed


def test_all_bounds_may_be_missed_at_once() -> None:
    """A person should hear of everything that is wrong, not of the first."""
    assert len(judged(served=2.5, differing=9, unrelated_served=4.0).missed) == 4


def test_better_than_trained_is_good() -> None:
    """Rounding may help by chance; a file must not be refused for it."""
    figures = judged(served=0.9, unrelated_served=1.5)
    assert figures.learning_kept == pytest.approx(1.05)
    assert not figures.missed


@pytest.mark.parametrize("trained", [2.96, 3.0, 3.5])
def test_where_nothing_was_to_be_learned_there_is_no_share_of_it(trained: float) -> None:
    """A share of next to nothing is noise: it would fail a run of a model that knows it all."""
    figures = judged(trained=trained, served=trained + 0.04)
    assert figures.learning_kept is None
    assert not figures.missed
    known = judged(trained=2.94, served=2.94)
    assert known.learning_kept == pytest.approx(1.0)


def test_the_users_own_bounds_count() -> None:
    """Whoever sets a bound means it."""
    lax = FidelityOptions(
        min_learning_kept=0,
        min_agreement=0,
        max_unrelated_over_trained=9,
        max_unrelated_over_base=9,
    )
    bad: dict[str, Any] = {"served": 2.9, "differing": 10, "unrelated_served": 4.0}
    assert len(judged(**bad).missed) == 4
    assert not judged(**bad, options=lax).missed


def mendable(**readings: Any) -> bool:
    return can_be_mended(judged(**readings), OPTIONS)


def test_a_good_file_needs_no_mending() -> None:
    """Each rung costs an export and a reading, and a larger file."""
    assert not mendable()


@pytest.mark.parametrize(
    "readings",
    [
        {"served": 2.0},
        {"differing": 5},
        {"unrelated_served": 2.06},
        {"unrelated_trained": 2.09, "unrelated_served": 2.11},
        {"served": 2.0, "unrelated_trained": 2.5, "unrelated_served": 2.5},
        {"unrelated_trained": 2.2, "unrelated_served": 2.3},
    ],
)
def test_what_rounding_did_may_be_mended(readings: dict[str, Any]) -> None:
    """Finer weights bring a file nearer to what was trained."""
    assert mendable(**readings)


@pytest.mark.parametrize("trained", [2.11, 2.5])
def test_what_training_did_may_not(trained: float) -> None:
    """The trained model itself is beyond the bound; no type of weights changes that."""
    figures = judged(unrelated_trained=trained, unrelated_served=trained)
    assert len(figures.missed) == 1
    assert not can_be_mended(figures, OPTIONS)


def test_a_file_that_happens_to_be_better_on_unrelated_text_may_be_mended() -> None:
    """The trained model is just beyond the bound, the file just within: what it misses is else."""
    readings: dict[str, Any] = {"unrelated_trained": 2.101, "unrelated_served": 2.099}
    assert not mendable(**readings)
    assert len(judged(**readings, differing=5).missed) == 1
    assert mendable(**readings, differing=5)


@pytest.mark.parametrize("served", [3.0, 3.5, 100.0])
def test_a_file_that_is_no_better_than_its_base_is_refused(served: float) -> None:
    """Published, it would pass for a model that has learned."""
    with pytest.raises(NothingLearned, match="learned nothing") as caught:
        check_learned(judged(served=served))
    assert caught.value.code == "nothing_learned"
    assert "learning rate" in caught.value.remedy


def test_a_file_that_has_learned_anything_is_not_refused() -> None:
    """How much is enough is for the bounds to say."""
    check_learned(judged(served=2.99))
    check_learned(judged())


@pytest.mark.parametrize("served", [0.0, 0.01, 0.2])
def test_a_base_that_knew_the_answers_is_not_refused(served: float) -> None:
    """There was nothing to learn, so nothing was missed."""
    check_learned(judged(trained=0.01, served=served, base=replace(BASE, held_out=0.01)))


def fidelity(
    figures: Figures, *earlier: Figures, n_rows: int = 3, n_rephrased: int = 13
) -> Fidelity:
    return Fidelity(figures=figures, earlier=earlier, n_rows=n_rows, n_rephrased=n_rephrased)


def test_words_for_a_good_file() -> None:
    """A person reads what it was judged on, what was found, and no warning."""
    told = fidelity(judged(served=1.1, unrelated_served=2.01))
    assert told.reached
    assert in_words(told) == [
        "On 3 rows kept from training and 13 trained rows asked in other words, the finished"
        " model has 95.0% of what was learned; it says the same as the trained model at 100.0% of"
        " the answers' tokens.",
        "On unrelated text its loss is 2.010; its base's is 2.000, the trained model's 2.000.",
    ]


def test_words_for_a_file_that_needed_a_larger_type() -> None:
    """Why the file is larger than its base must be told."""
    first = judged(served=1.5, differing=3)
    second = judged(differing=4).model_copy(update={"quantization": "q6_k"})
    words = in_words(fidelity(judged(), first, second))
    assert len(words) == 4
    assert words[2] == (
        "With the weights as same, only 75.0% of what was learned is there and only 70.0% of the"
        " answers' tokens are the trained model's: a larger type was taken."
    )
    assert words[3].startswith("With the weights as q6_k, only 60.0% of the answers' tokens")


def test_words_for_a_file_that_misses_its_bounds() -> None:
    """It is published all the same, so the warning is all that stands between."""
    told = fidelity(judged(unrelated_trained=2.5, unrelated_served=2.5))
    assert not told.reached
    assert in_words(told)[-1] == (
        "Mind: on unrelated text it loses 0.500 nats a token against its base."
    )


@pytest.mark.parametrize(
    ("counts", "begin"),
    [
        ((0, 4), "On 4 trained rows asked in other words, "),
        ((16, 0), "On 16 rows kept from training, "),
    ],
)
def test_words_for_rows_of_one_kind(counts: tuple[int, int], begin: str) -> None:
    """Small data sets keep no row, large ones rephrase none."""
    n_rows, n_rephrased = counts
    told = fidelity(judged(trained=3.0, served=3.0), n_rows=n_rows, n_rephrased=n_rephrased)
    assert in_words(told)[0].startswith(begin + "there was next to nothing to learn; it says")
