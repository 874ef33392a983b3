"""Everything that can go wrong, as one tree.

TrainerError
├── InvalidRequest        a request, setting or argument that cannot be accepted
├── DatasetError          the data set is missing, unreadable, or holds nothing to train on
├── BaseModelError        the base is unknown, damaged, or of a kind that is not supported
│   └── ModelDiffers      … because torch computes something else with it than llama.cpp
├── BackendUnavailable    the training backend cannot be imported or has no usable device
├── TrainingFailed        training started and did not end well
│   └── OutOfMemory       … because memory ran out
├── ExportError           the trained adapter could not become a GGUF
│   ├── GgufError         a GGUF file breaks its own format
│   ├── NotANumber        … because it computes values that are no numbers
│   ├── Unloadable        … because llama.cpp cannot load what was written
│   ├── MergedEqualsBase  … because what came out is its base again
│   └── NothingLearned    … because it answers no better than its base
├── PublishError          the finished model could not be published
│   ├── OllamaUnreachable … because no Ollama answered
│   ├── StoredDiffers     … because Ollama has something else than what was made
│   ├── OllamaCannotLoad  … because Ollama cannot load it
│   ├── PromptDiffers     … because Ollama would ask it in other words than it was trained with
│   ├── CapabilitiesLost  … because Ollama thinks that it can do less than its base
│   ├── ToolCallsLost     … because its calls of tools do not come back as such
│   ├── EmptyAnswer       … because it answers with nothing
│   ├── AnswerNeverEnds   … because its answers do not end by themselves
│   └── AnswersLikeBase   … because it answers what it should have unlearned
├── DiskFull              there is no room left where the data directory lies
├── MemoryHeld            an Ollama on this machine holds the memory that a training needs
├── WorkerLost            the worker process died without leaving a result
├── LeaseLost             another attempt has taken over
├── Cancelled             somebody asked for it
└── ServerError           this program's own server refused or could not be reached
    ├── StoreUnavailable  … because its database cannot be used now
    └── MachineBusy       … because the machine lacks something just now

Each has a stable `code` (for programs) and says cause and remedy (for people).
"""

from __future__ import annotations

import errno


class TrainerError(Exception):
    """An expected failure, with its cause and its remedy.

    Args:
        cause: what went wrong, as a sentence without a final full stop.
        remedy: what the reader can do about it; empty when nothing is known to help.
    """

    #: Stable identifier for programs.
    code = "error"
    #: Whether the same attempt may succeed later without anyone changing anything.
    retryable = False

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}. {self.remedy}" if self.remedy else self.cause


class InvalidRequest(TrainerError):
    code = "invalid_request"


class DatasetError(TrainerError):
    code = "dataset"


class BaseModelError(TrainerError):
    code = "base_model"


class ModelDiffers(BaseModelError):
    code = "model_differs"


class BackendUnavailable(TrainerError):
    code = "backend_unavailable"


class TrainingFailed(TrainerError):
    code = "training_failed"


class OutOfMemory(TrainingFailed):
    code = "out_of_memory"
    retryable = True


class ExportError(TrainerError):
    code = "export"


class GgufError(ExportError):
    code = "gguf"


class NotANumber(ExportError):
    code = "not_a_number"


class Unloadable(ExportError):
    code = "unloadable"


class MergedEqualsBase(ExportError):
    code = "merged_equals_base"


class NothingLearned(ExportError):
    code = "nothing_learned"


class PublishError(TrainerError):
    code = "publish"


class OllamaUnreachable(PublishError):
    code = "ollama_unreachable"
    retryable = True


class PromptDiffers(PublishError):
    code = "prompt_differs"


class CapabilitiesLost(PublishError):
    code = "capabilities_lost"


class StoredDiffers(PublishError):
    code = "stored_differs"


class OllamaCannotLoad(PublishError):
    code = "ollama_cannot_load"


class ToolCallsLost(PublishError):
    code = "tool_calls_lost"


class EmptyAnswer(PublishError):
    code = "empty_answer"


class AnswerNeverEnds(PublishError):
    code = "answer_never_ends"


class AnswersLikeBase(PublishError):
    code = "answers_like_its_base"


class MemoryHeld(TrainerError):
    code = "memory_held"
    retryable = True


class WorkerLost(TrainerError):
    code = "worker_lost"
    retryable = True


class DiskFull(TrainerError):
    code = "disk_full"
    retryable = True


class LeaseLost(TrainerError):
    code = "lease_lost"


class Cancelled(TrainerError):
    code = "cancelled"


class ServerError(TrainerError):
    code = "server"


class StoreUnavailable(ServerError):
    code = "store_unavailable"
    retryable = True


#: What libraries say that write with code of their own: safetensors and tokenizers what the system
#: says (on Windows by its number), torch that a file is shorter than what it wrote,
#: SQLite what it likes.
_DISK_FULL = (
    "no space left on device",
    "disk quota exceeded",
    "(os error 112)",
    "pytorchstreamwriter failed",
    "database or disk is full",
    "iostream",
    "unexpected pos",
)


class MachineBusy(ServerError):
    code = "machine_busy"
    retryable = True


def is_machine_busy(error: OSError) -> bool:
    """Whether the system lacks descriptors, processes or memory just now."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what led to it, says that no room is left."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(seen).lower() for words in _DISK_FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
