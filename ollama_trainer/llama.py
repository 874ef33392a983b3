"""llama.cpp, opened the one way that is safe here, and closed.

Everything that reads a finished model goes through `open_llama`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ollama_trainer.errors import ExportError, Unloadable
from ollama_trainer.workspace import atomic_path

if TYPE_CHECKING:
    import numpy as np
    from llama_cpp import Llama
    from numpy.typing import NDArray

#: Tokens that are computed at once, as llama.cpp does by itself.
_MICRO_BATCH = 512
#: Rows of logits that one call may return: 256 MB for a vocabulary of 256,000.
_MOST_LOGITS = 256
#: Token ids of a text, and indices into them.
Asked = tuple[Sequence[int], Sequence[int]]


@contextlib.contextmanager
def open_llama(gguf: Path, **options: Any) -> Iterator[Llama]:
    """A model loaded by llama.cpp; closed at the end, since closing at interpreter exit raises.

    Args:
        gguf: the file.
        options: of `llama_cpp.Llama`.

    Raises:
        Unloadable: llama.cpp cannot load the file.
    """
    _without_repacking()
    from llama_cpp import Llama

    # By itself it generates with half of the cores.
    options.setdefault("n_threads", os.cpu_count())
    try:
        llama = Llama(str(gguf), verbose=False, **options)
    except ValueError as error:
        raise Unloadable(
            f"llama.cpp cannot load {gguf}: {error}", "Its own messages are in the run's log."
        ) from error
    with contextlib.closing(llama):
        yield llama


class Sequences:
    """A model whose context holds several sequences, which are computed together.

    A weight that is read from memory then serves all of them. Made by `open_sequences`.
    """

    def __init__(self, llama: Llama, context: Any, n_batch: int, n_sequences: int) -> None:
        self._llama, self._context = llama, context
        self.n_batch, self.n_sequences = n_batch, n_sequences
        self.n_vocab = llama.n_vocab()

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp stops at this token."""
        return ends_generation(self._llama, token)

    def begin(self, texts: Sequence[Sequence[int]], at_most: int) -> int:
        """Forgets every sequence and computes what some texts begin with, once for all of them.

        Args:
            texts: token ids of each; text i is sequence i.
            at_most: tokens that may be taken as the beginning.

        Returns:
            How many tokens at the beginning of each sequence are there already.
        """
        import llama_cpp

        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, True)
        alike = itertools.takewhile(lambda here: len(set(here)) == 1, zip(*texts, strict=False))
        shared = min(sum(1 for _ in alike), at_most)
        if len(texts) < 2 or shared < 1:
            return 0
        self.decode(
            [SequenceToken(0, n, token, False) for n, token in enumerate(texts[0][:shared])]
        )
        for sequence in range(1, len(texts)):
            llama_cpp.llama_memory_seq_cp(memory, 0, sequence, 0, shared)
        return shared

    def decode(self, tokens: Sequence[SequenceToken]) -> NDArray[np.float32]:
        """Appends tokens to their sequences.

        Args:
            tokens: at most `n_batch`, in the order of their positions within each sequence.

        Returns:
            float32 of shape (wanted tokens, vocabulary): a row predicts what follows its token.

        Raises:
            ExportError: llama.cpp could not compute them.
        """
        import llama_cpp
        import numpy as np

        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            for index, token in enumerate(tokens):
                batch.token[index] = token.id
                batch.pos[index] = token.position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = token.sequence
                batch.logits[index] = token.wanted
            batch.n_tokens = len(tokens)
            code = llama_cpp.llama_decode(self._context, batch)
            if code != 0:
                raise ExportError(f"llama.cpp could not compute {len(tokens)} tokens (code {code})")
            wanted = [index for index, token in enumerate(tokens) if token.wanted]
            logits = np.empty((len(wanted), self.n_vocab), np.float32)
            for row, index in enumerate(wanted):
                pointer = llama_cpp.llama_get_logits_ith(self._context, index)
                logits[row] = np.ctypeslib.as_array(pointer, (self.n_vocab,))
            return logits
        finally:
            llama_cpp.llama_batch_free(batch)


class SequenceToken(NamedTuple):
    """A token at its place in one of several sequences."""

    sequence: int
    position: int
    id: int
    #: Whether the logits after it are asked for.
    wanted: bool


@contextlib.contextmanager
def open_sequences(gguf: Path, *, n_sequences: int, n_tokens: int) -> Iterator[Sequences]:
    """A model with room for several sequences at once.

    Args:
        gguf: the file.
        n_sequences: how many sequences.
        n_tokens: room for all of them together; also the most that one call may append.

    Raises:
        Unloadable: llama.cpp cannot load the file.
        ExportError: there is no memory for so much context.
    """
    import llama_cpp

    with open_llama(gguf, n_ctx=8, n_batch=8) as llama:
        options = llama_cpp.llama_context_default_params()
        # llama.cpp rounds it up and warns; a multiple of 256 is what it wants.
        options.n_ctx = n_tokens + -n_tokens % 256
        options.n_batch = options.n_ctx
        options.n_ubatch = min(options.n_ctx, _MICRO_BATCH)
        options.n_seq_max = n_sequences
        options.kv_unified = True
        options.n_threads = options.n_threads_batch = os.cpu_count() or 1
        options.no_perf = True
        context = llama_cpp.llama_init_from_model(llama.model, options)
        if not context:
            raise ExportError(
                f"llama.cpp has no memory for a context of {options.n_ctx} tokens of {gguf.name}",
                "Close other programs, or choose a smaller base.",
            )
        try:
            yield Sequences(llama, context, options.n_batch, n_sequences)
        finally:
            llama_cpp.llama_free(context)


def logits_at(
    sequences: Sequences, ids: Sequence[int], positions: Sequence[int]
) -> NDArray[np.float32]:
    """`logits_of` for a single text."""
    return next(logits_of(sequences, [(ids, positions)]))


def logits_of(sequences: Sequences, asked: Sequence[Asked]) -> Iterator[NDArray[np.float32]]:
    """The logits at some positions of separate texts; nothing is computed for the others.

    Args:
        sequences: with room for the longest text.
        asked: token ids of each text, with indices into them in ascending order.

    Yields:
        For each text, in its order: float32 of shape (positions, vocabulary); row i predicts the
        token after positions[i].

    Raises:
        ExportError: llama.cpp could not compute them.
    """
    if any(len(ids) > sequences.n_batch for ids, _ in asked):
        raise ExportError(
            f"A text is longer than the {sequences.n_batch} tokens that there is room for"
        )
    for group in _groups(asked, sequences.n_batch, sequences.n_sequences):
        first = min(positions[0] if positions else len(ids) for ids, positions in group)
        begun = sequences.begin([ids for ids, _ in group], first)
        tokens = [
            SequenceToken(number, position, token, position in wanted)
            for number, (ids, positions) in enumerate(group)
            for wanted in [set(positions)]
            for position, token in enumerate(ids)
            if position >= begun
        ]
        logits = sequences.decode(tokens)
        start = 0
        for _, positions in group:
            yield logits[start : start + len(positions)]
            start += len(positions)


def continue_texts(
    sequences: Sequences,
    texts: Sequence[Sequence[int]],
    n_tokens: int,
    choose: Callable[[int, NDArray[np.float32]], int],
    progress: Callable[[float], None] = lambda _fraction: None,
) -> list[list[int]]:
    """Continues some texts together, each until a token that ends generation.

    Args:
        sequences: with room for all of them and what is written.
        texts: token ids of each, at most as many as there are sequences.
        n_tokens: the most that is written to each.
        choose: gets a text's number and its logits, and gives the next token.
        progress: called with the share of `n_tokens` that is written.

    Returns:
        What was written to each, the token that ends it included.
    """
    begun = sequences.begin(texts, min(map(len, texts)) - 1)
    written: list[list[int]] = [[] for _ in texts]
    tokens = [
        SequenceToken(number, position, token, position == len(text) - 1)
        for number, text in enumerate(texts)
        for position, token in enumerate(text)
        if position >= begun
    ]
    for step in range(n_tokens):
        asked = [token for token in tokens if token.wanted]
        logits = sequences.decode(tokens)
        tokens = []
        for before, row in zip(asked, logits, strict=True):
            token = choose(before.sequence, row)
            written[before.sequence].append(token)
            if not sequences.ends_generation(token):
                tokens.append(SequenceToken(before.sequence, before.position + 1, token, True))
        progress((step + 1) / n_tokens)
        if not tokens:
            break
    return written


def _groups(asked: Sequence[Asked], n_tokens: int, n_sequences: int) -> Iterator[list[Asked]]:
    """Texts that fit into one call together: into the context, and their logits into memory."""
    group: list[Asked] = []
    for text in asked:
        together = [*group, text]
        fits = (
            len(together) <= n_sequences
            and sum(len(ids) for ids, _ in together) <= n_tokens
            and sum(len(positions) for _, positions in together) <= _MOST_LOGITS
        )
        if group and not fits:
            yield group
            together = [text]
        group = together
    if group:
        yield group


def quantize_file(source: Path, target: Path, kind: str) -> None:
    """Quantises a whole GGUF by llama.cpp's own quantiser, whole or not at all.

    Args:
        source: of floats, or of finer types than the target's.
        target: the final name.
        kind: llama.cpp's name, such as `MOSTLY_Q4_K_M`: a mixture that it chooses by the tensors'
            names. Where rows do not fit a type, it takes another and says so in its log.

    Raises:
        ExportError: llama.cpp refused.
    """
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}")
    options.allow_requantize = True
    options.nthread = os.cpu_count() or 1
    with atomic_path(target) as partial:
        code = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(partial), ctypes.byref(options)
        )
        if code != 0 or not partial.is_file():
            raise ExportError(
                f"llama.cpp could not quantise {source} as {kind} (code {code})",
                "Its own messages are in the run's log; another quantization may do.",
            )


def ends_generation(llama: Llama, token: int) -> bool:
    """Whether llama.cpp stops at this token."""
    import llama_cpp

    return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(llama.model), token))


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
