"""GGUF headers: read with every byte in its place, and nothing believed that the size denies."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import GgufError
from ollama_trainer.gguf.file import (
    TYPE_BY_NAME,
    GgufFile,
    TensorInfo,
    header_bytes,
    laid_out,
    read_gguf,
    string_entry,
    uint32_entry,
)
from ollama_trainer.testing import tiny_gguf

#: Every type of metadata that the format has, with lists of each, empty ones too.
METADATA: dict[str, tuple[int, list[Any]]] = {
    "uint8": (0, [0, 255]), "int8": (1, [-128, 127]), "uint16": (2, [0, 65535]),
    "int16": (3, [-32768, 32767]), "uint32": (4, [0, 2**32 - 1]), "int32": (5, [-(2**31), 5]),
    "float32": (6, [0.5, -1.25]), "bool": (7, [True, False]), "string": (8, ["", "ünï\n🙂"]),
    "uint64": (10, [0, 2**64 - 1]), "int64": (11, [-(2**63), 7]), "float64": (12, [0.1, -1e300]),
}  # fmt: skip


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def gguf(
    path: Path,
    *,
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    tensors: tuple[bytes, ...] = (tensor("a"),),
    entries: tuple[bytes, ...] = (),
    counts: tuple[int, int] | None = None,
    data: int = 1024,
) -> Path:
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    head = magic + version + struct.pack("<QQ", n_tensors, n_entries)
    path.write_bytes(head + b"".join((*entries, *tensors)) + b"\1" * data)
    return path


def rewritten(file: GgufFile) -> bytes:
    return header_bytes(file.metadata, file.tensors, file.alignment)


def written_by_gguf(path: Path, alignment: int | None = None) -> Path:
    """A file with every type of metadata and several of tensors, from llama.cpp's own writer."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, (kind, values) in METADATA.items():
        value_type = GGUFValueType(kind)
        for index, value in enumerate(values):
            writer.add_key_value(f"test.{name}.{index}", value, value_type)
        writer.add_key_value(f"test.{name}.list", values, GGUFValueType.ARRAY, sub_type=value_type)
    writer.add_array("test.nested", [[1, 2], [3]])
    for name, shape in (("one", (5,)), ("two", (3, 7)), ("three", (2, 3, 4))):
        writer.add_tensor(name, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    writer.add_tensor("half", np.ones((3, 3), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_of_smollm2_comes_back_byte_for_byte() -> None:
    """What nobody means to change must not change: template, tokens, merges, hyperparameters."""
    file = read_gguf(resolve_base("smollm2").gguf)
    assert file.path.read_bytes()[: file.data_start] == rewritten(file)
    assert file.architecture == "llama"
    assert file.hyperparameter("block_count") == 30
    assert laid_out(file.tensors, file.alignment) == file.tensors


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_every_type_of_metadata_comes_back(tmp_path: Path, alignment: int | None) -> None:
    """A base may hold keys that nobody here has heard of."""
    file = read_gguf(written_by_gguf(tmp_path / "all.gguf", alignment))
    assert file.path.read_bytes()[: file.data_start] == rewritten(file)
    assert file.alignment == (alignment or 32)
    for name, (_, values) in METADATA.items():
        for index, value in enumerate(values):
            assert file.get(f"test.{name}.{index}") == value
        assert file.get(f"test.{name}.list") == values
    assert file.get("test.nested") == [[1, 2], [3]]


def test_tensors_are_where_the_header_says(tmp_path: Path) -> None:
    """An offset that is counted from the wrong place reads other weights."""
    file = read_gguf(written_by_gguf(tmp_path / "all.gguf"))
    info = file.by_name["three"]
    assert (info.shape, info.row_length, info.n_rows, info.n_bytes) == ((4, 3, 2), 4, 6, 96)
    start = file.data_start + info.offset
    data = file.path.read_bytes()[start : start + info.n_bytes]
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), np.arange(24))


def test_both_readers_of_this_repository_agree() -> None:
    """The one for tests shares no code with this one."""
    path = resolve_base("smollm2").gguf
    ours, other = read_gguf(path), tiny_gguf.read(path)
    assert {key: item.raw for key, item in ours.metadata.items()} == dict(other.entries)
    assert {key: item.value for key, item in ours.metadata.items()} == dict(other.values)
    assert ours.data_start == other.data_start
    assert [
        (info.name, info.shape, info.type.name, info.offset, info.n_bytes) for info in ours.tensors
    ] == [(i.name, i.shape, i.type_name, i.offset, i.n_bytes) for i in other.tensors]


def test_text_that_is_no_utf8_survives(tmp_path: Path) -> None:
    """Token lists of real models hold broken bytes."""
    broken = struct.pack("<Q", 2) + b"\xff\xfe"
    entries = (entry("a", 8, broken), entry("b", 9, struct.pack("<IQ", 8, 1) + broken))
    file = read_gguf(gguf(tmp_path / "x.gguf", entries=entries))
    assert (file.get("a"), file.get("b")) == ("\udcff\udcfe", ["\udcff\udcfe"])
    assert file.path.read_bytes().startswith(rewritten(file).rstrip(b"\0"))


def test_new_entries_read_back(tmp_path: Path) -> None:
    """Written by hand, byte by byte: an error would be found only in Ollama."""
    metadata = {"s": string_entry("s", "é"), "n": uint32_entry("n", 2**32 - 1)}
    infos = laid_out([TensorInfo("t", (32, 3), TYPE_BY_NAME["Q8_0"], 0)], 32)
    path = tmp_path / "new.gguf"
    path.write_bytes(header_bytes(metadata, infos, 32) + bytes(infos[0].n_bytes))
    other = tiny_gguf.read(path)
    assert dict(other.values) == {"s": "é", "n": 2**32 - 1}
    assert read_gguf(path).metadata == metadata


def test_tensors_are_laid_out_one_after_another() -> None:
    """llama.cpp refuses a file whose offsets are not those that it computes itself."""
    kind = TYPE_BY_NAME["F32"]
    infos = [TensorInfo(name, (n,), kind, 999) for name, n in (("a", 1), ("b", 8), ("c", 9))]
    assert [info.offset for info in laid_out(infos, 32)] == [0, 32, 64]


HOSTILE = {
    "an empty file": b"",
    "only the magic": b"GGUF",
    "no counts": b"GGUF" + struct.pack("<I", 3),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_end_at_once(tmp_path: Path, case: str) -> None:
    """What an interrupted download leaves."""
    path = tmp_path / "x.gguf"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(GgufError, match=r"x\.gguf"):
        read_gguf(path)


def aligned(kind: int, value: bytes) -> bytes:
    return entry("general.alignment", kind, value)


HUGE = 2**62
STRING = text("v")
#: (what the message says, how the file differs from a good one)
LIES: list[tuple[str, dict[str, Any]]] = [
    ("begin with GGUF", {"magic": b"GGML"}),
    ("version 1", {"version": struct.pack("<I", 1)}),
    ("version 4;", {"version": struct.pack("<I", 4)}),
    ("version 0;", {"version": struct.pack("<I", 0)}),
    ("is big-endian", {"version": struct.pack(">I", 3)}),
    (f"{HUGE} tensors", {"counts": (HUGE, 0)}),
    (f"{HUGE} metadata", {"counts": (1, HUGE)}),
    ("1000 tensors", {"counts": (1000, 0), "data": 0}),
    ("100 metadata", {"counts": (0, 100), "data": 1024}),
    ("past its end", {"tensors": (tensor("a" * 9),) * 30, "counts": (31, 0), "data": 4}),
    ("stands twice", {"entries": (entry("k", 8, STRING), entry("k", 8, STRING))}),
    ("have one name", {"tensors": (tensor("a"), tensor("a", offset=128))}),
    ("ends at byte", {"tensors": (tensor("a", (10**6,)),)}),
    ("ends at byte", {"tensors": (tensor("a", offset=2**63),)}),
    ("'b' overlaps", {"tensors": (tensor("a"), tensor("b", offset=96))}),
    ("'a' overlaps", {"tensors": (tensor("a", offset=96), tensor("b"))}),
    ("overlaps", {"tensors": (tensor("a"), tensor("b"))}),
    ("begins at byte 33", {"tensors": (tensor("a", offset=33),)}),
    ("has the shape", {"tensors": (tensor("a", (2**40, 2**40)),)}),
    (r"has the shape \(33,\)", {"tensors": (tensor("a", (33,), kind=2),)}),
    ("has 0 dimensions", {"tensors": (tensor("a", ()),)}),
    ("has 5 dimensions", {"tensors": (tensor("a", (1,) * 5),)}),
    ("ggml type 99", {"tensors": (tensor("a", kind=99),)}),
    ("array of", {"entries": (entry("k", 9, struct.pack("<IQ", 4, HUGE)),)}),
    ("array of", {"entries": (entry("k", 9, struct.pack("<IQ", 8, HUGE)),)}),
    ("unknown type 9", {"entries": (entry("k", 9, struct.pack("<IQ", 9, 1) * 5),)}),
    ("array of the unknown type 13", {"entries": (entry("k", 9, struct.pack("<IQ", 13, 0)),)}),
    ("unknown type 13", {"entries": (entry("k", 13, b""),)}),
    ("a name of", {"tensors": (struct.pack("<Q", HUGE),)}),
    ("a name of 0", {"tensors": (tensor(""),)}),
    ("a name of 64", {"tensors": (tensor("a" * 64),)}),
    ("a name of 0", {"entries": (entry("", 8, STRING),)}),
    ("a name of 65536", {"entries": (entry("k" * 65536, 8, STRING),)}),
    (r"'a\\x00b' holds a zero byte", {"tensors": (tensor("a\0b"),)}),
    (r"b'\\xe9' is not UTF-8", {"tensors": (tensor("e").replace(b"e", b"\xe9"),)}),
    ("past its end", {"entries": (entry("k", 8, struct.pack("<Q", HUGE)),)}),
    ("past its end", {"entries": (entry("k", 9, struct.pack("<IQQ", 8, 1, HUGE)),)}),
    ("past its end", {"entries": (entry("k", 9, struct.pack("<IQQ", 8, 2, 1020)),)}),
    ("alignment of 0", {"entries": (aligned(4, struct.pack("<I", 0)),)}),
    ("alignment of 48", {"entries": (aligned(4, struct.pack("<I", 48)),)}),
    ("alignment of 131072", {"entries": (aligned(4, struct.pack("<I", 1 << 17)),)}),
    ("alignment of 'v'", {"entries": (aligned(8, STRING),)}),
    ("alignment of 32", {"entries": (aligned(10, struct.pack("<Q", 32)),)}),
    ("alignment of -32", {"entries": (aligned(5, struct.pack("<i", -32)),)}),
    ("alignment of a list of 3", {"entries": (aligned(9, struct.pack("<IQ3B", 0, 3, 1, 1, 1)),)}),
    ("alignment of True", {"entries": (aligned(7, b"\1"),)}),
    ("architecture of 8", {"entries": (entry("general.architecture", 4, struct.pack("<I", 8)),)}),
    ("architecture of ''", {"entries": (entry("general.architecture", 8, text("")),)}),
    (r"of 'a\\nb'", {"entries": (entry("general.architecture", 8, text("a\nb")),)}),
    ("neither 0 nor 1", {"entries": (entry("k", 7, b"\2"),)}),
    ("neither 0 nor 1", {"entries": (entry("k", 9, struct.pack("<IQ3B", 7, 3, 1, 0, 255)),)}),
    (r"has the shape \(32, 0\)", {"tensors": (tensor("a", (32, 0)),)}),
    (r"has the shape \(0,\)", {"tensors": (tensor("a", (0,)),)}),
]


@pytest.mark.parametrize(("message", "changes"), LIES)
def test_headers_that_lie(tmp_path: Path, message: str, changes: dict[str, Any]) -> None:
    """Each would make the merge read outside the file, lose a tensor or eat all memory."""
    with pytest.raises(GgufError, match=message):
        read_gguf(gguf(tmp_path / "x.gguf", **changes))


def test_version_2_is_read(tmp_path: Path) -> None:
    """Its layout is that of version 3, and older bases have it."""
    path = gguf(tmp_path / "x.gguf", version=struct.pack("<I", 2))
    assert [info.name for info in read_gguf(path).tensors] == ["a"]


@pytest.mark.parametrize("name", ["missing.gguf", ".", "pipe"])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    """A wrong path is the commonest mistake of all; a pipe would be waited for without end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GgufError, match="cannot be read"):
        read_gguf(tmp_path / name)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written_by_gguf(tmp_path_factory.mktemp("small") / "small.gguf").read_bytes()


def outcome(path: Path, data: bytes) -> GgufFile | None:
    """Reads `data` as a file; None where it was refused. Any other error fails the test."""
    path.write_bytes(data)
    try:
        file = read_gguf(path)
    except GgufError:
        return None
    for info in file.tensors:
        assert file.data_start + info.offset + info.n_bytes <= len(data)
    return file


QUICK = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(st.data())
def test_a_cut_file_is_refused(tmp_path: Path, small: bytes, data: st.DataObject) -> None:
    """Wherever a copy stopped, the header no longer fits the size."""
    # The last tensor's padding may be missing without harm.
    end = data.draw(st.integers(0, len(small) - 32))
    assert outcome(tmp_path / "cut.gguf", small[:end]) is None


@QUICK
@given(st.data())
def test_changed_bytes_never_break_the_reader(
    tmp_path: Path, small: bytes, data: st.DataObject
) -> None:
    """Files come from anywhere: refused or read, but no other error and no read outside."""
    changed = bytearray(small)
    header = st.integers(0, len(small) - 200)
    for position, byte in data.draw(
        st.lists(st.tuples(header, st.integers(0, 255)), min_size=1, max_size=8)
    ):
        changed[position] = byte
    outcome(tmp_path / "changed.gguf", bytes(changed))


@QUICK
@given(st.binary(max_size=300))
def test_noise_never_breaks_the_reader(tmp_path: Path, noise: bytes) -> None:
    """As above, for what follows right after a valid beginning."""
    outcome(tmp_path / "noise.gguf", b"GGUF\x03\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0" + noise)
