"""from_feedback: rows as the app writes them, decoded exactly once, and bad ones told by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_trainer.errors import DatasetError
from ollama_trainer.formats.feedback import decode_once, read
from ollama_trainer.records import Dataset

GOOD = (
    r'{"targetType":"agent","targetId":"a1","executionId":"r1","input":"\"hello\"",'
    r'"output":"\"hi\"","label":"good","notes":null,"createdAt":1767225600000}'
)
BAD = (
    r'{"targetType":"agent","targetId":"a1","executionId":"r2",'
    r'"input":"{\"pageSnapshot\":\"<h1>\"}","output":"{\"action\":\"click\"}","label":"bad",'
    r'"notes":"wrong button","createdAt":1767225600001}'
)


def row(value: Any = '"q"', output: Any = '"a"', label: Any = "good", **more: Any) -> str:
    """A line of the file; `value` and `output` are put in as they are."""
    fields = {"input": value, "output": output, "label": label, **more}
    return json.dumps(fields, ensure_ascii=False)


def read_bytes(tmp_path: Path, data: bytes) -> Dataset:
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(data)
    return read(path)


def read_lines(tmp_path: Path, *lines: str) -> Dataset:
    return read_bytes(tmp_path, "".join(f"{line}\n" for line in lines).encode())


def pairs(data: Dataset) -> list[tuple[str, str]]:
    return [(example.prompt, example.completion) for example in data.examples]


def test_the_rows_of_the_contract(tmp_path: Path) -> None:
    """The very lines that the app was seen to write."""
    data = read_lines(tmp_path, GOOD, BAD, BAD.replace('"bad"', '"good"'))
    assert pairs(data) == [
        ("hello", "hi"),
        ('{"pageSnapshot":"<h1>"}', '{"action":"click"}'),
    ]
    assert [example.line for example in data.examples] == [1, 3]
    assert data.rows_read == 3
    assert data.dropped == {"labelled bad": (2,)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('"hello"', "hello"),
        (r'"\"quoted\""', '"quoted"'),
        (r'"{\"a\": 1}"', '{"a": 1}'),
        ('{"b": 1, "a": [1, 2]}', '{"a":[1,2],"b":1}'),
        ('{"ü": "é"}', '{"ü":"é"}'),
        ("[1,  2]", "[1,2]"),
        ("42", "42"),
        ("007", "007"),
        ("1.50", "1.5"),
        ("true", "true"),
        ("null", "null"),
        ("not JSON", "not JSON"),
        ('{"cut": ', '{"cut": '),
        ('"open', '"open'),
        ("", ""),
        ({"b": 1, "a": "x"}, '{"a":"x","b":1}'),
        (["x"], '["x"]'),
        (42, "42"),
        (0.5, "0.5"),
        (True, "true"),
        (None, "null"),
        ("  padded  ", "  padded  "),
        ('"  padded  "', "  padded  "),
    ],
)
def test_decoded_exactly_once(value: Any, text: str) -> None:
    """Twice would eat people's quotes; not at all would teach the model to speak JSON."""
    assert decode_once(value) == text


@given(st.text())
def test_any_text_comes_through(text: str) -> None:
    """What a person typed is what is trained on, whatever characters it has."""
    for ascii_only in (True, False):
        assert decode_once(json.dumps(text, ensure_ascii=ascii_only)) == text


def test_unusual_line_separators_stay_inside_lines(tmp_path: Path) -> None:
    """They occur raw inside answers; splitting at them would break rows that are whole."""
    text = "one\u2028two\u2029three\u0085four"
    line = row(json.dumps(text, ensure_ascii=False))
    assert "\u2028" in line
    data = read_lines(tmp_path, line, row())
    assert pairs(data) == [(text, "a"), ("q", "a")]
    assert data.examples[1].line == 2


@pytest.mark.parametrize("spelled", [r"\ud83d", r"\ude00 \ud83d", r"\ud83d\ud83d\ude00"])
def test_lone_surrogates_become_replacements(tmp_path: Path, spelled: str) -> None:
    """An app that cuts text in the middle of an emoji writes them; UTF-8 cannot hold them."""
    inner, outer = json.dumps(f"x{spelled}y"), f'"x{spelled}y"'
    for value in (inner, outer, json.dumps(f'"x{spelled}y"')):
        data = read_lines(tmp_path, f'{{"input":{value},"output":"a","label":"good"}}')
        prompt = data.examples[0].prompt
        assert prompt.encode()
        if value != inner:
            assert "\ufffd" in prompt
            assert ("😀" in prompt) == (r"\ud83d\ude00" in spelled)


def test_a_whole_pair_of_surrogates_is_its_character(tmp_path: Path) -> None:
    """Most emoji are spelled so by JSON writers that keep to ASCII."""
    data = read_lines(tmp_path, json.dumps(json.loads(row('"😀"')), ensure_ascii=True))
    assert data.examples[0].prompt == "😀"


@pytest.mark.parametrize(
    "data",
    [
        f"{GOOD}\r\n{BAD}\r\n".encode(),
        f"\ufeff{GOOD}\n{BAD}\n".encode(),
        f"{GOOD}\n{BAD}".encode(),
        f"{GOOD}\n\n  \n{BAD}\n\n".encode(),
    ],
    ids=["carriage returns", "byte order mark", "no last line feed", "blank lines"],
)
def test_other_ways_to_end_lines(tmp_path: Path, data: bytes) -> None:
    """Files that people edited or moved between systems."""
    result = read_bytes(tmp_path, data)
    assert pairs(result) == [("hello", "hi")]
    assert result.rows_read == 2


def test_lines_are_counted_as_editors_count_them(tmp_path: Path) -> None:
    """The number in a message is where the person looks."""
    data = read_lines(tmp_path, "", GOOD, "", BAD)
    assert data.examples[0].line == 2
    assert data.dropped == {"labelled bad": (4,)}


@pytest.mark.parametrize("label", ["GOOD", "", "neutral", None, 1, ["good"], {"good": True}])
def test_an_unknown_label_is_dropped_with_its_reason(tmp_path: Path, label: Any) -> None:
    """Labels are not validated by the app; one odd row must not cost the run."""
    data = read_lines(tmp_path, row(), row(label=label))
    assert data.dropped == {"label is neither good nor bad": (2,)}


@pytest.mark.parametrize("value", ["", '""', '"  \\n"', " "])
def test_empty_texts_are_dropped(tmp_path: Path, value: str) -> None:
    """An empty answer would teach the model to say nothing."""
    data = read_lines(tmp_path, row(), row(value), row(output=value))
    assert data.dropped == {"empty input or output": (2, 3)}
    assert data.rows_read == 3


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\r\n", b"\xef\xbb\xbf\n"])
def test_an_empty_file(tmp_path: Path, data: bytes) -> None:
    """The app writes 0 bytes where there is no feedback yet."""
    with pytest.raises(DatasetError, match="is empty"):
        read_bytes(tmp_path, data)


def test_no_usable_row_says_why(tmp_path: Path) -> None:
    """Thumbs down alone is a likely first data set."""
    with pytest.raises(DatasetError, match=r"None of the 3 rows.*labelled bad: 2.*empty.*: 1"):
        read_lines(tmp_path, BAD, BAD, row(""))


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b'{"input": "x"',
        b"[1, 2]",
        b'"text"',
        b"null",
        b"42",
        b'{"input": "\xff", "output": "a", "label": "good"}',
        b"{}",
        b'{"input": "q", "output": "a"}',
        b'{"input": "q", "label": "good"}',
        b'{"output": "a", "label": "good"}',
        b"[" * 100_000,
        b'{"input": ' + b"[" * 100_000,
        b'{"input": ' + b"9" * 5000 + b', "output": "a", "label": "good"}',
        b"\x00",
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path: Path, line: bytes) -> None:
    """A file of another kind must end as a message, never as a traceback."""
    with pytest.raises(DatasetError, match="Line 3 of the data set"):
        read_bytes(tmp_path, f"{GOOD}\n\n".encode() + line + b"\n")


@pytest.mark.parametrize("depth", [900, 3_000, 100_000])
def test_a_deeply_nested_text_is_kept_as_it_stands(tmp_path: Path, depth: int) -> None:
    """Within a row it is only text; Python's parser gives up on it without a ValueError."""
    text = "[" * depth + "]" * depth
    data = read_lines(tmp_path, row(text))
    assert data.examples[0].prompt == text


def test_a_deeply_nested_value_never_breaks_the_reader(tmp_path: Path) -> None:
    """Given directly, not as text: read, dropped or refused; Python can read deeper than write."""
    for depth in (10, 100, *range(900, 1000), 3_000, 100_000):
        line = '{"input":' + "[" * depth + "]" * depth + ',"output":"a","label":"good"}'
        seen = usable_lines(tmp_path, f"{line}\n{row()}\n".encode())
        assert seen in ([1, 2], [2], []), depth
        assert depth > 100 or seen == [1, 2]


def usable_lines(tmp_path: Path, data: bytes) -> list[int]:
    """Lines that came through; none where the file was refused."""
    try:
        return [example.line for example in read_bytes(tmp_path, data).examples]
    except DatasetError:
        return []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "9" * 5000, '{"a": 1e999}'])
def test_numbers_that_are_none_are_kept_as_text(value: str) -> None:
    """Python reads more than JSON has, and refuses very long whole numbers."""
    assert decode_once(value) == value


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "[1e999]"])
def test_numbers_that_are_none_are_dropped_where_given_directly(tmp_path: Path, value: str) -> None:
    """There is no text to keep, and no canonical one to make."""
    line = f'{{"input":{value},"output":"a","label":"good"}}'
    assert read_lines(tmp_path, line, row()).dropped == {"input or output is no JSON value": (1,)}


def test_unknown_keys_and_null_ones(tmp_path: Path) -> None:
    """Later versions of the app may add keys."""
    data = read_lines(tmp_path, row(notes=None, executionId=None, future={"x": [1]}))
    assert pairs(data) == [("q", "a")]


def test_a_line_of_megabytes(tmp_path: Path) -> None:
    """Page snapshots are that long."""
    text = "<p>é</p>" * 300_000
    data = read_lines(tmp_path, row(json.dumps({"pageSnapshot": text})))
    assert len(data.examples[0].prompt) > len(text)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """Some strategies of the app give a path that never comes to exist."""
    with pytest.raises(DatasetError, match="cannot be read"):
        read(tmp_path / name)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_noise_never_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    """Whatever the file is: a data set or a DatasetError."""
    data = b"\n".join([*lines, GOOD.encode()])
    # Either the last row alone came through, or the file was refused.
    assert len(usable_lines(tmp_path_factory.getbasetemp(), data)) <= 1
