"""A base on Hugging Face's hub: fetched once, and from then on found without the hub.

Only safetensors, configuration and tokenizer are fetched, nothing that could run. A revision is
pinned to the commit that it stands for; what is cached whole is used as it is, and nobody is asked
whether there is anything newer: who wants that names the revision.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ollama_trainer.errors import BackendUnavailable, BaseModelError, is_disk_full

#: `org/name` and perhaps a branch, a tag or a commit.
_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96})"
    r"(?:@(?P<revision>[A-Za-z0-9._/-]{1,200}))?"
)
_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
#: Other forms of the same weights, and what lies in folders.
_UNWANTED = ["*/*", "consolidated*"]
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HUB = "https://huggingface.co"
#: Seconds between two words that something still comes.
_WORD_S = 10.0


def is_id(text: str) -> bool:
    """Whether the text has the form `org/name` or `org/name@revision`."""
    return _ID.fullmatch(text) is not None


def fetch(
    text: str, check: Callable[[Path], None], alive: Callable[[], None] = lambda: None
) -> tuple[Path, str]:
    """The directory of a model on the hub, whole.

    Args:
        text: as `is_id` takes it; without a revision the branch `main` is meant.
        check: called with a directory that holds its config.json, before weights are fetched.
        alive: called now and then while something comes.

    Returns:
        The directory, in the hub's own cache, and `org/name@commit`.

    Raises:
        BaseModelError: it is not to be had, or not whole.
        BackendUnavailable: the hub's package is not installed.
    """
    named = _ID.fullmatch(text)
    if named is None:
        raise ValueError(f"{text!r} is no id")
    repo, revision = named["repo"], named["revision"]
    with _told(repo, revision):
        directory = _cached(repo, revision) or _fetched(repo, revision, check, alive)
    if not _is_whole(directory):
        raise BaseModelError(
            f"{repo} on the hub holds no whole model with weights as safetensors and a tokenizer",
            f"Look at {_HUB}/{repo}/tree/main for what it is, and choose another one.",
        )
    return directory, f"{repo}@{directory.name}"


def _cached(repo: str, revision: str | None) -> Path | None:
    """The directory, if all of it is on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo,
            revision=revision,
            local_files_only=True,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    except LocalEntryNotFoundError:
        return None
    # Older caches do not tell what belongs to them.
    return Path(found) if _is_whole(Path(found)) else None


def _fetched(
    repo: str, revision: str | None, check: Callable[[Path], None], alive: Callable[[], None]
) -> Path:
    from huggingface_hub import snapshot_download

    head = Path(snapshot_download(repo, revision=revision, allow_patterns=["config.json"]))
    check(head)
    # A branch may move on between two calls; a commit does not.
    return Path(
        snapshot_download(
            repo,
            revision=head.name,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
            tqdm_class=_bar(alive),
        )
    )


def _bar(alive: Callable[[], None]) -> Any:
    """The hub's progress bar, which also says that something came."""
    from huggingface_hub.utils.tqdm import tqdm

    last = time.monotonic()

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            nonlocal last
            if time.monotonic() - last > _WORD_S:
                last = time.monotonic()
                alive()
            done: bool | None = super().update(n)
            return done

    return Bar


def _is_whole(directory: Path) -> bool:
    """Whether configuration, tokenizer and all weights are there."""
    if not (directory / "config.json").is_file():
        return False
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        return False
    try:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        names = {str(name) for name in index["weight_map"].values()}
    except FileNotFoundError:
        return any(directory.glob("*.safetensors"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return all((directory / name).is_file() for name in names)


@contextmanager
def _told(repo: str, revision: str | None) -> Iterator[None]:
    """Turns the hub's errors into cause and remedy."""
    try:
        import httpx
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise BackendUnavailable(
            f"Bases from the hub cannot be fetched: {error}", "Install ollama-trainer[train]."
        ) from error
    page = f"{_HUB}/{repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise BaseModelError(
            f"{repo} on the hub is gated: its licence has to be accepted first",
            f"Accept it at {page}, then log in on this machine: hf auth login.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BaseModelError(
            f"{repo} on the hub has no revision {revision!r}", f"See {page}/commits/main."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BaseModelError(
            f"There is no model {repo} on the hub, or it is a private one",
            f"Check the spelling at {page}; for a private one log in: hf auth login.",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise BaseModelError(
            f"{_named(repo, revision)} is not cached whole on this machine, and {why}",
            f"Fetch it where the hub can be reached: {_command(repo, revision)}.",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error) from error
    except (OSError, httpx.HTTPError) as error:
        if is_disk_full(error):
            raise
        raise BaseModelError(
            f"{repo} cannot be fetched from the hub: {error}", "Try again later."
        ) from error


def _refused(repo: str, error: OSError) -> BaseModelError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return BaseModelError(
            f"The hub does not let this machine have {repo} (HTTP {status})",
            "Log in with an account that may: hf auth login.",
        )
    return BaseModelError(
        f"The hub does not give {repo} away: {str(error).splitlines()[0]}", "Try again later."
    )


def _named(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo


def _command(repo: str, revision: str | None) -> str:
    chosen = f" --revision {revision}" if revision else ""
    return f"hf download {repo}{chosen}"
