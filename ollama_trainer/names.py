"""Identifiers that become paths and Ollama names: strict patterns, for callers are not trusted.

A finished model is called `<prefix><job slug>:<run id>`, or as the setting `name_template` says:
one name for each run, for ever. Beside it stands the job's alias, the same with the tag `latest`.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from ollama_trainer.errors import InvalidRequest

#: Also a valid Ollama tag and a safe file name on every platform.
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
DEFAULT_TEMPLATE = "{prefix}{job}:{run}"
#: Names for trial have tags that begin so.
TRIAL = "untried-"
#: The tag of a job's alias, which is also what Ollama takes a name without a tag for.
LATEST = "latest"
_PREFIX = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,23}|")
_NAMESPACE = re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}")
_MODEL = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}")
_BEFORE_RUN = re.compile(r"[a-z0-9_][a-z0-9_.-]*[_.-]|_|")
_AFTER_RUN = re.compile(r"[_.-][a-z0-9_.-]*|")
#: Ollama reads a meaning of its own into these tags and then does not find the model.
_RESERVED_TAGS = {"cloud", "local"}
#: Ollama's limits for the model part of a name, and for its tag, in characters.
_MODEL_PART_LENGTH = _TAG_LENGTH = 80
_RUN_LENGTH = 64
#: What the job's part must have room for: some of its id, and the digest of it all.
_LEAST_SLUG = 24
#: What Ollama takes anywhere in a name for a model's size, by which it chooses how it writes
#: prompts (server/renderer_resolution.go).
_SIZE = re.compile(r"(e2|e4|12|26|31)(?=b)", re.IGNORECASE)
#: Digits of digests: no digit of decimal, no b and no e, so that no size comes about by chance.
_DIGITS = "cdfghjklmnpqrstv"
_DIGEST_LENGTH = 10
_LIKE_A_DIGEST = re.compile(rf"-[{_DIGITS}]{{{_DIGEST_LENGTH}}}\Z")


class NameTemplate(NamedTuple):
    """A template of names, read: what stands around the job's part and around the run's id."""

    #: With its `/`, or empty.
    namespace: str
    before_job: str
    after_job: str
    before_run: str
    after_run: str

    @classmethod
    def parse(cls, template: str, prefix: str) -> NameTemplate:
        """Reads a template and puts the prefix in.

        Raises:
            ValueError: it is none whose names Ollama would take, for any job and run.
        """
        model, colon, tag = template.partition(":")
        if not colon or ":" in tag:
            raise ValueError("it needs exactly one ':', between the model's part and the tag")
        namespace, slash, model = model.rpartition("/")
        if slash and (not _NAMESPACE.fullmatch(namespace) or namespace == "library"):
            raise ValueError(
                "before a '/' stands a namespace of a-z, 0-9, '_' and '-', other than 'library'"
            )
        job = model.replace("{prefix}", prefix, 1).split("{job}")
        run = tag.split("{run}")
        if len(job) != 2 or len(run) != 2:
            raise ValueError("it needs {job} once before the ':', and {run} once after it")
        read = cls(namespace + slash, *job, *run)
        read._check()
        return read

    def _check(self) -> None:
        """Raises:
        ValueError: names by it could be such that Ollama does not take.
        """
        around = self.before_job + self.after_job
        if not _MODEL.fullmatch(f"{self.before_job}x{self.after_job}"):
            raise ValueError(
                "beside {prefix}, {job} and {run} it may hold a-z, 0-9, '_', '.' and '-', no sign "
                "but '_' first"
            )
        if len(around) > _MODEL_PART_LENGTH - _LEAST_SLUG:
            raise ValueError(
                f"beside the job's part it holds {len(around)} characters before the ':', and may "
                f"hold {_MODEL_PART_LENGTH - _LEAST_SLUG}"
            )
        if not _BEFORE_RUN.fullmatch(self.before_run) or not _AFTER_RUN.fullmatch(self.after_run):
            raise ValueError(
                "around {run} it may hold a-z, 0-9, '_', '.' and '-', one of these signs next to "
                "{run}, and no sign but '_' first"
            )
        if self.before_run.startswith(TRIAL) or self.after_run.endswith("-cloud"):
            raise ValueError(f"tags like '{TRIAL}…' and '…-cloud' have a meaning of their own")
        if len(self.before_run + self.after_run) > _TAG_LENGTH - _RUN_LENGTH:
            raise ValueError(f"around {{run}} it may hold {_TAG_LENGTH - _RUN_LENGTH} characters")
        for text in (self.namespace, *self[1:]):
            if _SIZE.search(text):
                raise ValueError(_no_sizes(text))

    def model_name(self, job_id: str, run_id: str) -> str:
        """The name of a run's model, lower case, as Ollama compares names without case."""
        room = _MODEL_PART_LENGTH - len(self.before_job) - len(self.after_job)
        slug = job_slug(job_id, room, before=self.before_job, after=self.after_job)
        model = f"{self.namespace}{self.before_job}{slug}{self.after_job}"
        return f"{model}:{self.before_run}{run_id.lower()}{self.after_run}"


def check_run_id(value: object) -> str:
    """Returns the run id unchanged.

    Raises:
        InvalidRequest: it is not a plain identifier.
    """
    if not isinstance(value, str) or not RUN_ID.fullmatch(value):
        raise InvalidRequest(
            f"runId {_shown(value)} is not a plain identifier",
            "Use 1 to 64 of a-z, A-Z, 0-9, '-' and '_', no sign first; a UUID fits.",
        )
    tag = value.lower()
    if tag in _RESERVED_TAGS or tag.endswith("-cloud"):
        raise InvalidRequest(
            f"runId {_shown(value)} is a tag that Ollama keeps for itself", "Use a UUID."
        )
    if tag == LATEST or tag.startswith(TRIAL):
        raise InvalidRequest(
            f"runId {_shown(value)} is a tag for models that are not one run's for ever",
            "Use a UUID.",
        )
    return value


def job_slug(job_id: str, length: int = 40, *, before: str = "", after: str = "") -> str:
    """A lower-case form of any job id that is fit for an Ollama name.

    Ids that had to be changed get a short digest, so that two of them do not meet in one name; so
    does one that looks as if it had it already.

    Args:
        length: the most characters.
        before, after: what it stands between: together they make nothing that Ollama takes for a
            model's size.
    """
    slug = re.sub(r"[^a-z0-9_-]+", "-", job_id.lower()).strip("-_")
    slug = _SIZE.sub(r"\1-", slug)
    fits = slug == job_id and 0 < len(slug) <= length
    if fits and not _LIKE_A_DIGEST.search(slug) and not _SIZE.search(f"{before}{slug}{after}"):
        return slug
    number = hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).digest()
    digest = "".join(_DIGITS[byte % 16] for byte in number[:_DIGEST_LENGTH])
    head = "-" if _SIZE.search(f"{before}{slug}") else ""
    kept = (head + slug)[: length - _DIGEST_LENGTH - 1].rstrip("-_") or "job"
    return f"{kept}-{digest}"


def model_name(prefix: str, job_id: str, run_id: str, template: str = DEFAULT_TEMPLATE) -> str:
    """The name of a run's model in Ollama, `<prefix><job slug>:<run id>` by the usual template.

    Raises:
        ValueError: the template is none.
    """
    return NameTemplate.parse(template, prefix).model_name(job_id, run_id)


def alias_of(name: str) -> str:
    """The name that always stands for the job's model that was published last."""
    return f"{name.rpartition(':')[0]}:{LATEST}"


def check_prefix(value: str) -> str:
    """Returns the prefix of model names unchanged.

    Raises:
        ValueError: it cannot begin an Ollama name.
    """
    if not _PREFIX.fullmatch(value):
        raise ValueError("a model name prefix has at most 24 of a-z, 0-9, '_', '.' and '-'")
    if _SIZE.search(value):
        raise ValueError(_no_sizes(value))
    return value


def check_template(value: str, prefix: str) -> str:
    """Returns the template of model names unchanged.

    Args:
        prefix: what it is used with.

    Raises:
        ValueError: Ollama would not take every name by it.
    """
    NameTemplate.parse(value, prefix)
    return value


def _no_sizes(text: str) -> str:
    found = _SIZE.search(text)
    size = f"{found[1]}b" if found else ""
    return f"'{text}' holds '{size}', which Ollama takes for a model's size wherever it stands"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
