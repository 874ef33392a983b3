"""The typed records that flow between the parts.

Records that are written to files or sent to clients are pydantic models, so that what is read
back is validated; records that stay inside one process are frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ollama_trainer.errors import TrainerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RunState(StrEnum):
    """The four words that a client may see."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        return self in (RunState.COMPLETED, RunState.FAILED)


class Stage(StrEnum):
    """The stages of a run, in their order."""

    BASE = "base"
    DATASET = "dataset"
    REPLAY = "replay"
    TRAIN = "train"
    EXPORT = "export"
    VERIFY = "verify"
    PUBLISH = "publish"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingOptions(_Record):
    """What the trainer does where the run does not say otherwise.

    `None` means: chosen from the number of examples and the size of the base.
    """

    rank: int = Field(16, ge=1, le=512, description="Rank of the LoRA matrices.")
    alpha: int = Field(
        32, ge=1, le=1024, description="The adapter's output is scaled by alpha / rank."
    )
    layers: Literal["auto", "all"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="How many layers are trained, counted from the last one: 'auto' (half of "
        "them), 'all', or a number.",
    )
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak learning rate.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps.")
    batch_size: int | None = Field(None, ge=1, description="Examples a step.")
    max_length: int = Field(
        2048, ge=16, description="Longest example in tokens; longer ones are dropped by name."
    )
    replay: Literal["auto", "off"] | Annotated[float, Field(gt=0, le=100)] = Field(
        "auto",
        description="How strongly the model is held to its base on texts that the base wrote: "
        "'auto', 'off', or the penalty's weight beside the loss of the examples, up to 100.",
    )
    seed: int = Field(1, ge=0, lt=2**32, description="Of everything that is drawn at random.")


#: How a model is trained: on good answers; on pairs of a good and a bad answer to one input; on
#: good and bad answers to different inputs.
Method = Literal["sft", "dpo", "kto"]


class DatasetOptions(_Record):
    """What is made of a data set's rows."""

    method: Literal["auto"] | Method = Field(
        "auto",
        description="How the rows are trained on: 'sft' (good answers), 'dpo' (pairs of a good and "
        "a bad answer to the same input), 'kto' (good and bad answers), or 'auto', by what there "
        "is.",
    )
    secrets: Literal["redact", "refuse", "off"] = Field(
        "redact",
        description="What happens to API keys, tokens, passwords and private keys in a data set: "
        "each is replaced by its kind, the data set is refused, or nothing.",
    )
    redact_emails: bool = Field(
        False, description="Whether e-mail addresses count as secrets, too."
    )
    corrections: bool = Field(
        False,
        description="Whether a note on a bad answer that begins with 'correction:', 'correct "
        "answer:', 'expected:' or 'should be:' is learned as the right one.",
    )


class FidelityOptions(_Record):
    """What a finished model must reach before its export is good enough."""

    min_learning_kept: float = Field(
        0.97, ge=0, le=1, description="Share of the learning that the finished model must have."
    )
    min_agreement: float = Field(
        0.97,
        ge=0,
        le=1,
        description="Share of the held-out answers' tokens at which the finished model must hold "
        "the same token most likely as the trained one.",
    )
    max_unrelated_over_trained: float = Field(
        0.05,
        ge=0,
        description="How much higher than the trained model's its loss on unrelated text may be, "
        "in nats a token.",
    )
    max_unrelated_over_base: float = Field(
        0.10,
        ge=0,
        description="How much higher than the base's its loss on unrelated text may be, "
        "in nats a token.",
    )


class RunSpec(_Record):
    """All that a worker needs to know of a run, as it was settled when the run was accepted."""

    run_id: str
    job_id: str
    #: The path that the caller gave; the worker reads the snapshot in the run directory.
    dataset_ref: str
    #: As the caller named it; empty: the only one in Ollama that can be trained.
    base: str
    backend: str
    publisher: Literal["ollama", "folder"]
    quantization: str
    ollama_host: str
    #: What the names of finished models begin with: by it they are known in Ollama.
    name_prefix: str = ""
    #: Ollama's name for the result, lower case; usually `<prefix><job slug>:<run id>`.
    model_name: str
    #: Directory for what several runs share (caches by digest).
    cache_dir: Path
    training: TrainingOptions = TrainingOptions()
    dataset: DatasetOptions = DatasetOptions()
    fidelity: FidelityOptions = FidelityOptions()
    rounding: Literal["compensated", "stochastic"] = "compensated"
    #: Seconds of training between two checkpoints; 0: one after every step.
    checkpoint_every_s: float = 30.0
    #: What is made of bases and kept for further runs may take so many gigabytes.
    cache_gigabytes: float = 50.0
    #: What happens to models that an Ollama on this machine holds where a training needs memory.
    ollama_memory: Literal["share", "unload", "wait"] = "unload"


class Lease(_Record):
    """Who may work in a run directory now, and at what.

    The server writes it before it starts a worker. A worker whose own lease is no longer what the
    file says has been given up, and may write nothing under a final name.
    """

    #: `run`: all stages; `publish`: the last one again; `withdraw`: take back what was published.
    task: Literal["run", "publish", "withdraw"] = "run"
    #: Grows with every start of a worker in this directory, whatever its task.
    token: int = Field(ge=1)
    #: The run's attempt; what its files are marked with.
    attempt: int = Field(1, ge=0)
    #: How often memory ran out: each time the batch is halved and twice as many are summed up.
    halvings: int = Field(0, ge=0)
    #: Where a `publish` goes; None: as the run says.
    publisher: Literal["ollama", "folder"] | None = None


class OutputFile(_Record):
    """A file that a stage made."""

    n_bytes: int
    #: Lower-case hex.
    sha256: str


class Manifest(_Record):
    """That a stage is done: written after its files (see manifests.py)."""

    #: SHA-256 of everything that the files follow from, hex.
    key: str
    #: Path below the run directory, with `/` -> file.
    outputs: dict[str, OutputFile]
    attempt: int
    versions: dict[str, str]
    #: What the stage found out, for those after it.
    data: dict[str, Any]
    written_at: datetime


class ErrorInfo(_Record):
    """An error as it is stored and shown."""

    code: str
    cause: str
    remedy: str = ""
    retryable: bool = False

    @classmethod
    def of(cls, error: TrainerError) -> ErrorInfo:
        return cls(
            code=error.code, cause=error.cause, remedy=error.remedy, retryable=error.retryable
        )

    def __str__(self) -> str:
        return f"{self.cause}. {self.remedy}" if self.remedy else self.cause


class Waiting(_Record):
    """A run that goes on by itself once something has passed."""

    #: What it waits for: Ollama's answer, room on the disk, memory, a worker that stays alive, or
    #: whatever else the machine lacks.
    reason: Literal["ollama", "disk", "memory", "worker", "machine"]
    #: When it failed first for this reason, and how often since.
    since: datetime
    tries: int = Field(ge=1)
    #: The next try, and after when no further one is made.
    until: datetime
    deadline: datetime
    error: ErrorInfo


class Progress(_Record):
    """How far a run is. Numbers are absent where they make no sense."""

    stage: Stage
    #: 0 to 1, of the stage.
    fraction: float = Field(0.0, ge=0, le=1)
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    #: Estimated seconds until the stage ends.
    left_s: float | None = None


#: `saved`: a stage or checkpoint is whole and would survive a crash; `state`: the server's own.
EventKind = Literal["stage", "progress", "note", "saved", "state"]


class Event(_Record):
    """Something that happened to a run; one line of its events.jsonl, if its worker told it."""

    time: datetime
    kind: EventKind
    message: str = ""
    progress: Progress | None = None
    data: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def now(
        cls,
        kind: EventKind,
        message: str = "",
        progress: Progress | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Event:
        return cls(
            time=datetime.now(UTC),
            kind=kind,
            message=message,
            progress=progress,
            data=dict(data or {}),
        )


class Losses(_Record):
    """One loss of the base, of the trained model and of the finished file, in nats a token."""

    base: float
    trained: float
    served: float


class DroppedRows(_Record):
    """The rows that were left out for one reason, whole or in part."""

    count: int
    #: The first of their 1-based numbers.
    lines: tuple[int, ...]


class Sample(_Record):
    """An example as the model sees it; long ones are cut in the middle, by name."""

    line: int
    #: The rendered conversation before the answer.
    prompt: str
    #: What is learned, the end of turn included.
    trained: str
    #: The answer that it is preferred to, where pairs are trained on.
    rejected: str | None = None
    n_tokens: int | None = None


class DatasetReport(_Record):
    """What became of a data set's rows."""

    format: str
    #: Lines that hold anything, and those of them that something is learned from.
    rows_read: int
    rows_used: int
    #: Answers to learn from: a row may have several.
    examples: int
    #: Reason -> rows.
    dropped: dict[str, DroppedRows]
    method: Method
    method_reason: str
    #: What is trained with where the backend cannot do that.
    trained_with: Method
    #: Good and bad answers, repetitions and contradictions left out, and pairs of them.
    good: int
    bad: int
    pairs: int
    #: Kind of secret -> how many were found.
    secrets: dict[str, int]
    #: Examples whose input nearly equals another one's and whose answer equals its.
    near_duplicates: int
    #: Examples that are kept from training to judge the result.
    held_out: int
    #: Tokens of all examples; None: they could not be counted.
    tokens: int | None
    #: Whether that is estimated from some of them.
    tokens_estimated: bool = False
    longest_tokens: int | None = None
    #: Optimiser steps that a training makes, unless there is nothing left to learn before.
    steps: int
    warnings: tuple[str, ...]
    samples: tuple[Sample, ...]


class Figures(_Record):
    """What was measured on one finished file."""

    #: What its touched tensors are: `same` as the base's, `q6_k`, `q8_0`, `f16`.
    quantization: str
    #: Share of the learning that it has; None where there was next to nothing to learn.
    learning_kept: float | None
    #: Share of the held-out answers' tokens at which it says what the trained model says.
    agreement: float
    held_out: Losses
    unrelated: Losses
    #: Which bounds it misses, in words; empty when it is good.
    missed: tuple[str, ...] = ()


class Fidelity(_Record):
    """How true a finished model is to what was trained, and to its base elsewhere."""

    figures: Figures
    #: Files that were made before it and were not good enough.
    earlier: tuple[Figures, ...] = ()
    #: Rows that were kept from training for this, and trained rows that were asked in other words.
    n_rows: int
    n_rephrased: int

    @property
    def reached(self) -> bool:
        return not self.figures.missed


class ExpectedPrompt(_Record):
    """A conversation, and the prompt that a model was trained to be asked with then."""

    #: As the chat API has them.
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    #: Whether thoughts are asked for; None: as Ollama does by itself.
    think: bool | None = None
    text: str


class GoldenChat(_Record):
    """A chat, and how a finished model answers it in llama.cpp before it is published."""

    #: As the chat API has them.
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    #: What a reader sees of it, without thoughts; of a call of a tool, what the model wrote.
    answer: str
    #: Tokens of the answer, thoughts and end included.
    n_tokens: int
    #: Whether it ended by itself.
    ended: bool
    #: What the base answers, if that is something else.
    base_answer: str | None = None
    #: Names of the tools that are called in the place of an answer.
    calls: tuple[str, ...] = ()


def visible_answer(text: str) -> str:
    """What a reader sees of an answer: without thoughts, and without blanks around it."""
    return text.rpartition("</think>")[2].strip()


class RunResult(_Record):
    """How a worker ended: the last file that it writes into the run directory."""

    status: Literal["completed", "failed"]
    #: Ollama's canonical name, or the GGUF's absolute path when the publisher is `folder`.
    output_model_ref: str | None = None
    gguf: Path | None = None
    modelfile: Path | None = None
    error: ErrorInfo | None = None
    #: Measured on the finished file.
    fidelity: Fidelity | None = None
    #: Wall-clock seconds of each stage.
    seconds: dict[str, float] = Field(default_factory=dict)
    #: Of the lease that the worker had; another worker's result does not count.
    token: int | None = None
    #: Figures worth keeping (rows used, final loss, bytes written, …).
    metrics: dict[str, Any] = Field(default_factory=dict)


#: A message as the chat API has it: `role`, `content`, and whatever else its role brings.
Message = Mapping[str, Any]


class Example(NamedTuple):
    """An answer, and the conversation that it was given in. (Made by the million: a tuple is made
    in half the time of a frozen dataclass.)"""

    #: The messages before the answer.
    context: tuple[Message, ...]
    #: The message of the assistant that is learned, or unlearned.
    answer: Message
    #: 1-based line in the data set.
    line: int
    #: Functions that the model could call, as the chat API has them.
    tools: tuple[Message, ...] = ()
    #: Whether the answer is one to learn.
    good: bool = True
    #: Whether it came after calls of tools that the data set does not show.
    after_unseen_tools: bool = False

    @classmethod
    def of(cls, prompt: str, completion: str, line: int, *, good: bool = True) -> Example:
        """A single question with its answer."""
        question = {"role": "user", "content": prompt}
        return cls((question,), {"role": "assistant", "content": completion}, line, (), good)

    @property
    def prompt(self) -> str:
        """What was said last before the answer."""
        return self.context[-1]["content"] or ""

    @property
    def question(self) -> str:
        """What the user said last."""
        place = self._question_place()
        return self.context[place]["content"] if place is not None else ""

    def _question_place(self) -> int | None:
        places = reversed(range(len(self.context)))
        return next((place for place in places if self.context[place]["role"] == "user"), None)

    @property
    def completion(self) -> str:
        """The answer's text; empty where it is nothing but calls of tools."""
        return self.answer["content"] or ""

    def asked(self, question: str) -> Example:
        """The same with another last message of the user's, which it must have."""
        place = self._question_place()
        if place is None:
            raise ValueError("the user said nothing")
        asked = {**self.context[place], "content": question}
        return self._replace(context=(*self.context[:place], asked, *self.context[place + 1 :]))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedExample:
    """Token ids of prompt and answer; the loss is taken where `mask` is 1.

    `ids` and `mask` have the same length, shape (tokens,).
    """

    ids: tuple[int, ...]
    mask: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayText:
    """A text that the base wrote, with what it held likely at each of its tokens."""

    #: Token ids, the opening that it was given included.
    ids: tuple[int, ...]
    #: Index of the first token that the base wrote itself; it wrote all that follow.
    start: int
    #: int32 of shape (written tokens, k): the likeliest ids in the place of each written token.
    likeliest: NDArray[np.int32]
    #: float16 of the same shape: their log-probabilities.
    log_probabilities: NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaModel:
    """What a model in Ollama has beside its weights; its tuned successor inherits it."""

    #: Ollama's canonical name.
    model: str
    #: A Go template; empty where Ollama renders with the GGUF's own Jinja template.
    template: str = ""
    system: str = ""
    #: Ollama's parameters in their own types; `stop` is a tuple of texts.
    parameters: Mapping[str, bool | int | float | str | tuple[str, ...]] = field(
        default_factory=dict
    )
    licenses: tuple[str, ...] = ()
    #: Names of built-in code that renders prompts and reads answers in the place of a template.
    renderer: str = ""
    parser: str = ""
    #: The oldest version of Ollama that can run it.
    requires: str = ""
    #: As Ollama tells them: completion, tools, thinking, vision, …; None: it is too old to tell.
    capabilities: tuple[str, ...] | None = None
    #: Messages that begin every chat: role and content.
    messages: tuple[Mapping[str, str], ...] = ()
    #: GGUFs of projectors for pictures or sound beside the model.
    projectors: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseGguf:
    """A base model on disk."""

    #: The name that the caller used.
    name: str
    gguf: Path
    #: SHA-256 of the GGUF file, lower-case hex.
    digest: str
    license: str = ""
    #: Where it was found in Ollama.
    ollama: OllamaModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model says at the masked tokens of some texts."""

    #: Mean loss in nats a token.
    loss: float
    #: The most likely token at each masked position, text by text.
    top: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A PEFT adapter directory (adapter_config.json, adapter_model.safetensors)."""

    path: Path
    #: Loss of the last logged step, in nats a token.
    final_loss: float | None = None
    #: Steps that were made; fewer than planned where there was nothing left to learn.
    steps: int = 0
    #: Losses on the held-out examples during the training, first to last.
    held_out_losses: tuple[float, ...] = ()
    #: What the trained model says on the held-out examples and on the probe text.
    held_out: Reading | None = None
    unrelated: Reading | None = None
    #: Mean KL divergence to the base on the texts replayed last, in nats a token.
    divergence: float | None = None
    #: Mean KL divergence of the untrained model in torch from llama.cpp's, in nats a token.
    divergence_from_served: float | None = None
    #: What took how long: load, compare, steps (with replay and readings of held-out rows), replay,
    #: reading, statistics.
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """Where the finished model can be found."""

    #: What the caller is told: Ollama's canonical name, or an absolute path.
    ref: str
    #: The line to type next.
    next_command: str
