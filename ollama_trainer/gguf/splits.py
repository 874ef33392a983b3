"""Models in several GGUF files: name-00001-of-00003.gguf and so on, as llama.cpp splits them.

The first file has the metadata, all of them some of the tensors, and three keys of each say which
part it is of how many. These keys belong to the files, not to the model, and go with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ollama_trainer.errors import GgufError
from ollama_trainer.gguf.values import shown

if TYPE_CHECKING:
    from ollama_trainer.gguf.file import GgufFile

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = (NUMBER, COUNT, TENSORS)
#: Each is held open while tensors are read.
_MAX_PARTS = 512
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_REMEDY = "Put all parts of the model into one directory, under the names that they were made with."


def is_part(file: GgufFile) -> bool:
    """Whether the file is one of several that make a model."""
    return bool(file.get(COUNT, 1) not in (0, 1))


def joined(file: GgufFile, read_one: Callable[[Path], GgufFile]) -> GgufFile:
    """The whole model that a file is a part of.

    Args:
        read_one: reads one file's header.

    Raises:
        GgufError: parts are missing, or not of one model.
    """
    paths = _paths_of_parts(file)
    parts = [_read_part(index, path, file, read_one) for index, path in enumerate(paths)]
    first = parts[0]
    for part in parts[1:]:
        _check_same_model(first, part)
    _check_tensors(parts)
    return replace(
        first,
        metadata={key: item for key, item in first.metadata.items() if key not in SPLIT_KEYS},
        tensors=tuple(
            replace(tensor, part=index)
            for index, part in enumerate(parts)
            for tensor in part.tensors
        ),
        more_parts=tuple(part.parts[0] for part in parts[1:]),
    )


def _paths_of_parts(file: GgufFile) -> list[Path]:
    count, name = file.get(COUNT), _NAME.fullmatch(file.path.name)
    if not isinstance(count, int) or not 2 <= count <= _MAX_PARTS:
        raise GgufError(
            f"{file.path} says that it is one of {shown(count)} files",
            f"Fetch the file again; at most {_MAX_PARTS} files can make a model.",
        )
    if name is None or int(name[3]) != count:
        raise GgufError(
            f"{file.path} is one of {count} files of a model, and its name does not say so",
            f"Give it back its name, which ends in -0000N-of-{count:05}.gguf, with N from 1.",
        )
    return [
        file.path.with_name(f"{name[1]}-{index:05}-of-{count:05}.gguf")
        for index in range(1, count + 1)
    ]


def _read_part(
    index: int, path: Path, known: GgufFile, read_one: Callable[[Path], GgufFile]
) -> GgufFile:
    if not path.is_file():
        raise GgufError(f"{path} is missing, which {known.path.name} needs", _REMEDY)
    part = known if path == known.path else read_one(path)
    for key, expected in ((COUNT, known.get(COUNT)), (NUMBER, index)):
        if part.get(key) != expected:
            raise GgufError(
                f"{path} has the {key} {shown(part.get(key))} where {expected} is expected",
                _REMEDY,
            )
    return part


def _check_same_model(first: GgufFile, part: GgufFile) -> None:
    """Later parts have few keys besides their own, mostly none; these must be the first one's."""
    for key, entry in part.metadata.items():
        if key != NUMBER and first.metadata.get(key, entry) != entry:
            raise GgufError(
                f"{part.path} is of another model than {first.path.name}: its {key[:64]!r} differs",
                _REMEDY,
            )


def _check_tensors(parts: Sequence[GgufFile]) -> None:
    holder: dict[str, GgufFile] = {}
    for part in parts:
        for tensor in part.tensors:
            other = holder.setdefault(tensor.name, part)
            if other is not part:
                raise GgufError(
                    f"{other.path} and {part.path.name} both hold the tensor {tensor.name!r}",
                    _REMEDY,
                )
    expected = parts[0].get(TENSORS)
    if expected != len(holder):
        raise GgufError(
            f"The {len(parts)} files of {parts[0].path} hold {len(holder)} tensors,"
            f" and {shown(expected)} are expected",
            _REMEDY,
        )
