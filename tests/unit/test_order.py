"""Files as llama-quantize writes them, with llama-quantize itself as the judge.

Some versions of Ollama have it copy every file that is uploaded. Where the copy is another file,
the upload stays behind as an orphan, and what is served has another digest than what was published.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from ollama_trainer.bases import resolve_base
from ollama_trainer.errors import GgufError
from ollama_trainer.gguf.file import Entry, header_bytes, read_gguf
from ollama_trainer.gguf.order import FILE_TYPES, ordered_metadata
from tests.small_gguf import copied, digest, rewritten, write


@pytest.mark.parametrize("seed", range(8))
def test_what_is_written_is_what_llama_quantize_writes(tmp_path: Path, seed: int) -> None:
    """Both ways: our file is its copy, and its copy of our file is our file."""
    source = write(tmp_path / "in.gguf", seed=seed)
    ours = rewritten(read_gguf(source), tmp_path / "ours.gguf")
    assert digest(source) != digest(ours)
    assert digest(copied(source)) == digest(ours)
    assert digest(copied(ours)) == digest(ours)


@pytest.mark.parametrize("kind", sorted(FILE_TYPES.keys() - {"F32", "F16", "BF16"}))
def test_tensors_of_every_type_stay_in_place(tmp_path: Path, kind: str) -> None:
    """Where a tensor lies follows from the sizes of those before it."""
    source = write(tmp_path / "in.gguf", kind, file_type=None)
    ours = rewritten(read_gguf(source), tmp_path / "ours.gguf")
    assert digest(copied(ours)) == digest(ours)
    assert read_gguf(ours).get("general.file_type") == FILE_TYPES[kind]


@pytest.mark.parametrize("kind", sorted(FILE_TYPES.keys() - {"F16", "BF16"}))
def test_a_file_without_a_type_is_called_what_llama_cpp_calls_it(tmp_path: Path, kind: str) -> None:
    """Ollama shows the type to people, and calls it unknown with llama.cpp's mark of a guess."""
    source = write(tmp_path / "in.gguf", kind, file_type=None)
    ours = ordered_metadata(read_gguf(source).metadata, read_gguf(source).tensors)
    key = b"general.file_type" + struct.pack("<I", 4)
    (guess,) = struct.unpack("<I", copied(source).read_bytes().partition(key)[2][:4])
    assert guess == 1024 | ours["general.file_type"].value


def test_the_type_of_a_file_can_be_given(tmp_path: Path) -> None:
    """A base of Q4_K whose tensors become Q8_0 is a base of Q4_K no more."""
    source = write(tmp_path / "in.gguf", file_type=15)
    ours = rewritten(read_gguf(source), tmp_path / "ours.gguf", file_type=7)
    assert read_gguf(ours).get("general.file_type") == 7
    assert digest(copied(ours)) == digest(ours)


def test_smollm2_keeps_its_digest_once_it_was_rewritten(tmp_path: Path) -> None:
    """The real base, of another order: from then on it can be uploaded under its own digest."""
    base = read_gguf(resolve_base("smollm2").gguf)
    ours = rewritten(base, tmp_path / "ours.gguf")
    assert digest(ours) != digest(base.path)
    assert digest(copied(ours)) == digest(ours)
    after = read_gguf(ours)
    assert {key: after.metadata[key] for key in base.metadata} == dict(base.metadata)


def with_entries(path: Path, more: Mapping[str, bytes]) -> Path:
    """The same file with further entries, written by hand."""
    file = read_gguf(path)
    entries = dict(file.metadata)
    for key, value in more.items():
        entries[key] = Entry.of(struct.pack("<Q", len(key)) + key.encode() + value)
    data = path.read_bytes()[file.data_start :]
    path.write_bytes(header_bytes(entries, file.tensors, file.alignment) + data)
    return path


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


LISTS = {
    "a zero byte in text": {"test.zero": struct.pack("<I", 8) + text(b"be\0fore")},
    "a zero byte in a list": {
        "test.list": struct.pack("<IIQ", 9, 8, 3) + text(b"a\0") + text(b"") + text(b"c\0d")
    },
    "long texts": {"test.list": struct.pack("<IIQ", 9, 8, 2) + text(b"a" * 999) + text(b"b" * 256)},
    "empty lists": {
        f"test.empty.{kind}": struct.pack("<IIQ", 9, kind, 0) for kind in range(13) if kind != 9
    },
    "keys of a split file": {"split.count": struct.pack("<IH", 2, 0)},
    "an old version": {"general.quantization_version": struct.pack("<II", 4, 1)},
    "the usual alignment": {"general.alignment": struct.pack("<II", 4, 32)},
}


@pytest.mark.parametrize("case", LISTS)
def test_what_llama_quantize_changes_is_changed(tmp_path: Path, case: str) -> None:
    """Few files have these, but whose has, has them in every run."""
    source = with_entries(write(tmp_path / "in.gguf"), LISTS[case])
    ours = rewritten(read_gguf(source), tmp_path / "ours.gguf")
    assert digest(copied(source)) == digest(ours)
    assert digest(copied(ours)) == digest(ours)


def test_a_dimension_of_one_is_written_as_llama_quantize_writes_it(tmp_path: Path) -> None:
    """A stack of one expert, say; the bytes are those of the matrix."""
    kind = struct.pack("<I", 0)
    source = write(tmp_path / "in.gguf")
    data = source.read_bytes()
    before = struct.pack("<I2Q", 2, 256, 1) + kind
    assert before in data
    source.write_bytes(data.replace(before, struct.pack("<I2Q", 2, 1, 256) + kind, 1))
    ours = rewritten(read_gguf(source), tmp_path / "ours.gguf")
    shapes = [tensor.shape for tensor in read_gguf(ours).tensors]
    assert (256,) in shapes
    assert (1, 256) in shapes
    assert digest(copied(ours)) == digest(ours)


@pytest.mark.parametrize("value", [struct.pack("<Iq", 11, -1), struct.pack("<I", 8) + text(b"q")])
def test_a_type_that_is_no_number_is_refused(tmp_path: Path, value: bytes) -> None:
    """llama.cpp refuses it without saying which key it is."""
    source = with_entries(write(tmp_path / "in.gguf"), {"general.file_type": value})
    file = read_gguf(source)
    with pytest.raises(GgufError, match=r"general\.file_type is"):
        ordered_metadata(file.metadata, file.tensors)
