"""What a person is told of a data set: what is used, what is not and why, and how it looks."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ollama_trainer.backends import METHODS
from ollama_trainer.chat_template import TemplateRefusal
from ollama_trainer.compiler import Compiled
from ollama_trainer.pipeline.plan import batches_for
from ollama_trainer.prompts import PromptFormat
from ollama_trainer.records import (
    DatasetReport,
    DroppedRows,
    Example,
    Sample,
    TokenizedExample,
    TrainingOptions,
)

_SAMPLES = 10
#: Characters of a sample's prompt or answer that are shown, half from each end.
_SHOWN = 2000
#: Shares of dropped rows and of near duplicates that are worth a word.
_MANY = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An example, and the number of the group of its near duplicates."""

    example: Example
    group: int
    #: None: they were not counted, being few enough to fit.
    ids: TokenizedExample | None
    #: Whether it is one of those that stand for all.
    sampled: bool


def report_of(
    compiled: Compiled,
    training: TrainingOptions,
    form: PromptFormat | None,
    seen: Sequence[Seen],
    n_held_out: int,
) -> DatasetReport:
    """The report on a data set.

    Args:
        compiled: the data set.
        training: for the number of steps.
        form: the base's template and tokenizer; None: the base is not to be had.
        seen: the examples that were drawn; none without a base.
        n_held_out: how many of them are kept from training.
    """
    n_examples = len(compiled)
    lengths = [len(one.ids.ids) for one in seen if one.ids is not None]
    drawn = len(lengths) < n_examples
    sampled = [len(one.ids.ids) for one in seen if one.ids is not None and one.sampled]
    tokens = round(statistics.fmean(sampled) * n_examples) if drawn and sampled else sum(lengths)
    n_trained = (len(seen) or n_examples) - n_held_out
    return DatasetReport(
        format=compiled.format,
        rows_read=compiled.rows_read,
        rows_used=compiled.rows_used,
        examples=n_examples,
        dropped={
            reason: DroppedRows(count=tally.count, lines=tuple(tally.lines))
            for reason, tally in compiled.dropped.items()
        },
        method=compiled.choice.method,
        method_reason=compiled.choice.reason,
        trained_with=compiled.choice.trained_with,
        good=compiled.counts.good,
        bad=compiled.counts.bad,
        pairs=compiled.counts.pairs,
        secrets=dict(compiled.secrets),
        near_duplicates=_n_near(compiled, seen),
        held_out=n_held_out,
        tokens=tokens if form is not None else None,
        tokens_estimated=drawn and form is not None,
        longest_tokens=max(lengths, default=None),
        steps=batches_for(training, n_trained)[1],
        warnings=tuple(_warnings(compiled, form, seen, n_held_out)),
        samples=tuple(_samples(compiled, form, training, seen)),
    )


def _warnings(
    compiled: Compiled, form: PromptFormat | None, seen: Sequence[Seen], n_held_out: int
) -> Iterator[str]:
    """Whatever a person should look at."""
    counts, choice = compiled.counts, compiled.choice
    n_used, n_read = compiled.rows_used, compiled.rows_read
    if choice.method not in METHODS:
        does = (
            "a run is refused"
            if choice.asked
            else f"a run trains on the {counts.good} good answers alone ({', '.join(METHODS)})"
        )
        yield f"training with {choice.method} is not possible yet: {does}"
    if seen and len(seen) < len(compiled):
        yield f"a training sees {len(seen)} of the {len(compiled)} examples, drawn by the seed"
    if n_used < (1 - _MANY) * n_read and choice.trained_with == "sft":
        yield f"{n_read - n_used} of {n_read} rows are not used: see dropped"
    if counts.several_answers:
        yield f"{counts.several_answers} inputs have several good answers that differ"
    if counts.bad > counts.good:
        yield f"there are more bad answers ({counts.bad}) than good ones ({counts.good})"
    n_near = _n_near(compiled, seen)
    if n_near > _MANY * len(compiled):
        yield (
            f"{n_near} of {len(compiled)} examples nearly repeat another one: they teach "
            "little, and weigh as much as the others"
        )
    if compiled.secrets:
        yield (
            f"{compiled.secrets.total()} secrets are hidden from the model; they still stand in "
            "the file, and where it came from"
        )
    if compiled.n_after_tools:
        yield (
            f"{compiled.n_after_tools} answers came after calls of tools whose results the file "
            "does not have: the model may learn to answer without calling them"
        )
    yield from _warnings_of_base(form, seen, n_held_out)


def _n_near(compiled: Compiled, seen: Sequence[Seen]) -> int:
    """Examples that repeat another one nearly, without those that were dropped since, if known."""
    if len(seen) < len(compiled):
        return min(compiled.n_near, len(compiled))
    return len(seen) - len({one.group for one in seen})


def _warnings_of_base(
    form: PromptFormat | None, seen: Sequence[Seen], n_held_out: int
) -> Iterator[str]:
    if form is None:
        return
    yield from form.template.notes
    if not n_held_out:
        yield (
            "no row is held out: too few teach the same answer in different words, so the result "
            "is judged on trained rows in other words"
        )
    with_tools = [one.example for one in seen if one.example.tools]
    if with_tools and not _shows_tools(form, with_tools[0]):
        yield (
            f"the base's chat template does not show the model the tools of {len(with_tools)} "
            "examples"
        )


def _shows_tools(form: PromptFormat, example: Example) -> bool:
    names = [tool["function"]["name"] for tool in example.tools]
    prompt = form.prompt_of(example)
    return all(name in prompt for name in names)


def _samples(
    compiled: Compiled,
    form: PromptFormat | None,
    training: TrainingOptions,
    seen: Sequence[Seen],
) -> Iterator[Sample]:
    """Examples from all over the file."""
    if compiled.choice.trained_with == "dpo":
        yield from itertools.islice(_pairs_shown(compiled, form), _SAMPLES)
        return
    shown = seen or [
        Seen(example=example, group=group, ids=None, sampled=False)
        for _, group, example in compiled.examples(_SAMPLES, training.seed)
    ]
    step = max(1, len(shown) / _SAMPLES)
    for place in range(min(_SAMPLES, len(shown))):
        one = shown[int(place * step)]
        prompt, trained = _shown(form, one.example, one.ids)
        n_tokens = len(one.ids.ids) if one.ids is not None else None
        yield Sample(line=one.example.line, prompt=prompt, trained=trained, n_tokens=n_tokens)


def _pairs_shown(compiled: Compiled, form: PromptFormat | None) -> Iterator[Sample]:
    for good, bad in compiled.pairs():
        # Of a large file only some were tried with the template.
        with contextlib.suppress(TemplateRefusal):
            prompt, trained = _shown(form, good)
            _, rejected = _shown(form, bad)
            yield Sample(line=good.line, prompt=prompt, trained=trained, rejected=rejected)


def _shown(
    form: PromptFormat | None, example: Example, ids: TokenizedExample | None = None
) -> tuple[str, str]:
    """Prompt and answer as the model sees them; without a base, role by role."""
    if form is None:
        prompt = "\n".join(f"{said['role']}: {said['content']}" for said in example.context)
        return _cut(f"{prompt}\nassistant: "), _cut(example.completion)
    prompt = form.prompt_of(example)
    ids = ids or form.tokenize(example)
    trained = [token for token, mask in zip(ids.ids, ids.mask, strict=True) if mask]
    return _cut(prompt), _cut(form.tokenizer.text(trained))


def _cut(text: str) -> str:
    half = _SHOWN // 2
    left_out = len(text) - _SHOWN
    if left_out <= 0:
        return text
    return f"{text[:half]} […{left_out} characters…] {text[-half:]}"
