"""Snapshot of the data set -> tokenised examples, and what a person is told of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ollama_trainer.backends import METHODS
from ollama_trainer.bases import resolve_base
from ollama_trainer.chat_template import TemplateRefusal
from ollama_trainer.compiler import Compiled, compile_dataset, is_plain, nothing_left
from ollama_trainer.errors import DatasetError, TrainerError
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.gguf.tensors import whole
from ollama_trainer.ollama_prompts import open_format
from ollama_trainer.pipeline.golden import Candidate, candidates
from ollama_trainer.pipeline.held_out import split
from ollama_trainer.pipeline.plan import most_examples
from ollama_trainer.pipeline.report import Seen, report_of
from ollama_trainer.pipeline.survey import only_trainable
from ollama_trainer.prompts import PromptFormat, Tokenizer
from ollama_trainer.records import (
    DatasetOptions,
    DatasetReport,
    Example,
    ExpectedPrompt,
    OllamaModel,
    TokenizedExample,
    TrainingOptions,
)

#: Examples whose tokens are counted where nothing is trained; more are estimated from them.
_ENOUGH = 512
#: For trying out a model that was only ever called by tools.
_ANY_QUESTION = "Hello"
#: What tokens outside of the texts may take beyond what the template writes.
_MARGIN_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """What is trained on."""

    examples: tuple[TokenizedExample, ...]
    #: What the run is judged on: the rows that were kept from training, then rephrased ones.
    held_out: tuple[TokenizedExample, ...]
    n_kept: int
    #: The text that shows whether anything else was spoilt.
    probe: tuple[TokenizedExample, ...]
    #: A question of the data set, for trying out the finished model.
    question: str
    #: Text of the token that ends an answer.
    stop: str
    #: What the tuned model must be asked with.
    prompts: tuple[ExpectedPrompt, ...]
    #: Rows that it may be tried with when it is served.
    candidates: tuple[Candidate, ...]
    report: DatasetReport


def prepare(
    path: Path,
    base: GgufFile,
    training: TrainingOptions,
    options: DatasetOptions | None = None,
    scratch: Path | None = None,
    *,
    model: OllamaModel | None = None,
    ollama_host: str = "",
) -> PreparedData:
    """Reads and tokenises a data set, and sets apart what the run is judged on.

    Args:
        path: the snapshot.
        base: whose template and tokenizer are used.
        training: examples of more than its max_length tokens are dropped, never cut; its seed is
            that of the choice of held-out rows.
        options: what is made of the rows.
        scratch: directory for temporary files; None means the system's.
        model: what the base has in Ollama, if it is from there.
        ollama_host: where that Ollama is.

    Raises:
        DatasetError: nothing in it can be used, or it must not be.
        DiskFull: there is no room for temporary files.
        BaseModelError: the base has no usable chat template.
        OllamaUnreachable: the base's prompts are made by an Ollama that does not answer.
    """
    options = options or DatasetOptions()
    with (
        compile_dataset(path, options, METHODS, scratch) as compiled,
        open_format(base, model, ollama_host) as form,
    ):
        seen = tokenize(compiled, form, training)
        parts = split([one.example for one in seen], training.seed, [one.group for one in seen])
        ids = [one.ids for one in seen if one.ids is not None]
        kept = tuple(ids[index] for index in parts.kept)
        limit = training.max_length
        rephrased = _tokenized(parts.rephrased, form, limit)
        held_out = kept + rephrased
        if not held_out:
            raise DatasetError(
                "No row can be asked in other words within max_length, so nothing could be judged",
                f"Set a max_length above {limit}.",
            )
        return PreparedData(
            examples=tuple(ids[index] for index in parts.train),
            held_out=held_out,
            n_kept=len(kept),
            probe=probe_text(form.tokenizer, limit),
            question=seen[0].example.question or _ANY_QUESTION,
            stop=form.tokenizer.text([form.end_of_turn]),
            prompts=form.expected(),
            candidates=candidates(seen[index] for index in parts.train),
            report=report_of(compiled, training, form, seen, len(kept)),
        )


def inspect(
    path: Path,
    base: str,
    training: TrainingOptions,
    options: DatasetOptions,
    cache: Path,
    scratch: Path | None = None,
    *,
    ollama_host: str = "",
    name_prefix: str = "",
) -> DatasetReport:
    """What a run would make of a data set, without the run.

    Args:
        path: the file.
        base: the base's name, empty for the only one in Ollama; where it is not to be had, tokens
            and templates are left out, and the report says so.
        training: as of `prepare`.
        options: what is made of the rows.
        cache: directory for what is made of a base.
        scratch: directory for temporary files; None means the system's.
        ollama_host, name_prefix: as of `survey.only_trainable`.

    Raises:
        DatasetError: nothing in it can be used, or it must not be.
        DiskFull: there is no room for temporary files.
    """
    with (
        compile_dataset(path, options, scratch=scratch) as compiled,
        contextlib.ExitStack() as stack,
    ):
        try:
            name = base or only_trainable(ollama_host, name_prefix).name
            found = resolve_base(name, cache, ollama_host)
            gguf = read_gguf(found.gguf)
            form = stack.enter_context(open_format(gguf, found.ollama, ollama_host))
        except (TrainerError, ImportError) as error:
            report = report_of(compiled, training, None, (), 0)
            missing = f"tokens are not counted, and samples are shown without a template: {error}"
            return report.model_copy(update={"warnings": (missing, *report.warnings)})
        training = within_context(training, gguf)
        seen = tokenize(compiled, form, training, _ENOUGH)
        learned = [one for one in seen if one.example.good]
        parts = split(
            [one.example for one in learned], training.seed, [one.group for one in learned]
        )
        return report_of(compiled, training, form, seen, len(parts.kept))


def within_context(training: TrainingOptions, base: GgufFile) -> TrainingOptions:
    """The same options with a max_length that the base can read."""
    longest = whole(base, "context_length", training.max_length)
    return training.model_copy(update={"max_length": min(training.max_length, longest)})


def tokenize(
    compiled: Compiled, form: PromptFormat, training: TrainingOptions, enough: int | None = None
) -> list[Seen]:
    """The examples that a training may see, with their tokens; what does not fit is dropped.

    Args:
        enough: so many are counted, the others only where they might not fit; None: all.

    Raises:
        DatasetError: none fits.
    """
    limit = training.max_length
    drawn = compiled.examples(most_examples(training), training.seed)
    n_counted = min(len(drawn), enough or len(drawn))
    # By chance: rows often come in an order that repeats.
    chance = random.Random(training.seed)  # noqa: S311 - a choice, no secret
    counted = set(chance.sample(range(len(drawn)), n_counted))
    # No token is shorter than a byte.
    surely = limit - len((form.prompt("") + form.head).encode()) - _MARGIN_BYTES
    seen: list[Seen] = []
    for place, (number, group, example) in enumerate(drawn):
        if place not in counted and is_plain(example) and _n_bytes(example) <= surely:
            seen.append(Seen(example=example, group=group, ids=None, sampled=False))
            continue
        try:
            ids = form.tokenize(example)
        except TemplateRefusal as error:
            compiled.drop(error.reason, number)
            continue
        if len(ids.ids) > limit:
            compiled.drop(f"longer than {limit} tokens", number)
            continue
        seen.append(Seen(example=example, group=group, ids=ids, sampled=place in counted))
    compiled.drop_unpaired()
    if not seen:
        raise nothing_left(
            compiled,
            "Set a larger max_length where rows are too long, or choose another base where its "
            "template refuses them.",
        )
    return seen


def _n_bytes(example: Example) -> int:
    return len(example.prompt.encode()) + len(example.completion.encode())


def _tokenized(
    examples: Sequence[Example], form: PromptFormat, limit: int
) -> tuple[TokenizedExample, ...]:
    """Those that fit."""
    found = map(form.tokenize, examples)
    return tuple(example for example in found if len(example.ids) <= limit)


def probe_text(tokenizer: Tokenizer, max_length: int) -> tuple[TokenizedExample, ...]:
    """The project's own plain English and code, on which no run ever trains, section by section."""
    path = files("ollama_trainer") / "probe.txt"
    sections = path.read_text(encoding="utf-8").split("\n%%\n")
    texts = (tokenizer.ids(section, special=False)[:max_length] for section in sections)
    return tuple(TokenizedExample(ids=tuple(t), mask=(0,) + (1,) * (len(t) - 1)) for t in texts)
