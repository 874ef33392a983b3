"""Files that are made to break their reader: small ones that ask for much, and thousands at random.

What is bounded is counted, not timed: bytes that were allocated at the peak, and items looked at.
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ollama_trainer.errors import BaseModelError, ExportError, GgufError
from ollama_trainer.gguf.architectures import architecture_of
from ollama_trainer.gguf.file import GgufFile, header_bytes, laid_out, read_gguf
from ollama_trainer.gguf.order import ordered_metadata, ordered_tensors
from ollama_trainer.testing import tiny_gguf
from tests.small_gguf import write

MEGABYTE = 1 << 20


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    """Fails if more is allocated at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < n_bytes
    finally:
        tracemalloc.stop()


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key.encode()) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return entry("k", 9, struct.pack("<IQ", kind, count) + items)


def header(n_tensors: int, n_entries: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_entries) + rest


def tensor(name: str, offset: int) -> bytes:
    return text(name.encode()) + struct.pack("<IQIQ", 1, 8, 0, offset)


N = MEGABYTE
#: Files of about a megabyte that are read, each as full as it can be of one thing.
FULL = {
    "empty strings": header(0, 1, array(8, N // 8, bytes(N))),
    "strings of one byte": header(0, 1, array(8, N // 9, text(b"a") * (N // 9))),
    "bytes": header(0, 1, array(0, N, bytes(N))),
    "truth values": header(0, 1, array(7, N, bytes(N))),
    "numbers": header(0, 1, array(10, N // 8, b"\xff" * N)),
    "empty arrays": header(0, 1, array(9, N // 12, struct.pack("<IQ", 0, 0) * (N // 12))),
    "one string": header(0, 1, entry("k", 8, text(b"a" * N))),
    "entries": header(0, 1 << 16, b"".join(entry(f"{i:x}", 0, b"1") for i in range(1 << 16))),
    "tensors": header(
        1 << 14, 0, b"".join(tensor(f"{i:x}", 32 * i) for i in range(1 << 14)) + bytes(N)
    ),
}


@pytest.mark.parametrize("what", FULL)
def test_a_file_costs_a_small_multiple_of_itself(tmp_path: Path, what: str) -> None:
    """Its bytes once as read and once as entries, and up to 16 for a byte of short tensors."""
    path = tmp_path / "full.gguf"
    path.write_bytes(FULL[what])
    with at_most(16 * len(FULL[what]) + MEGABYTE):
        read_gguf(path)


#: (what is said, the beginning of the file)
ENDLESS = [
    ("MiB", header(0, 1, entry("k", 8, struct.pack("<Q", 1 << 36)))),
    ("MiB", header(0, 1, array(8, 1, struct.pack("<Q", 1 << 36)))),
    ("MiB", header(0, 1, array(8, 1 << 20, struct.pack("<Q", 1 << 29)))),
    ("more than 8388608 items", header(0, 1, array(10, 1 << 33, b""))),
    ("more than 8388608 items", header(0, 1, array(8, 1 << 33, b""))),
    ("more than 8388608 items", header(0, 1, array(9, 1 << 33, b""))),
    ("more than 8388608 items", header(0, 1, array(7, (1 << 23) + 1, b""))),
    ("65537 tensors", header((1 << 16) + 1, 0, b"")),
    ("65537 metadata", header(0, (1 << 16) + 1, b"")),
    ("a name of 0 bytes", header(1 << 16, 1 << 16, b"")),
    ("a name of", header(1, 0, struct.pack("<Q", 1 << 36))),
]


@pytest.mark.parametrize(("message", "beginning"), ENDLESS)
def test_a_file_of_holes_is_not_read_to_its_end(
    tmp_path: Path, message: str, beginning: bytes
) -> None:
    """It takes no room to make a file of 1 TB; whatever its header says fits in it."""
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as handle:
        handle.write(beginning)
        handle.truncate(1 << 40)
    with at_most(4 * MEGABYTE), pytest.raises(GgufError, match=message):
        read_gguf(path)


def test_the_padding_that_a_file_asks_for_is_small(tmp_path: Path) -> None:
    """The one number of a header that sizes what is written."""
    aligned = entry("general.alignment", 4, struct.pack("<I", 1 << 16))
    path = tmp_path / "x.gguf"
    path.write_bytes(header(1, 1, aligned + tensor("a", 0)).ljust(1 << 16) + bytes(32))
    with at_most(MEGABYTE):
        file = read_gguf(path)
        assert len(header_bytes(file.metadata, file.tensors, file.alignment)) == 1 << 16


def numbers_in(data: bytes) -> list[tuple[int, int]]:
    """Where a good file's header has its counts, lengths, types, dimensions: (place, bytes)."""
    found = [(4, 4), (8, 8), (16, 8)]
    position = 24
    widths = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def number(width: int) -> int:
        nonlocal position
        found.append((position, width))
        position += width
        return int.from_bytes(data[position - width : position], "little")

    def value(kind: int) -> None:
        nonlocal position
        if kind == 8:
            length = number(8)
            position += length
        elif kind == 9:
            item, count = number(4), number(8)
            for _ in range(count):
                value(item)
        else:
            number(widths[kind])

    n_tensors, n_entries = struct.unpack_from("<QQ", data, 8)
    for _ in range(n_entries):
        value(8)
        value(number(4))
    for _ in range(n_tensors):
        value(8)
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return found


INTERESTING = [
    0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 32, 33, 63, 64, 127, 128, 255, 256, 1 << 15, (1 << 16) - 1,
    1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 48, (1 << 61) - 1,
    1 << 61, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 32, (1 << 64) - 8, (1 << 64) - 1,
]  # fmt: skip


class Seeds:
    """Good files that others are made from."""

    def __init__(self, directory: Path) -> None:
        kinds = ("F32", "Q8_0", "Q4_K", "IQ4_XS")
        paths = [write(directory / f"{kind}.gguf", kind) for kind in kinds]
        paths.append(write(directory / "aligned.gguf", "Q4_0", alignment=64))
        paths.append(directory / "llama.gguf")
        tiny_gguf.write_tiny(paths[-1], chat_template="{{ messages }}")
        self.files = [path.read_bytes() for path in paths]
        self.files.append(header(0, 1, array(9, 2, struct.pack("<IQ3B", 0, 3, 1, 2, 3) * 2)))
        write(directory / "split.gguf", "Q6_K", split_max_tensors=10)
        #: The two files of a model.
        self.parts = [path.read_bytes() for path in sorted(directory.glob("split-*.gguf"))]
        self.files.append(self.parts[0])
        self._numbers = [numbers_in(data) for data in self.files]

    def mutated(self, random: random.Random) -> bytes:
        """One of them, changed once to three times."""
        index = random.randrange(len(self.files))
        data = bytearray(self.files[index])
        for _ in range(random.choice((1, 1, 2, 3))):
            _change(data, random, self._numbers[index], random.choice(self.files))
        return bytes(data)


_CHANGES = ("number",) * 4 + ("bits",) * 4 + ("cut", "splice", "twice", "without")


def _change(
    data: bytearray, random: random.Random, numbers: list[tuple[int, int]], other: bytes
) -> None:
    # Most of a file is weights, which nobody reads here.
    head = min(len(data), numbers[-1][0] + 40)
    start, end = sorted(random.choices(range(head + 1), k=2))
    match random.choice(
        ("number", "number", "number", "bits", "cut", "splice", "twice", "without")
    ):
        case "number":
            place, width = random.choice(numbers)
            data[place : place + width] = _number(random, bytes(data[place : place + width]))
        case "bits":
            for _ in range(random.choice((1, 1, 1, 8))):
                if head:
                    data[random.randrange(head)] ^= 1 << random.randrange(8)
        case "cut":
            del data[random.choice((start, random.randrange(len(data) + 1))) :]
        case "splice":
            data[start:] = other[random.choice((start, random.randrange(len(other)))) :]
        case "twice":
            data[end:end] = data[start:end]
        case "without":
            del data[start:end]


def _number(random: random.Random, old: bytes) -> bytes:
    """Something that overflows, ends too early or too late, or is one off."""
    value = int.from_bytes(old, "little")
    value = random.choice((random.choice(INTERESTING), value + 1, value - 1, 2 * value, value // 2))
    return (value % (1 << 8 * len(old))).to_bytes(len(old), "little")


def check_read(file: GgufFile, directory: Path) -> None:
    """All that it promises is there, and it can be written as a file that reads the same."""
    sizes = [part.path.stat().st_size for part in file.parts]
    with file.open() as source:
        for info in file.tensors:
            start = file.parts[info.part].data_start + info.offset
            assert start + info.n_bytes <= sizes[info.part]
            assert len(source.read(info, 0, info.n_bytes)) == info.n_bytes
    for item in file.metadata.values():
        assert item.value is not None
    infos = laid_out(ordered_tensors(file.tensors), file.alignment)
    entries = ordered_metadata(file.metadata, infos)
    again = directory / "again.gguf"
    room = bytes(infos[-1].offset + infos[-1].n_bytes if infos else 0)
    again.write_bytes(header_bytes(entries, infos, file.alignment) + room)
    after = read_gguf(again)
    assert (after.metadata, after.tensors) == (entries, infos)
    architecture_of(file)


def fuzz(directory: Path, n_files: int, seed: int) -> tuple[int, int]:
    """How many of `n_files` files were read, and how many were refused."""
    seeds, order = Seeds(directory), random.Random(seed)
    path = directory / "model-00001-of-00002.gguf"
    path.with_name("model-00002-of-00002.gguf").write_bytes(seeds.parts[1])
    read = refused = 0
    tracemalloc.start()
    try:
        for index in range(n_files):
            data = seeds.mutated(order)
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                file = read_gguf(path)
            except GgufError:
                refused += 1
                continue
            finally:
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak < 16 * len(data) + MEGABYTE // 2, f"file {index} of seed {seed}"
            read += 1
            try:
                check_read(file, directory)
            except (BaseModelError, ExportError):
                continue
    finally:
        tracemalloc.stop()
    return read, refused


@pytest.mark.parametrize("n_files", [2_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_files_break_nothing(tmp_path: Path, n_files: int) -> None:
    """Read or refused, and no other error; both happen often, or nothing is tried."""
    read, refused = fuzz(tmp_path, n_files, seed=1)
    assert read > n_files / 10
    assert refused > n_files * 3 / 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_hundred_thousand_files_break_nothing(tmp_path: Path, seed: int) -> None:
    """As above, with other seeds."""
    fuzz(tmp_path, 10_000, seed)
