"""One thread in each of numpy's matrix products, where threads of our own share out the work.

A product on several threads adds up in another order with each number of them, and threads below
threads wait for one another. OpenBLAS, which numpy's wheels bring along, is told so here; another
library may use as many threads as it likes, which costs time, and equal bytes on unequal machines.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

#: As numpy's wheels and other builds name the same two functions.
_NAMES = (
    "scipy_openblas_{}_num_threads64_",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, a product runs on the thread that asks for it."""
    found = _openblas()
    if found is None:
        yield
        return
    ask, tell = found
    before = ask()
    tell(1)
    try:
        yield
    finally:
        tell(before)


@cache
def _openblas() -> tuple[Any, Any] | None:
    """The functions that ask for and set OpenBLAS's number of threads."""
    package = Path(np.__file__).parent
    # Wheels for Linux and Windows keep it beside numpy, those for macOS within.
    for folder in (package.with_name("numpy.libs"), package / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            library = ctypes.CDLL(str(path))
            for name in _NAMES:
                if hasattr(library, name.format("set")):
                    ask = getattr(library, name.format("get"))
                    tell = getattr(library, name.format("set"))
                    tell.restype = None
                    return ask, tell
    return None
