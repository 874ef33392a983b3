"""llama.cpp, opened the one way that is safe here, and closed.

Everything that reads a finished model goes through `open_llama`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import ExportError

if TYPE_CHECKING:
    from llama_cpp import Llama


@contextlib.contextmanager
def open_llama(gguf: Path, **options: Any) -> Iterator[Llama]:
    """A model loaded by llama.cpp; closed at the end, since closing at interpreter exit raises.

    Args:
        gguf: the file.
        options: of `llama_cpp.Llama`.

    Raises:
        ExportError: llama.cpp cannot load the file.
    """
    _without_repacking()
    from llama_cpp import Llama

    try:
        llama = Llama(str(gguf), verbose=False, **options)
    except ValueError as error:
        raise ExportError(
            f"llama.cpp cannot load {gguf}: {error}", "Its own messages are in the run's log."
        ) from error
    with contextlib.closing(llama):
        yield llama


@cache
def _without_repacking() -> None:
    """Keeps llama.cpp from repacking weights for special CPU instructions.

    On CPUs with AMX its worker threads use tiles that the kernel has not granted them, and the
    process dies (seen with llama-cpp-python 0.3.36, Q4_1, prompts of more than one token;
    llama.cpp issue 20824 and pull request 26954). `Llama` has no option for it.
    """
    from llama_cpp import llama_cpp

    defaults = llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_model_default_params = without_repacking
