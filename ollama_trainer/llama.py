"""llama.cpp, opened the one way that is safe here, and closed.

Everything that reads a finished model goes through `open_llama`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_trainer.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    from llama_cpp import Llama
    from numpy.typing import NDArray


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

    # By itself it generates with half of the cores.
    options.setdefault("n_threads", os.cpu_count())
    try:
        llama = Llama(str(gguf), verbose=False, **options)
    except ValueError as error:
        raise ExportError(
            f"llama.cpp cannot load {gguf}: {error}", "Its own messages are in the run's log."
        ) from error
    with contextlib.closing(llama):
        yield llama


def logits_at(llama: Llama, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
    """The logits at some positions of a fresh sequence; nothing is computed for the others.

    Args:
        llama: opened with `n_ctx` and `n_batch` of at least len(ids).
        ids: the sequence.
        positions: indices into `ids`.

    Returns:
        float32 of shape (positions, vocabulary): row i predicts the token after positions[i].

    Raises:
        ExportError: llama.cpp could not compute them.
    """
    import llama_cpp
    import numpy as np

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    try:
        wanted = set(positions)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index in wanted
        batch.n_tokens = len(ids)
        code = llama_cpp.llama_decode(llama.ctx, batch)
        if code != 0:
            raise ExportError(f"llama.cpp could not compute {len(ids)} tokens (code {code})")
        rows = [llama_cpp.llama_get_logits_ith(llama.ctx, index) for index in positions]
        shape = (llama.n_vocab(),)
        return np.stack([np.ctypeslib.as_array(row, shape).copy() for row in rows])
    finally:
        llama_cpp.llama_batch_free(batch)


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
