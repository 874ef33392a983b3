"""Identifiers that become paths and Ollama names: strict patterns, for callers are not trusted."""

from __future__ import annotations

import hashlib
import re

from ollama_trainer.errors import InvalidRequest

#: Also a valid Ollama tag and a safe file name on every platform.
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PREFIX = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,23}|")
#: Ollama reads a meaning of its own into these tags and then does not find the model.
_RESERVED_TAGS = {"cloud", "local"}
#: Ollama's limit for the model part of a name is 80 characters.
_MODEL_PART_LENGTH = 80


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
    if value.lower() in _RESERVED_TAGS:
        raise InvalidRequest(
            f"runId {_shown(value)} is a tag that Ollama keeps for itself", "Use a UUID."
        )
    return value


def job_slug(job_id: str, length: int = 40) -> str:
    """A lower-case form of any job id that is fit for an Ollama name.

    Ids that had to be changed get a short digest, so that two of them do not meet in one name.
    """
    slug = re.sub(r"[^a-z0-9_-]+", "-", job_id.lower()).strip("-_")
    if slug == job_id and 0 < len(slug) <= length:
        return slug
    digest = hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{slug[: length - 9].rstrip('-_') or 'job'}-{digest}"


def model_name(prefix: str, job_id: str, run_id: str) -> str:
    """`<prefix><job slug>:<run id>`, lower case, as Ollama compares names without case."""
    return f"{prefix}{job_slug(job_id, _MODEL_PART_LENGTH - len(prefix))}:{run_id.lower()}"


def check_prefix(value: str) -> str:
    """Returns the prefix of model names unchanged.

    Raises:
        ValueError: it cannot begin an Ollama name.
    """
    if not _PREFIX.fullmatch(value):
        raise ValueError("a model name prefix has at most 24 of a-z, 0-9, '_', '.' and '-'")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
