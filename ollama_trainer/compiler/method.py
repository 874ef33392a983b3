"""How examples are trained on, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ollama_trainer.compiler.index import Counts
from ollama_trainer.errors import DatasetError
from ollama_trainer.records import Method

#: Pairs are trained on where they are so many, or where so large a share of the inputs that have a
#: good answer has a bad one, too: the good answers without a counterpart are lost then.
_MANY_PAIRS = 100
_PAIRED_SHARE = 0.5
#: Good and bad answers that are needed, each, to train on them unpaired.
_UNPAIRED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A method, and the sentence that says why."""

    method: Method
    reason: str
    #: Whether it was asked for by name.
    asked: bool
    #: What is really trained with, where the chosen method is not to be had.
    trained_with: Method


def choose(counts: Counts, asked: str, to_be_had: Sequence[Method]) -> Choice:
    """The method for what there is.

    Args:
        asked: a method, or `auto`.
        to_be_had: what the backend can do.

    Raises:
        DatasetError: there is nothing that the method could train on, or the method that was asked
            for is not to be had.
    """
    method, reason = _wanted(counts, asked)
    _check(counts, method, asked)
    if method in to_be_had:
        return Choice(method=method, reason=reason, asked=asked != "auto", trained_with=method)
    if asked != "auto":
        raise DatasetError(
            f"The method {method} was asked for, which the backend cannot train with yet",
            f"Set method to {' or '.join(to_be_had)}.",
        )
    return Choice(method=method, reason=reason, asked=False, trained_with="sft")


def _wanted(counts: Counts, asked: str) -> tuple[Method, str]:
    if asked in ("sft", "dpo", "kto"):
        return asked, "asked for"  # type: ignore[return-value]
    said = f"{counts.good} good and {counts.bad} bad answers"
    if not counts.bad:
        return "sft", f"{said}: the good ones are learned"
    paired = (
        f"{counts.paired_inputs} of {counts.good_inputs} inputs with a good answer have a bad one"
    )
    if counts.pairs and (
        counts.pairs >= _MANY_PAIRS or counts.paired_inputs >= _PAIRED_SHARE * counts.good_inputs
    ):
        return "dpo", f"{said}; {paired}, which makes {counts.pairs} pairs"
    if min(counts.good, counts.bad) >= _UNPAIRED:
        return "kto", f"{said}; {paired}: too few for pairs, enough of both kinds to weigh them"
    return "sft", f"{said}; too few bad ones to learn from them, so the good ones alone are learned"


def _check(counts: Counts, method: Method, asked: str) -> None:
    missing = {
        # That there is no good answer is told with the reasons of every row.
        "sft": "",
        "dpo": "" if counts.pairs else "a good and a bad answer to the same input",
        "kto": " and ".join(
            what
            for what, n in (("a good answer", counts.good), ("a bad answer", counts.bad))
            if not n
        ),
    }[method]
    if missing and asked != "auto":
        raise DatasetError(
            f"The method {method} needs {missing}, and the data set has none",
            "Set method to auto, or collect more feedback.",
        )
