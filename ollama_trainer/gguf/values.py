"""Metadata values: passed over in a file that nobody vouches for, and decoded from their bytes.

Most values are never looked at, and lists of tokens are long. So a file's values are checked for
their form when it is read, without being made, and decoded when somebody asks for them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from ollama_trainer.errors import GgufError

STRING, ARRAY, UINT32 = 8, 9, 4
_BOOL = 7
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_WIDTHS = {kind: struct.calcsize("<" + letter) for kind, letter in _SCALARS.items()}
_ARRAY_HEAD = struct.Struct("<IQ")
_LENGTH = struct.Struct("<Q")
_UINT32 = struct.Struct("<I")
#: The largest vocabularies make headers of 20 MB, and a whole tokenizer.json as much again.
_MAX_HEADER_BYTES = 1 << 28
#: Items of all lists: the largest vocabularies have a quarter of a million tokens with a score and
#: a type each, and half a million merges. An item costs a fraction of a microsecond, and up to
#: 60 bytes once it is decoded.
_MAX_ITEMS = 1 << 23
_MAX_ARRAY_DEPTH = 4
_READ_BYTES = 1 << 20


class HeaderReader:
    """Goes through a file's header, which begins at its first byte.

    Nothing is read or allocated that the size of the file, or a bound far above what any model
    needs, does not allow.
    """

    def __init__(self, handle: BinaryIO, size: int, path: Path) -> None:
        self._handle, self._size, self._path = handle, size, path
        self._data = bytearray()
        self._items_left = _MAX_ITEMS
        self.position = 0

    @property
    def n_left(self) -> int:
        """Bytes from here to the end of the file."""
        return self._size - self.position

    def take(self, n_bytes: int) -> bytes:
        start = self.position
        self._pass(n_bytes)
        return self.since(start)

    def since(self, start: int) -> bytes:
        """The bytes from `start` to here."""
        return bytes(memoryview(self._data)[start : self.position])

    def uint32(self) -> int:
        return self._number(_UINT32)

    def uint64(self) -> int:
        return self._number(_LENGTH)

    def _number(self, form: struct.Struct) -> int:
        start = self.position
        self._pass(form.size)
        return int(form.unpack_from(self._data, start)[0])

    def name(self, limit: int) -> str:
        """The name of a key or a tensor: short text, and as long in C as it is here."""
        length = self.uint64()
        if not 1 <= length <= limit:
            raise self.damaged(f"a name of {length} bytes")
        data = self.take(length)
        try:
            name = data.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"the name {data[:64]!r} is not UTF-8") from error
        if "\0" in name:
            raise self.damaged(f"the name {name[:64]!r} holds a zero byte")
        return name

    def pass_value(self, kind: int, depth: int = 0) -> None:
        """Goes past a value and checks its form."""
        if kind == STRING:
            self._pass(self.uint64())
        elif kind in _WIDTHS:
            self._pass_numbers(kind, 1)
        elif kind == ARRAY and depth < _MAX_ARRAY_DEPTH:
            self._pass_array(depth)
        else:
            raise self.damaged(f"a metadata value of the unknown type {kind}")

    def _pass_array(self, depth: int) -> None:
        kind, count = self.uint32(), self.uint64()
        smallest = _WIDTHS.get(kind, _LENGTH.size)
        if count * smallest > self.n_left:
            raise self.damaged(f"an array of {count} items does not fit into the file")
        self._items_left -= count
        if self._items_left < 0:
            raise self.damaged(f"arrays of more than {_MAX_ITEMS} items")
        if kind in _WIDTHS:
            self._pass_numbers(kind, count)
        elif kind == STRING:
            self._pass_strings(count)
        elif kind == ARRAY:
            for _ in range(count):
                self.pass_value(kind, depth + 1)
        else:
            raise self.damaged(f"an array of the unknown type {kind}")

    def _pass_numbers(self, kind: int, count: int) -> None:
        start = self.position
        self._pass(count * _WIDTHS[kind])
        if kind == _BOOL and self.since(start).strip(b"\0\1"):
            raise self.damaged("a truth value that is neither 0 nor 1")

    def _pass_strings(self, count: int) -> None:
        position, data, length_at = self.position, self._data, _LENGTH.unpack_from
        for _ in range(count):
            if position + _LENGTH.size > len(data):
                self._fill(position + _LENGTH.size)
            position += _LENGTH.size + length_at(data, position)[0]
        self._fill(position)
        self.position = position

    def _pass(self, n_bytes: int) -> None:
        end = self.position + n_bytes
        if end > len(self._data):
            self._fill(end)
        self.position = end

    def _fill(self, end: int) -> None:
        """Reads on until the first `end` bytes of the file are there."""
        if end > self._size:
            raise self.damaged(f"the header asks for {end - self._size} bytes past its end")
        if end > _MAX_HEADER_BYTES:
            raise self.damaged(f"a header of more than {_MAX_HEADER_BYTES >> 20} MiB")
        have = len(self._data)
        if end <= have:
            return
        self._data += self._handle.read(min(max(end, have + _READ_BYTES), self._size) - have)
        if len(self._data) < end:
            raise self.damaged("it ended while it was read")

    def damaged(self, what: str) -> GgufError:
        return GgufError(
            f"{self._path} is not a whole GGUF file: {what}", "Fetch or make the file again."
        )


def kind_of(raw: bytes) -> int:
    """The type of an entry's value."""
    return int.from_bytes(raw[(start := _kind_at(raw)) : start + 4], "little")


def _kind_at(raw: bytes) -> int:
    return _LENGTH.size + int(_LENGTH.unpack_from(raw)[0])


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return repr(value[:64] if isinstance(value, str) else value)


def decoded(raw: bytes) -> Any:
    """The value of an entry (key, type, value) whose form has been checked.

    Numbers, truth values, text and lists of them. Bytes that are no UTF-8 become surrogates, since
    token lists of real models hold broken text.
    """
    return _value(raw, _kind_at(raw) + 4, kind_of(raw))[0]


def _value(data: bytes, position: int, kind: int) -> tuple[Any, int]:
    """A value and where the next one begins."""
    if kind == STRING:
        (text,), position = _strings(data, position, 1)
        return text, position
    if kind != ARRAY:
        value = struct.unpack_from("<" + _SCALARS[kind], data, position)[0]
        return value, position + _WIDTHS[kind]
    item, count = _ARRAY_HEAD.unpack_from(data, position)
    position += _ARRAY_HEAD.size
    if item == STRING:
        return _strings(data, position, count)
    if item in _SCALARS:
        values = list(struct.unpack_from(f"<{count}{_SCALARS[item]}", data, position))
        return values, position + count * _WIDTHS[item]
    values = []
    for _ in range(count):
        value, position = _value(data, position, item)
        values.append(value)
    return values, position


def _strings(data: bytes, position: int, count: int) -> tuple[list[str], int]:
    texts, length_at = [], _LENGTH.unpack_from
    for _ in range(count):
        start = position + _LENGTH.size
        position = start + length_at(data, position)[0]
        texts.append(str(data[start:position], "utf-8", "surrogateescape"))
    return texts, position


def packed_text(text: str) -> bytes:
    """A string as it stands in a file; surrogates become the bytes that they were read from."""
    data = text.encode("utf-8", "surrogateescape")
    return _LENGTH.pack(len(data)) + data


def as_c_reads(raw: bytes) -> bytes:
    """The same entry with every text ended before its first zero byte."""
    start, kind, count = _kind_at(raw) + 4, kind_of(raw), 1
    if kind == ARRAY:
        kind, count = _ARRAY_HEAD.unpack_from(raw, start)
        start += _ARRAY_HEAD.size
    # The lengths of texts under 256 bytes have seven zero bytes each. With no other zero bytes
    # a list, which may be long, need not be looked through.
    if kind != STRING or raw.count(0, start) == (_LENGTH.size - 1) * count:
        return raw
    texts, _ = _strings(raw, start, count)
    if not any("\0" in text for text in texts):
        return raw
    return raw[:start] + b"".join(packed_text(text.partition("\0")[0]) for text in texts)
