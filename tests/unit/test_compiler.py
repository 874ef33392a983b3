"""The data set compiler: any file, its lines, what repeats, contradicts and pairs, and the method.

What it reads is written by other programs and by hand: whatever the bytes are, it must come to a
data set or to a DatasetError, and account for every line.
"""

from __future__ import annotations

import codecs
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollama_trainer.compiler import compile_dataset
from ollama_trainer.compiler.index import BAD, CONFLICT, REPEATED, Counts, Entry, Index
from ollama_trainer.compiler.lines import Line, line_at, lines, open_dataset
from ollama_trainer.compiler.method import choose
from ollama_trainer.errors import DatasetError
from ollama_trainer.formats._text import canonical, decode_once, encodable, parse
from ollama_trainer.records import DatasetOptions, Method
from tests.reading import Read, read_file, read_rows

# --- any file at all ---

#: Texts that are written as they are and as JSON escapes.
ODD = [
    "\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\r", "\x00", "\ufeff", "\ud83d", "\ude00", "😀",
    "[object Object]", "Execute your task.", "NaN", "1e999", '"', "\\", "{", "[" * 40, "null", "ß",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(ODD) | st.text(max_size=6), max_size=4).map("".join)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**30, -(10**30), 1e300, -0.0])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXTS, part, max_size=3),
    max_leaves=6,
)
LABELS = st.sampled_from(["good", "good", "good", "bad", True, False, None, "neutral"])
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "critic"]),
        "content": TEXTS | st.none() | st.just([{"type": "text", "text": "t"}]) | VALUES,
    },
    optional={
        "weight": st.sampled_from([0, 1, None]),
        "name": TEXTS,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {
                    "function": st.fixed_dictionaries(
                        {"name": TEXTS, "arguments": VALUES | st.just('{"a": 1}')}
                    )
                }
            ),
            max_size=2,
        ),
    },
)
STEPS = st.fixed_dictionaries(
    {"nodeId": st.sampled_from(["n1", "n2"]), "order": st.integers(0, 3) | VALUES},
    optional={
        "agentId": st.sampled_from(["a1", "a2", ""]),
        "round": st.integers(0, 1),
        "input": VALUES,
        "output": VALUES,
        "error": st.sampled_from(["WAITING_FOR_USER", "no", None]),
        "toolCalls": st.just([{"name": "never_seen"}]),
    },
)
TRAILS = st.lists(STEPS, max_size=4) | VALUES
OUTPUTS = st.fixed_dictionaries(
    {}, optional={"output": VALUES, "trail": TRAILS, "error": VALUES, "question": TEXTS}
)
CONVERSATIONS = st.lists(MESSAGES, max_size=4)
ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "from_feedback": st.fixed_dictionaries(
        {"input": VALUES, "output": VALUES, "label": LABELS}, optional={"notes": TEXTS}
    ),
    "from_runs": st.fixed_dictionaries(
        {"runId": st.just("r"), "trail": TRAILS},
        optional={
            "output": OUTPUTS | VALUES,
            "targetType": st.sampled_from(["agent", "workflow"]),
            "targetId": st.just("a1"),
        },
    ),
    "messages": st.fixed_dictionaries(
        {"messages": CONVERSATIONS | VALUES},
        optional={"tools": VALUES | st.lists(st.just({"function": {"name": "f"}}), max_size=1)},
    ),
    "preferences": st.fixed_dictionaries(
        {
            "prompt": TEXTS | CONVERSATIONS | VALUES,
            "chosen": TEXTS | st.lists(MESSAGES, max_size=1),
            "rejected": TEXTS | st.lists(MESSAGES, max_size=1) | VALUES,
        }
    ),
    "prompt_completion": st.fixed_dictionaries(
        {
            "prompt": TEXTS | CONVERSATIONS | VALUES,
            "completion": TEXTS | st.lists(MESSAGES, max_size=1),
        },
        optional={"label": LABELS | VALUES},
    ),
}
#: Few enough that they repeat, contradict and pair; odd characters in the midst of them.
ASKED = st.builds("q{}{}".format, st.integers(0, 3), st.sampled_from(["", *ODD]))
SAID = st.builds("a{}{}".format, st.integers(0, 2), st.sampled_from(["", *ODD]))
SPOKEN = st.builds(
    lambda ask, say, weight: [
        {"role": "user", "content": ask},
        {"role": "assistant", "content": say, "weight": weight},
    ],
    ASKED,
    SAID,
    st.sampled_from([1, 1, 0]),
)
WALKED = st.builds(
    lambda ask, say, order: {"nodeId": "n", "order": order, "input": ask, "output": say},
    ASKED,
    SAID,
    st.integers(0, 2),
)
#: Rows of which most can be used.
USABLE: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "from_feedback": st.fixed_dictionaries(
        {"input": ASKED.map(json.dumps) | ASKED, "output": SAID, "label": LABELS}
    ),
    "from_runs": st.builds(
        lambda trail: {"runId": "r", "trail": trail, "output": {"output": None}},
        st.lists(WALKED, min_size=1, max_size=4),
    ),
    "messages": st.builds(
        lambda parts: {"messages": list(chain(*parts))}, st.lists(SPOKEN, min_size=1, max_size=3)
    ),
    "preferences": st.fixed_dictionaries({"prompt": ASKED, "chosen": SAID, "rejected": SAID}),
    "prompt_completion": st.fixed_dictionaries(
        {"prompt": ASKED, "completion": SAID, "label": LABELS}
    ),
}
#: What stands in files beside rows.
RUBBISH = st.sampled_from(
    [b"", b"  ", b"\x00", b"no JSON", b"[1]", b"7", b"NaN", b'{"input": "cut', b"\xff\xfe{}",
     b"[" * 3000, b'"' + b"x" * 50 + b'"', b"\xe2\x80\xa8", b"null", b"\xef\xbb\xbf{}"]
)  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file of one shape, spelled in any way, with rubbish in it."""
    shape = draw(st.sampled_from(sorted(ROWS)))
    rows = USABLE[shape] | USABLE[shape] | ROWS[shape]
    written: list[bytes] = []
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.integers(0, 4)) == 0:
            written.append(draw(RUBBISH))
            continue
        row = draw(rows)
        text = json.dumps(row, ensure_ascii=draw(st.booleans()))
        if draw(st.booleans()):
            # A key that stands twice counts as its last.
            text = f"{{{json.dumps(next(iter(row)))}: 0, {text[1:]}"
        # A lone surrogate as no UTF-8 has it: bytes that nobody can read.
        written.append(text.encode("utf-8", "surrogatepass"))
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    data = end.join(written) + draw(st.sampled_from([end, b""]))
    return draw(st.sampled_from([b"", codecs.BOM_UTF8])) + data


def compiled_twice(path: Path, options: DatasetOptions, most_bytes: int) -> list[Any]:
    return [attempt(path, options, most_bytes) for _ in range(2)]


def attempt(path: Path, options: DatasetOptions, most_bytes: int) -> Any:
    """What comes of a file: everything about it, or why it was refused."""
    try:
        with compile_dataset(path, options, most_bytes=most_bytes) as compiled:
            dropped = {reason: (t.count, t.lines) for reason, t in compiled.dropped.items()}
            examples = compiled.examples(1000, 1)
            assert len(examples) == len(compiled)
            used = {each.line for _, _, each in examples}
            assert compiled.rows_used == len(used)
            return compiled.rows_read, dropped, examples, used, list(compiled.pairs())
    except DatasetError as error:
        return str(error)


def held(data: bytes) -> set[int]:
    """Numbers of the lines that hold anything."""
    parts = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return {number for number, part in enumerate(parts, 1) if part.strip()}


@settings(max_examples=250, deadline=None)
@given(
    data=files() | st.binary(max_size=60),
    method=st.sampled_from(["auto", "sft", "dpo", "kto"]),
    secrets=st.sampled_from(["redact", "off", "refuse"]),
    most_bytes=st.sampled_from([1 << 20, 90]),
)
@example(data=b"", method="auto", secrets="redact", most_bytes=90)
@example(data=codecs.BOM_UTF8, method="auto", secrets="redact", most_bytes=90)
def test_any_file_is_a_data_set_or_refused_and_every_line_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    method: str,
    secrets: str,
    most_bytes: int,
) -> None:
    """A crash costs the run; a line that vanishes costs somebody's feedback without a word."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    options = DatasetOptions.model_validate(
        {"method": method, "secrets": secrets, "corrections": True}
    )
    first, second = compiled_twice(path, options, most_bytes)
    assert first == second
    if isinstance(first, str):
        if first.startswith("None of the "):
            assert first.split()[3] == str(len(held(data)))
        return
    rows_read, dropped, examples, used, pairs = first
    assert rows_read == len(held(data))
    told = {line for _, numbers in dropped.values() for line in numbers}
    assert used | told == held(data)
    assert all(count == len(numbers) for count, numbers in dropped.values())
    every = [each for _, _, each in examples] + [each for pair in pairs for each in pair]
    for each in every:
        json.dumps([each.context, each.answer, each.tools], ensure_ascii=False).encode()
        assert each.prompt.strip()
        assert each.completion.strip() or each.answer["tool_calls"]
        assert each.answer["role"] == "assistant"
        assert "never_seen" not in json.dumps([each.context, each.answer])


def test_the_files_above_come_to_something_often_enough() -> None:
    """Files that are all refused would test nothing."""
    kinds: set[str] = set()

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(files())
    def look(data: bytes) -> None:
        kinds.update(_kinds(data))

    look()
    assert kinds >= {"used", "dropped", "several", "pairs", "surrogate", "carriage return"}


def _kinds(data: bytes) -> Iterator[str]:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        found = attempt(Path(file.name), DatasetOptions(), 1 << 20)
    if isinstance(found, str):
        return
    yield "used"
    if found[1]:
        yield "dropped"
    if len(found[2]) > 1:
        yield "several"
    if found[4]:
        yield "pairs"
    if "\ufffd" in repr(found[2]):
        yield "surrogate"
    if b"\r\n" in data:
        yield "carriage return"


# --- JSON ---

JSON_TEXTS = st.builds(
    lambda value, ascii_only, spaces: json.dumps(
        value, ensure_ascii=ascii_only, indent=1 if spaces else None
    ),
    VALUES,
    st.booleans(),
    st.booleans(),
)
#: Numbers as people and other programs spell them.
SPELLED = st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?\Z")
ESCAPES = st.lists(
    st.from_regex(r"\A\\u[0-9a-fA-F]{4}\Z") | st.sampled_from([r"\n", r"\/", r"\"", r"\\", "é"]),
    max_size=5,
).map(lambda parts: f'"{"".join(parts)}"')


def same(first: Any, second: Any) -> bool:
    """Equal in type, too, with NaN equal to itself and -0.0 no 0.0."""
    return repr(first) == repr(second)


def read_by(reader: Any, text: Any) -> Any:
    """What a reader makes of a text; only the errors that say that it is none count as none."""
    try:
        return ("read", reader(text))
    except (ValueError, RecursionError):
        return "refused"


@settings(max_examples=600, deadline=None)
@given(JSON_TEXTS | SPELLED | ESCAPES | ESCAPES.map(lambda text: f"{{{text}:[{text}]}}"))
@example('{"a":1,"b":2,"a":3}')
@example("1e400")
@example("-0")
@example("-0.0")
@example("18446744073709551616")
@example("-9223372036854775809")
@example('["\\ud83d\\ude00", "\\ude00\\ud83d"]')
@example("[NaN, -Infinity]")
@example("9" * 5000)
def test_the_fast_reader_reads_what_pythons_own_reads(text: str) -> None:
    """Two readers that differ would make two data sets of one file."""
    expected = read_by(json.loads, text)
    assert same(read_by(parse, text), expected)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    assert same(read_by(parse, data), expected)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=20) | st.lists(st.sampled_from(ODD), max_size=3).map("".join))
@example('{"a": 1}x')
@example("[1,]")
@example("01")
@example("'a'")
@example('"a\tb"')
@example('"a\x7fb"')
@example("\ufeff1")
@example("nul")
def test_the_fast_reader_refuses_what_pythons_own_refuses(text: str) -> None:
    """What one takes for JSON and the other for a text would be learned in two forms."""
    assert same(read_by(parse, text), read_by(json.loads, text))


@given(st.text() | TEXTS.map(encodable), st.booleans())
@example("42", True)
@example('"quoted"', True)
@example('{"a": 1}', False)
def test_strings_come_through(text: str, ascii_only: bool) -> None:
    """What a person typed is what is trained on."""
    assert decode_once(json.dumps(text, ensure_ascii=ascii_only)) == text


@settings(max_examples=400, deadline=None)
@given(JSON_TEXTS)
def test_values_inside_values_keep_their_meaning(text: str) -> None:
    """Canonical text is another spelling, not another value; what has none stays as it stands."""
    value = json.loads(text)
    decoded = decode_once(text)
    assert decoded == encodable(decoded)
    if isinstance(value, str):
        assert decoded == encodable(value)
    elif read_by(canonical, value) == "refused":
        assert decoded == encodable(text)
    elif encodable(spelled := json.dumps(value, ensure_ascii=False, sort_keys=True)) == spelled:
        assert same(json.loads(decoded), json.loads(spelled))
    else:
        # Keys that differ in lone surrogates alone become one.
        assert isinstance(json.loads(decoded), type(value))


@given(VALUES)
def test_order_of_keys_and_spaces_do_not_matter(value: Any) -> None:
    """The same value, spelled by two programs, is one input."""
    shuffled = _shuffled(value)
    assert read_by(canonical, value) == read_by(canonical, shuffled)
    if not isinstance(value, str):
        spelled = (json.dumps(value, indent=2), json.dumps(shuffled, ensure_ascii=False))
        if read_by(canonical, value) != "refused":
            assert decode_once(spelled[0]) == decode_once(spelled[1]) == canonical(value)


def _shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shuffled(value[key]) for key in reversed(value)}
    return [_shuffled(part) for part in value] if isinstance(value, list) else value


def test_values_that_are_no_json_have_no_text() -> None:
    """Written as null they would be learned as null."""
    for value in (math.nan, math.inf, {"a": [-math.inf]}):
        with pytest.raises(ValueError, match="JSON"):
            canonical(value)


# --- lines ---


def feedback(ask: str, say: str = "a", label: str = "good") -> dict[str, Any]:
    return {"input": json.dumps(ask), "output": json.dumps(say), "label": label}


def lines_of(path: Path, most_bytes: int) -> list[Line]:
    with open_dataset(path) as file:
        return list(lines(file, most_bytes))


@given(
    st.lists(st.sampled_from([b"", b" ", b"\r", b"{}", b'{"a": 1}', b"x" * 7, b"\xe2\x80\xa8 7"])),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
)
def test_lines_lie_where_they_say(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[bytes],
    most_bytes: int,
    ends: bool,
    marked: bool,
) -> None:
    """An example is looked up later by the place of its line: one byte off, and it is another."""
    path = tmp_path_factory.getbasetemp() / "lines"
    data = codecs.BOM_UTF8 * marked + b"\n".join(parts) + b"\n" * ends
    path.write_bytes(data)
    found = lines_of(path, most_bytes)
    raw = data.split(b"\n")
    with open_dataset(path) as file:
        for line in found:
            whole = data[line.offset : line.offset + line.n_bytes]
            assert whole.removesuffix(b"\n") == raw[line.number - 1]
            assert (line.data is None) == (len(whole) > most_bytes)
            if line.data is not None:
                assert line_at(file, line.offset, line.n_bytes) == line.data
                assert not line.data.startswith(codecs.BOM_UTF8)
    short = [len(part) + (n < len(raw)) <= most_bytes for n, part in enumerate(raw, 1)]
    numbers = {n for n, part in enumerate(raw, 1) if part.strip() and short[n - 1]}
    assert numbers - {1} == {line.number for line in found if line.data is not None} - {1}


@pytest.mark.parametrize("last", [b"\n", b""])
def test_lines_over_the_limit_are_passed_over_by_name(tmp_path: Path, last: bytes) -> None:
    """One of gigabytes must not cost the memory; those around it are read as ever."""
    limit = 200
    at_limit = json.dumps(feedback("x" * 146)).encode()
    assert len(at_limit) == limit - 1
    over = json.dumps(feedback("y" * 147)).encode()
    huge = json.dumps(feedback("z" * 3_000_000)).encode()
    rows = [json.dumps(feedback("first")).encode(), huge, at_limit, over, huge]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*rows, json.dumps(feedback("last")).encode(), over]) + last)
    data = read_file(path, limit)
    assert [len(e.prompt) for e in data.examples] == [5, 146, 4] + [147] * (not last)
    over_limit = [2, 4, 5, 7] if last else [2, 4, 5]
    assert data.dropped == {"the line is too long to be read": over_limit}
    assert data.rows_read == 7


_READ_AND_MEASURE = r"""
import re, sys
from pathlib import Path
from ollama_trainer.compiler import compile_dataset
from ollama_trainer.records import DatasetOptions
with compile_dataset(Path(sys.argv[1]), DatasetOptions()) as compiled:
    lengths = [len(e.prompt) + len(e.completion) for _, _, e in compiled.examples(10, 1)]
# The peak that `resource` tells begins with that of the process that started this one.
print(*lengths, re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_a_line_of_50_megabytes_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """A page snapshot may be that long; the worker shares its machine with a model."""
    n_letters = 50_000_000
    path = tmp_path / "long.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.write('{"label":"good","output":"\\"a\\"","input":"\\"')
        for _ in range(n_letters // 1_000_000):
            file.write("one word, " * 100_000)
        file.write('\\""}\n' + json.dumps(feedback("short")) + "\n")
    command = [sys.executable, "-c", _READ_AND_MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *lengths, kib = map(int, done.stdout.split())
    assert lengths == [n_letters + 1, 6]
    assert kib < 600_000


@pytest.mark.parametrize("change", ["shorter", "other"])
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, change: str) -> None:
    """Whatever stands there now is not what was looked at."""
    path = tmp_path / "rows.jsonl"
    rows = "".join(json.dumps(feedback(f"question {turn}")) + "\n" for turn in range(50))
    path.write_text(rows)
    with compile_dataset(path, DatasetOptions()) as compiled:
        path.write_text(rows[:300] if change == "shorter" else " " * len(rows))
        with pytest.raises(DatasetError, match="changed while it was read"):
            # What the first read left in the buffer is not read again.
            compiled.examples(1000, 1) and list(compiled.examples(1000, 1))


def test_examples_looked_up_later_are_those_read_first(tmp_path: Path) -> None:
    """Only their places are kept; byte order mark, blank, bad and long lines move the places."""
    rng = random.Random(5)
    expected: list[tuple[int, str, str]] = []
    written: list[str] = []
    while len(expected) < 5000:
        match rng.randrange(8):
            case 0:
                written.append(rng.choice(["", "\r", "no JSON", "x" * 400]))
            case 1:
                say = "é" * rng.randrange(400)
                written.append(json.dumps(feedback("long", say), ensure_ascii=False) + " " * 400)
            case _:
                ask, say = f"{len(expected)} " + "ü\u2028" * rng.randrange(20), rng.choice("abc")
                written.append(json.dumps(feedback(ask, say), ensure_ascii=False))
                expected.append((len(written), ask, say))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(("\ufeff" + "\n".join(written)).encode())
    with compile_dataset(path, DatasetOptions(), most_bytes=399) as compiled:
        assert len(compiled) == len(expected)
        for _ in range(2):
            found = [each for _, _, each in compiled.examples(10_000, 1)]
            assert [(e.line, e.prompt, e.completion) for e in found] == expected
        some = compiled.examples(100, 1)
        assert len(some) == 100
        assert {(e.line, e.prompt, e.completion) for _, _, e in some} < set(expected)


# --- repetitions, contradictions, pairs ---


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with closing(Index(tmp_path / "index")) as made:
        yield made


def fill(index: Index, *answers: tuple[int, int, bool]) -> Counts:
    """Examples of (context, answer, good), each in a line of its own."""
    for line, (context, answer, good) in enumerate(answers, 1):
        index.add(Entry(line, line * 100, 99, 0, context, answer, good))
    return index.settle()


def ids(index: Index) -> list[int]:
    return [place.id for place in index.left(10_000, 1)]


def dropped(index: Index) -> dict[str, list[int]]:
    return {reason: numbers for reason, _, numbers in index.dropped(100)}


def test_what_repeats_is_kept_once(index: Index) -> None:
    """The first, whichever answers and questions lie between."""
    counts = fill(index, (1, 1, True), (2, 1, True), (1, 1, True), (3, 7, False), (3, 7, False))
    assert ids(index) == [1, 2, 4]
    assert dropped(index) == {REPEATED: [3, 5]}
    assert counts == Counts(good=2, bad=1, good_inputs=2)


def test_what_is_called_good_and_bad_is_neither(index: Index) -> None:
    """However often it is called the one or the other; other answers to the input stay."""
    answers = [(1, 1, True), (1, 1, True), (1, 1, False), (1, 2, True), (2, 1, False)]
    counts = fill(index, *answers)
    assert ids(index) == [4, 5]
    assert dropped(index) == {CONFLICT: [1, 2, 3]}
    assert counts == Counts(good=1, bad=1, good_inputs=1)


def test_good_and_bad_answers_to_one_input_are_pairs(index: Index) -> None:
    """Each bad answer once, and each good one as often as any other."""
    counts = fill(index, *[(1, n, n < 2) for n in range(8)], (2, 1, True), (3, 1, False))
    pairs = [(good.id, bad.id) for good, bad in index.pairs()]
    assert sorted(bad for _, bad in pairs) == [3, 4, 5, 6, 7, 8]
    assert sorted(good for good, _ in pairs) == [1, 1, 1, 2, 2, 2]
    assert counts == Counts(
        good=3, bad=7, good_inputs=2, paired_inputs=1, several_answers=1, pairs=6
    )


def test_what_is_in_no_pair_can_be_dropped(index: Index) -> None:
    """A training on pairs has no use for it, and says so."""
    fill(index, (1, 1, True), (1, 2, False), (2, 1, True), (3, 1, False))
    index.drop_unpaired("alone")
    assert ids(index) == [1, 2]
    assert dropped(index) == {"alone": [3, 4]}


def test_a_pair_of_which_one_is_dropped_is_none(index: Index) -> None:
    """The other half says nothing by itself."""
    fill(index, (1, 1, True), (1, 2, False), (2, 1, True), (2, 2, False))
    index.drop_one("too long", 4)
    assert index.drop_unpaired("alone") == 1
    assert [(reason, lines) for reason, _, lines in index.dropped(9)] == [
        ("alone", [3]),
        ("too long", [4]),
    ]
    assert [(good.id, bad.id) for good, bad in index.pairs()] == [(1, 2)]


def test_a_line_of_several_examples_counts_once(index: Index) -> None:
    """People count rows."""
    for part in range(3):
        index.add(Entry(1, 0, 9, part, 1, 1, True))
    index.add(Entry(2, 9, 9, 0, 2, 2, True))
    index.settle()
    assert index.n_left() == (2, 2)
    assert list(index.dropped(100)) == [(REPEATED, 1, [1])]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), max_size=40))
def test_the_index_agrees_with_a_plain_one(
    tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[int, int, bool]]
) -> None:
    """The table on disk against sets in memory."""
    called: dict[tuple[int, int], set[bool]] = {}
    for context, answer, good in answers:
        called.setdefault((context, answer), set()).add(good)
    only = {key: labels == {True} for key, labels in called.items() if len(labels) == 1}
    good_ones = {key for key, is_good in only.items() if is_good}
    bad = only.keys() - good_ones
    inputs = {context for context, _ in good_ones}
    both = inputs & {context for context, _ in bad}
    with closing(Index(Path(":memory:"))) as index:
        counts = fill(index, *answers)
        left = [answers[number - 1] for number in ids(index)]
        pairs = [(answers[g.id - 1], answers[b.id - 1]) for g, b in index.pairs()]
    assert sorted((context, answer) for context, answer, _ in left) == sorted(only)
    assert (counts.good, counts.bad) == (len(good_ones), len(bad))
    assert (counts.good_inputs, counts.paired_inputs) == (len(inputs), len(both))
    assert counts.several_answers == sum(
        sum(context == one for context, _ in good_ones) > 1 for one in inputs
    )
    # Every answer of such an input is in a pair, and no pair comes twice.
    assert {b[:2] for _, b in pairs} == {key for key in bad if key[0] in both}
    assert {g[:2] for g, _ in pairs} == {key for key in good_ones if key[0] in both}
    assert len(set(pairs)) == len(pairs) == counts.pairs
    assert all(g[0] == b[0] and g[2] and not b[2] for g, b in pairs)
    assert counts.pairs == len(pairs)


# --- the draw ---


def drawn(n: int, most: int, seed: int, left_out: frozenset[int] = frozenset()) -> list[int]:
    """Lines that are drawn of a file of so many."""
    rng = random.Random(8)
    contents = [rng.getrandbits(63) for _ in range(n)]
    with closing(Index(Path(":memory:"))) as index:
        for line, content in enumerate(contents, 1):
            if line not in left_out:
                index.add(Entry(line, line, 1, 0, content, content, True))
        index.settle()
        return [place.line for place in index.left(most, seed)]


def test_the_draw_is_the_same_for_the_same_seed() -> None:
    """Otherwise no training could be repeated, and a resumed one would go on with other rows."""
    first = drawn(3000, 500, 1)
    assert first == drawn(3000, 500, 1) == sorted(set(first))
    assert len(first) == 500
    # Other seeds draw others, and every row has its turn.
    others = [set(drawn(3000, 500, seed)) for seed in range(2, 40)]
    assert all(len(other & set(first)) < 500 for other in others)
    assert len(set().union(*others)) > 2900


def test_the_draw_is_from_the_whole_file() -> None:
    """Newest rows stand first in the app's files: a beginning is no sample."""
    for seed in range(5):
        tenths = [0] * 10
        for line in drawn(3000, 500, seed):
            tenths[(line - 1) // 300] += 1
        assert min(tenths) > 25


def test_rows_that_are_added_leave_most_of_the_draw(tmp_path: Path) -> None:
    """The next training on a file that grew sees this one's rows, but for the share of new ones."""
    before = set(drawn(3000, 500, 1))
    after = set(drawn(3300, 500, 1))
    # Of 500, a share of 300 / 3300 is expected to be new.
    assert 425 < len(before & after) < 485
    removed = set(drawn(3000, 500, 1, frozenset(range(1, 301))))
    assert len({line for line in before if line > 300} - removed) == 0


def test_all_are_taken_where_they_fit(tmp_path: Path) -> None:
    """And in the order of the file."""
    assert drawn(50, 50, 3) == drawn(50, 1000, 4) == list(range(1, 51))
    assert drawn(50, 0, 3) == []


# --- the method ---

SFT_ONLY: tuple[Method, ...] = ("sft",)


@pytest.mark.parametrize(
    ("counts", "method", "said"),
    [
        (Counts(good=9, good_inputs=9), "sft", "9 good and 0 bad answers: the good ones"),
        (Counts(good=100, bad=3, good_inputs=100), "sft", "too few bad ones"),
        (Counts(good=19, bad=500, good_inputs=19), "sft", "too few"),
        (Counts(good=500, bad=19, good_inputs=500), "sft", "too few bad ones"),
        (Counts(good=20, bad=20, good_inputs=20), "kto", "enough of both kinds"),
        (Counts(good=0, bad=50), "sft", "0 good and 50 bad"),
        # Half of the inputs with a good answer have a bad one, or nearly so.
        (Counts(good=4, bad=2, good_inputs=4, paired_inputs=2, pairs=2), "dpo", "makes 2 pairs"),
        (Counts(good=5, bad=2, good_inputs=5, paired_inputs=2, pairs=2), "sft", "too few bad"),
        (
            Counts(good=100, bad=49, good_inputs=100, paired_inputs=49, pairs=49),
            "kto",
            "49 of 100 inputs with a good answer have a bad one",
        ),
        # Pairs enough, whatever share they are.
        (
            Counts(good=9000, bad=100, good_inputs=9000, paired_inputs=100, pairs=100),
            "dpo",
            "makes 100 pairs",
        ),
        (Counts(good=9000, bad=99, good_inputs=9000, paired_inputs=99, pairs=99), "kto", "enough"),
    ],
)
def test_the_method_follows_from_what_there_is(counts: Counts, method: str, said: str) -> None:
    """The sentence beside it tells a person why."""
    choice = choose(counts, "auto", get_args(Method))
    assert (choice.method, choice.trained_with) == (method, method)
    assert said in choice.reason
    alone = choose(counts, "auto", SFT_ONLY)
    assert (alone.method, alone.reason, alone.trained_with) == (method, choice.reason, "sft")


GOOD_ONLY = Counts(good=9, good_inputs=9)
UNPAIRED = Counts(good=9, bad=9, good_inputs=9)
PAIRED = Counts(good=9, bad=9, good_inputs=9, paired_inputs=9, pairs=9)


@pytest.mark.parametrize(
    ("counts", "asked", "missing"),
    [
        (GOOD_ONLY, "sft", ""),
        (UNPAIRED, "sft", ""),
        (PAIRED, "sft", ""),
        (Counts(bad=9), "sft", ""),
        (GOOD_ONLY, "dpo", "a good and a bad answer to the same input"),
        (UNPAIRED, "dpo", "a good and a bad answer to the same input"),
        (PAIRED, "dpo", ""),
        (GOOD_ONLY, "kto", "a bad answer"),
        (Counts(bad=9), "kto", "a good answer"),
        (UNPAIRED, "kto", ""),
        (PAIRED, "kto", ""),
    ],
)
def test_a_method_that_is_asked_for_is_taken_or_refused(
    counts: Counts, asked: str, missing: str
) -> None:
    """Never another one in its place without a word."""
    if missing:
        with pytest.raises(DatasetError, match=f"The method {asked} needs {missing}"):
            choose(counts, asked, get_args(Method))
        return
    choice = choose(counts, asked, get_args(Method))
    assert (choice.method, choice.reason, choice.trained_with) == (asked, "asked for", asked)
    if asked != "sft":
        with pytest.raises(DatasetError, match=f"{asked} was asked for.*Set method to sft"):
            choose(counts, asked, SFT_ONLY)


def of_methods(tmp_path: Path, **options: Any) -> Read:
    """Two pairs, a good and a bad answer alone, a contradiction, a repetition."""
    rows = [
        feedback("p", "a"),
        feedback("p", "b", "bad"),
        feedback("r", "a"),
        feedback("r", "c", "bad"),
        feedback("good alone"),
        feedback("bad alone", "a", "bad"),
        feedback("both"),
        feedback("both", "a", "bad"),
        feedback("p", "a"),
    ]
    return read_rows(tmp_path, rows, **options)


@pytest.mark.parametrize(
    ("method", "lines_left", "reasons"),
    [
        ("sft", [1, 3, 5], {BAD: [2, 4, 6]}),
        ("auto", [1, 2, 3, 4], {"no answer of the other kind to the same input": [5, 6]}),
        ("dpo", [1, 2, 3, 4], {"no answer of the other kind to the same input": [5, 6]}),
        ("kto", [1, 2, 3, 4, 5, 6], {}),
    ],
)
def test_a_method_leaves_out_what_it_has_no_use_for(
    tmp_path: Path, method: str, lines_left: list[int], reasons: dict[str, list[int]]
) -> None:
    """And nothing else; all of it is told."""
    data = of_methods(tmp_path, method=method)
    assert [each.line for each in data.examples] == lines_left
    assert data.dropped == {**reasons, CONFLICT: [7, 8], REPEATED: [9]}
    # In the order of the file.
    firsts = [numbers[0] for numbers in data.dropped.values()]
    assert firsts == sorted(firsts)


def test_many_dropped_lines_are_counted_and_some_are_named(tmp_path: Path) -> None:
    """A report of a million line numbers is none."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps(feedback("q")) + "\n" + "no JSON\n" * 250 + json.dumps(feedback("q"))
    )
    with compile_dataset(path, DatasetOptions()) as compiled:
        tally = compiled.dropped["the line is not JSON"]
        assert (tally.count, tally.lines) == (250, list(range(2, 102)))
        assert compiled.dropped[REPEATED].lines == [252]


def test_lines_are_counted_beyond_those_that_are_told(tmp_path: Path) -> None:
    """A line with two faults is one line, also the hundred and first."""
    steps = [{"nodeId": "n", "agentId": "a", "order": n, "error": "broken"} for n in range(2)]
    good = {"nodeId": "m", "agentId": "a", "order": 9, "input": "q", "output": "a"}
    row = {"runId": "r", "trail": [*steps, good], "output": {"output": "a"}}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 150, encoding="utf-8")
    with compile_dataset(tmp_path / "rows.jsonl", DatasetOptions()) as compiled:
        tally = compiled.dropped["a step failed"]
    assert (tally.count, tally.lines) == (150, list(range(1, 101)))
