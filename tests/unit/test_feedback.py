"""from_feedback: rows as the app writes them, decoded exactly once, and bad ones told by line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_trainer.compiler import compile_dataset
from ollama_trainer.errors import DatasetError
from ollama_trainer.formats._text import decode_once
from ollama_trainer.formats.feedback import correction
from ollama_trainer.records import DatasetOptions, Example

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


@dataclass(frozen=True)
class Read:
    """What became of a file."""

    examples: list[Example]
    rows_read: int
    dropped: dict[str, tuple[int, ...]]


def read_bytes(tmp_path: Path, data: bytes, **options: Any) -> Read:
    """The answers to learn, whatever method there is enough for."""
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(data)
    with compile_dataset(path, DatasetOptions(**{"method": "sft", **options})) as compiled:
        examples = [example for _, _, example in compiled.examples(1000, 1)]
        dropped = {reason: tuple(tally.lines) for reason, tally in compiled.dropped.items()}
        return Read(examples, compiled.rows_read, dropped)


def read_lines(tmp_path: Path, *lines: str, **options: Any) -> Read:
    return read_bytes(tmp_path, "".join(f"{line}\n" for line in lines).encode(), **options)


def pairs(data: Read) -> list[tuple[str, str]]:
    return [(example.prompt, example.completion) for example in data.examples]


def test_the_rows_of_the_contract(tmp_path: Path) -> None:
    """The very lines that the app was seen to write."""
    data = read_lines(tmp_path, GOOD, BAD, BAD.replace('"bad"', '"good"').replace("click", "fill"))
    assert pairs(data) == [
        ("hello", "hi"),
        ('{"pageSnapshot":"<h1>"}', '{"action":"fill"}'),
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
        read_lines(tmp_path, BAD, BAD.replace("click", "fill"), row(""))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not JSON", "the line is not JSON"),
        (b'{"input": "x"', "the line is not JSON"),
        (b'{"input": "\xff", "output": "a", "label": "good"}', "the line is not JSON"),
        (b"[" * 100_000, "the line is not JSON"),
        (b'{"input": ' + b"[" * 100_000, "the line is not JSON"),
        (
            b'{"input": ' + b"9" * 5000 + b', "output": "a", "label": "good"}',
            "the line is not JSON",
        ),
        (b"\x00", "the line is not JSON"),
        (b"[1, 2]", "the line is not a JSON object"),
        (b'"text"', "the line is not a JSON object"),
        (b"null", "the line is not a JSON object"),
        (b"42", "the line is not a JSON object"),
    ],
)
def test_a_bad_line_is_dropped_by_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    """One broken line must not cost the others, and is told."""
    data = read_bytes(tmp_path, f"{GOOD}\n\n".encode() + line + b"\n")
    assert pairs(data) == [("hello", "hi")]
    assert data.dropped == {reason: (3,)}


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"input": "q", "output": "a"}',
        b'{"input": "q", "label": "good"}',
        b'{"output": "a", "label": "good"}',
        b'{"prompt": "q", "completion": "a"}',
    ],
)
def test_a_row_of_another_shape_is_refused_by_its_number(tmp_path: Path, line: bytes) -> None:
    """Two files in one: nobody can tell what was meant."""
    with pytest.raises(DatasetError, match="Line 3 of the data set"):
        read_bytes(tmp_path, f"{GOOD}\n\n".encode() + line + b"\n")


def test_a_file_of_nothing_known_is_refused(tmp_path: Path) -> None:
    """The message names what would be understood."""
    with pytest.raises(DatasetError, match=r"its keys: instruction, response.*from_feedback \(inp"):
        read_lines(tmp_path, '{"instruction": "q", "response": "a"}')
    with pytest.raises(DatasetError, match=r"None of the 2 rows.*not JSON: 2 \(lines 1, 2\)"):
        read_lines(tmp_path, "question,answer", "q,a")


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
    with (
        pytest.raises(DatasetError, match="cannot be read"),
        compile_dataset(tmp_path / name, DatasetOptions()),
    ):
        pass


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_noise_never_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    """Whatever the file is: a data set or a DatasetError."""
    data = b"\n".join([*lines, GOOD.encode()])
    # The last row came through, unless another one made the file one of two shapes.
    assert len(usable_lines(tmp_path_factory.getbasetemp(), data)) <= 1


@pytest.mark.parametrize(
    ("notes", "right"),
    [
        ("correction: Oda", "Oda"),
        ("  Correct answer:\n Oda Fennimore \n", "Oda Fennimore"),
        ('should be: {"a": 1}', '{"a": 1}'),
        ("Expected:x", "x"),
        ("wrong button", None),
        ("correction:", None),
        ("that is correct: no", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_a_note_gives_the_answer_only_where_it_says_so(notes: Any, right: str | None) -> None:
    """Most notes are complaints; learned as answers they would make the model complain."""
    assert correction(notes) == right


def test_corrections_are_used_by_option_alone(tmp_path: Path) -> None:
    """A note is not an answer unless somebody decides so."""
    lines = [row(), row('"Who?"', '"Ida"', "bad", notes="Correction: Oda")]
    assert pairs(read_lines(tmp_path, *lines)) == [("q", "a")]
    corrected = read_lines(tmp_path, *lines, corrections=True)
    assert pairs(corrected) == [("q", "a"), ("Who?", "Oda")]


def test_the_same_answer_called_good_and_bad_is_neither(tmp_path: Path) -> None:
    """Two people disagreed, or one changed their mind: nothing can be learned from it."""
    lines = [row(), row('"x"', '"y"'), row('"x"', '"y"', "bad"), row('"x"', '"z"')]
    data = read_lines(tmp_path, *lines)
    assert pairs(data) == [("q", "a"), ("x", "z")]
    assert data.dropped == {"labelled both good and bad": (2, 3)}


def test_repetitions_are_dropped(tmp_path: Path) -> None:
    """What was rated twice would weigh twice."""
    data = read_lines(tmp_path, row(), row(), row('"q2"'), row())
    assert pairs(data) == [("q", "a"), ("q2", "a")]
    assert data.dropped == {"repeats an earlier row": (2, 4)}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ('"Execute your task."', "the input is a placeholder"),
        ('" Execute your task.\\n"', "the input is a placeholder"),
        ('"3F0C9C3E-6a53-4a55-9e0b-0d5c7f1f8a11"', "the input is a bare UUID"),
        ('"Look at [object Object] now"', "'[object Object]' stands where a text was meant"),
    ],
)
def test_inputs_that_say_nothing_are_dropped(tmp_path: Path, value: str, reason: str) -> None:
    """The app writes them where it had no input, or lost it."""
    data = read_lines(tmp_path, row(), row(value), row('"Execute your task. Then rest."'))
    assert data.dropped == {reason: (2,)}
    assert [example.line for example in data.examples] == [1, 3]


@pytest.mark.parametrize("value", ["null", '"null"', '"undefined"', "{}", "[]", None])
def test_no_output_is_no_answer(tmp_path: Path, value: Any) -> None:
    """An agent that ended without a word would teach the model to say null."""
    data = read_lines(tmp_path, row(), row('"q2"', value))
    assert data.dropped == {"empty input or output": (2,)}


@pytest.mark.parametrize("key", ["sk-ant-api03-" + "A" * 20, "\x1b[31m\nred", "\ud800", "x" * 21])
def test_keys_are_not_repeated_unless_they_are_words(tmp_path: Path, key: str) -> None:
    """What a file has for its keys would stand in logs and on the page."""
    with pytest.raises(DatasetError, match="its keys: none that is a word") as caught:
        read_bytes(tmp_path, json.dumps({key: 1}).encode())
    assert key not in str(caught.value)


def test_a_secret_beside_the_answer_is_found(tmp_path: Path) -> None:
    """A number ends where its text ends, which it would not with the answer right behind it."""
    asked = json.dumps('The config is "password": 48271593')
    data = read_lines(tmp_path, row(asked, json.dumps("[REDACTED: sk-proj-" + "aB3d" * 12)))
    ((prompt, completion),) = pairs(data)
    assert "48271593" not in prompt
    assert "aB3d" not in completion
