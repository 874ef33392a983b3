"""Which base a run has: found once, and from then on that very file, whatever its name means then.

    base.json in the run directory: name, path, digest, and what the model in Ollama has beside it

A tag can be pulled again, a branch on the hub moves on, and with no base named the only model in
Ollama may get company: none of that changes a run that has begun (see also keep.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ollama_trainer.bases import HF_PREFIX, resolve_base
from ollama_trainer.bases.digests import digest_of
from ollama_trainer.bases.permissions import not_allowed
from ollama_trainer.errors import BaseModelError, GgufError
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.pipeline.keep import linked
from ollama_trainer.pipeline.plan import check_trainable
from ollama_trainer.pipeline.survey import only_trainable
from ollama_trainer.records import BaseGguf, RunSpec
from ollama_trainer.workspace import RunDirectory, write_text

#: Tells something, with figures.
Note = Callable[[str, Mapping[str, Any]], None]

_BASE = TypeAdapter(BaseGguf)
_FRESH = "Start a new run: it takes what the name means today."


def base_of_run(
    directory: RunDirectory,
    spec: RunSpec,
    confirm: Callable[[], None] = lambda: None,
    note: Note = lambda _message, _data: None,
    alive: Callable[[], None] = lambda: None,
) -> BaseGguf:
    """The run's base: what an earlier attempt found, or else what its name means now.

    Args:
        confirm: called before it is settled; raises when somebody else took over.
        note: called with what was found, the first time.
        alive: called now and then while something is fetched.

    Raises:
        BaseModelError: there is no such base, it cannot be trained, or its file has gone since.
        OllamaUnreachable: no Ollama answers that could know it.
        BackendUnavailable: what makes its GGUF is not installed.
    """
    try:
        pinned = _BASE.validate_json(directory.base.read_bytes())
    except FileNotFoundError:
        base = _find(spec, note, alive)
        confirm()
        write_text(directory.base, _BASE.dump_json(base, indent=1).decode() + "\n")
        return linked(base, directory.kept)
    except ValidationError as error:
        raise BaseModelError(
            f"The run's record of its base, {directory.base}, is damaged", _FRESH
        ) from error
    return still_there(linked(pinned, directory.kept), spec)


def _find(spec: RunSpec, note: Note, alive: Callable[[], None]) -> BaseGguf:
    name, why = spec.base, "as it was asked for"
    if not name:
        name = only_trainable(spec.ollama_host, spec.name_prefix).name
        why = "the only model in Ollama that can be trained"
    base = resolve_base(name, spec.cache_dir, spec.ollama_host, check=check_trainable, alive=alive)
    told = {"base": base.name, "digest": base.digest, "gguf": str(base.gguf)}
    note(f"the base is {base.name}, {why}", told)
    return base


def still_there(base: BaseGguf, spec: RunSpec) -> BaseGguf:
    """The same base, once it was seen that its file, with all its parts, is what it was.

    Raises:
        BaseModelError: it is not.
    """
    try:
        # What may not be read is told from what is gone.
        base.gguf.open("rb").close()
        if digest_of(read_gguf(base.gguf), spec.cache_dir) == base.digest:
            return base
        what = f"{base.gguf} is another file than the one that this run began with"
    except PermissionError as error:
        raise not_allowed(base.name, base.gguf) from error
    except OSError:
        what = f"{base.gguf} is gone"
    except GgufError as error:
        what = error.cause
    if base.name.startswith(HF_PREFIX):
        # Its GGUF is this program's own and can be made again.
        again = resolve_base(base.name, spec.cache_dir, check=check_trainable)
        if again.digest == base.digest:
            return again
        what = f"{base.name} is another model than the one that this run began with"
    raise BaseModelError(
        f"The base of this run, {base.name}, is no longer there: {what}{_blame(base)}", _FRESH
    )


def _blame(base: BaseGguf) -> str:
    if base.ollama is None:
        return ""
    return f", since {base.ollama.model} was removed from Ollama or pulled again meanwhile"
