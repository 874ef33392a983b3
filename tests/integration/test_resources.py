"""What libraries really say when memory or room on a disk runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_trainer.backends.unsloth import _is_out_of_memory
from ollama_trainer.errors import is_disk_full

FULL = Path("/dev/full")
#: More bytes than any machine has.
TOO_MUCH = 1 << 50


def test_memory_of_the_host() -> None:
    import torch

    with pytest.raises(RuntimeError) as by_torch:
        torch.empty(TOO_MUCH)
    with pytest.raises(MemoryError) as by_numpy:
        np.empty(TOO_MUCH)
    for caught in (by_torch, by_numpy):
        assert _is_out_of_memory(caught.value)
        assert not is_disk_full(caught.value)


def test_memory_elsewhere() -> None:
    """Said on machines that are not this one."""
    import torch

    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to …"),
        OSError(12, "Cannot allocate memory"),
    ):
        assert _is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), OSError(2, "no such file")])
def test_other_errors_are_neither(error: Exception) -> None:
    """A smaller batch, or more room, would not help."""
    assert not _is_out_of_memory(error)
    assert not is_disk_full(error)


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_full_disk(size: int) -> None:
    """Each of them writes with code of its own."""
    import torch

    tensors: dict[str, Any] = {"weights": torch.zeros(size)}
    with pytest.raises(RuntimeError) as by_torch:
        torch.save(tensors, FULL)
    with pytest.raises(OSError, match="No space left") as by_python:
        FULL.write_bytes(b"x" * size)
    for caught in (by_torch, by_python):
        assert is_disk_full(caught.value)
        assert not _is_out_of_memory(caught.value)
