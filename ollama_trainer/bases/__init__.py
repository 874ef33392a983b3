"""Where a base model comes from: a name, as people write it -> a GGUF file on disk.

builtin.py        smollm2, from an installed package
ollama.py         qwen3:0.6b, the file that Ollama serves
gguf_file.py      gguf:/path/to/file.gguf
huggingface.py    hf:/path/to/a/directory, converted once by llama.cpp's own converter
hub.py            hf:org/name, fetched once into the hub's own cache
converter.py      that converter
digests.py        digests of files, remembered
permissions.py    why a file may not be read
dequantized.py    the GGUF as a Hugging Face directory, which training backends read
configuration.py  its hyperparameters as transformers' configuration
caches.py         how long what is made of bases is kept
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ollama_trainer.bases import builtin, gguf_file, hub, huggingface, ollama
from ollama_trainer.errors import BaseModelError
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.ollama.names import MODEL_NAME
from ollama_trainer.records import BaseGguf

GGUF_PREFIX = "gguf:"
HF_PREFIX = "hf:"
OLLAMA_PREFIX = "ollama:"
_FORMS = (
    f"the name of a model in Ollama, {', '.join(builtin.BUILTIN)} (built in),"
    f" {GGUF_PREFIX}/absolute/path/of/a/file.gguf, {HF_PREFIX}org/name of a model on Hugging Face,"
    f" or {HF_PREFIX}/absolute/path/of/a/directory"
)


def resolve_base(
    name: str,
    cache: Path | None = None,
    ollama_host: str = "",
    *,
    check: Callable[[GgufFile], object] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> BaseGguf:
    """Finds the GGUF file of a base.

    Args:
        name: `smollm2`, a model's name in Ollama (`ollama:` before it says that nothing else is
            meant), `gguf:` and the absolute path of a file, `hf:` and an id on the hub or the
            absolute path of a directory; or an absolute path alone.
        cache: directory for what is made of a base and known of it; several runs share it. Only
            Hugging Face's cannot do without.
        ollama_host: Ollama's address, in any form that OLLAMA_HOST may have.
        check: called with the file's header before anything as large as the file is read, and after
            the conversion of one that is no GGUF; raises what is wrong with it.
        alive: called now and then while something is fetched.

    Raises:
        BaseModelError: there is no such base, or its file is not what it must be.
        OllamaUnreachable: no Ollama answers that could know it.
        BackendUnavailable: what makes its GGUF is not installed.
    """
    if name in builtin.BUILTIN:
        return builtin.load(name, cache)
    if name.startswith(GGUF_PREFIX):
        return gguf_file.load(name, Path(name.removeprefix(GGUF_PREFIX)), cache, check)
    path = Path(name)
    if path.is_absolute() and not path.is_dir():
        return gguf_file.load(name, path, cache, check)
    if name.startswith(HF_PREFIX) or path.is_absolute():
        return _from_hugging_face(name, cache, check, alive)
    model = name.removeprefix(OLLAMA_PREFIX)
    if not MODEL_NAME.fullmatch(model):
        raise BaseModelError(f"The base {name!r:.200} is unknown", f"Use {_FORMS}.")
    return ollama.load(model, ollama_host, cache, check)


def _from_hugging_face(
    name: str,
    cache: Path | None,
    check: Callable[[GgufFile], object] | None,
    alive: Callable[[], None],
) -> BaseGguf:
    if cache is None:
        raise ValueError(f"the base {name!r} needs a cache")
    text = name.removeprefix(HF_PREFIX)
    path, title = Path(text), ""
    if hub.is_id(text):
        path, pinned = hub.fetch(text, huggingface.check_supported, alive)
        name, title = HF_PREFIX + pinned, pinned.partition("@")[0].rpartition("/")[2]
    elif not path.is_absolute() or not path.is_dir():
        raise BaseModelError(
            f"The base {name!r:.200} is neither an id on the hub nor the absolute path of a"
            " directory",
            "Check the spelling: hf:org/name, hf:org/name@revision or hf:/absolute/path.",
        )
    base = huggingface.load(name, path, cache, title)
    if check is not None:
        check(read_gguf(base.gguf))
    return base
