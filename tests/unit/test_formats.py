"""Shapes of other tools: conversations, prompts with completions, preferences; told by content."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.compiler import compile_dataset
from ollama_trainer.errors import DatasetError
from ollama_trainer.formats import FORMATS, format_of
from ollama_trainer.records import DatasetOptions
from tests.reading import Read, read_rows

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool_call(arguments: Any, name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def function(name: str = "weather") -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def talk(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


GOOD_TALK = talk(user("q"), assistant("a"))


def reasons(tmp_path: Path, row: Any, beside: Any) -> dict[str, list[int]]:
    """Why the second row of a file is dropped whose first one is good."""
    data = read_rows(tmp_path, [beside, row])
    assert [example.line for example in data.examples] == [1]
    return data.dropped


def why(tmp_path: Path, *messages: Any, **more: Any) -> list[str]:
    dropped = reasons(tmp_path, talk(*messages, **more), GOOD_TALK)
    assert set(map(tuple, dropped.values())) == {(2,)}
    return list(dropped)


# --- messages ---


def test_a_conversation_with_tools_of_the_openai_api(tmp_path: Path) -> None:
    """As its fine-tuning files have it: arguments are JSON inside JSON, and templates want both."""
    call = tool_call('{"city": "Oslo", "days": 2}', id="call_1")
    row = talk(
        {"role": "developer", "content": "Be brief."},
        user("Weather in Oslo?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "4 degrees"},
        assistant("Cold."),
        tools=[function()],
        parallel_tool_calls=False,
    )
    first, second = read_rows(tmp_path, [row]).examples
    asked = ({"role": "system", "content": "Be brief."}, user("Weather in Oslo?"))
    arguments = {"city": "Oslo", "days": 2}
    calling = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": arguments},
            }
        ],
    }
    result = {
        "role": "tool",
        "content": "4 degrees",
        "name": "weather",
        "tool_call_id": "call_1",
    }
    assert (first.context, first.answer) == (asked, calling)
    assert (second.context, second.answer) == ((*asked, calling, result), assistant("Cold."))
    assert first.tools == second.tools == (function(),)
    assert first.good
    assert second.good


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a": [1, {"b": "x"}]}', {"a": [1, {"b": "x"}]}),
        ({"a": 1}, {"a": 1}),
        ("{}", {}),
        ({}, {}),
    ],
)
def test_arguments_of_calls_become_objects(tmp_path: Path, arguments: Any, read: Any) -> None:
    """Decoded once, or given as an object as some tools write it."""
    row = talk(user("q"), {"role": "assistant", "tool_calls": [tool_call(arguments)]})
    (example,) = read_rows(tmp_path, [row]).examples
    assert example.answer["tool_calls"][0]["function"]["arguments"] == read


def test_a_string_in_arguments_is_not_decoded_again(tmp_path: Path) -> None:
    """A tool that takes JSON as a text would get an object."""
    arguments = {"body": '{"a": 1}'}
    row = talk(user("q"), assistant("", tool_calls=[tool_call(json.dumps(arguments))]))
    (example,) = read_rows(tmp_path, [row]).examples
    assert example.answer["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([tool_call('{"a": ')], "a tool call has arguments that are no JSON"),
        ([tool_call("[" * 100_000)], "a tool call has arguments that are no JSON"),
        ([tool_call("[1]")], "a tool call has arguments that are no object"),
        ([tool_call('"text"')], "a tool call has arguments that are no object"),
        ([tool_call('{"a": NaN}')], "a tool call has arguments that are no object"),
        ([tool_call({"a": float("inf")})], "a tool call has arguments that are no object"),
        ([{"type": "function"}], "a tool call names no function"),
        ([{"function": {"arguments": "{}"}}], "a tool call names no function"),
        (["weather"], "a tool call names no function"),
        ({"0": tool_call("{}")}, "tool_calls is no list, or not the assistant's"),
        ("weather", "tool_calls is no list, or not the assistant's"),
    ],
)
def test_calls_that_cannot_be_learned(tmp_path: Path, calls: Any, reason: str) -> None:
    """A call that is cut short would be learned as it is."""
    assert why(tmp_path, user("q"), assistant("a", tool_calls=calls)) == [reason]


def test_only_the_assistant_calls(tmp_path: Path) -> None:
    """Something else is mixed up, and nobody knows what."""
    reason = "tool_calls is no list, or not the assistant's"
    assert why(tmp_path, user("q", tool_calls=[tool_call("{}")]), assistant("a")) == [reason]


def test_content_in_parts(tmp_path: Path) -> None:
    """The API's other form of the same text."""
    parts = [{"type": "text", "text": "one "}, {"type": "input_text", "text": "two"}]
    answer = [{"type": "output_text", "text": "three"}]
    data = read_rows(tmp_path, [talk(user(parts), assistant(answer))])
    assert data.texts == [("one two", "three")]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "input_image", "image_url": PIXEL},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "image", "text": "alternative text", "url": PIXEL},
        {"type": "text", "text": 7},
        {"type": "text"},
        "text",
        None,
    ],
)
def test_images_and_sounds_are_refused_by_name(tmp_path: Path, part: Any) -> None:
    """Left out in silence, the answer would be learned to a question that it is not to."""
    content = [{"type": "text", "text": "What is this?"}, part]
    assert why(tmp_path, user(content), assistant("A cat.")) == [
        "a message holds something other than text"
    ]


@pytest.mark.parametrize("weight", [0, 0.0])
def test_an_answer_of_weight_0_is_read_and_not_learned(tmp_path: Path, weight: float) -> None:
    """So OpenAI's files mark answers that are only the way to a better one."""
    row = talk(user("q"), assistant("no", weight=weight), user("again"), assistant("yes", weight=1))
    (example,) = read_rows(tmp_path, [row]).examples
    assert example.answer == assistant("yes")
    assert example.context == (user("q"), assistant("no"), user("again"))


def test_every_answer_of_a_conversation_is_learned_after_all_before_it(tmp_path: Path) -> None:
    """Each is an answer to what was said until then, and to nothing later."""
    messages = [{"role": "system", "content": "s"}]
    for turn in range(4):
        messages += [user(f"q{turn}"), assistant(f"a{turn}")]
    data = read_rows(tmp_path, [talk(*messages)])
    assert [example.completion for example in data.examples] == ["a0", "a1", "a2", "a3"]
    for turn, example in enumerate(data.examples):
        assert list(example.context) == messages[: 2 + 2 * turn]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("q")], "no message of the assistant is to be learned"),
        ([user("q"), assistant("a", weight=0)], "no message of the assistant is to be learned"),
        ([assistant("a")], "an answer has no question before it"),
        (
            [{"role": "system", "content": "s"}, assistant("a")],
            "an answer has no question before it",
        ),
        ([], "messages is no list of messages"),
        (["q", "a"], "a message has no role that is known"),
        ([{"content": "q"}, assistant("a")], "a message has no role that is known"),
        ([{"role": "critic", "content": "q"}], "a message has no role that is known"),
        ([{"role": ["user"], "content": "q"}], "a message has no role that is known"),
        ([{"role": "user"}, assistant("a")], "a message has no content"),
        ([user(None), assistant("a")], "a message has no content"),
        ([user("q"), assistant(None)], "a message has no content"),
        ([user("q"), assistant(None, tool_calls=[])], "a message has no content"),
        ([user({"text": "q"}), assistant("a")], "a message holds something other than text"),
        ([user(7), assistant("a")], "a message holds something other than text"),
        ([user("q"), assistant("")], "empty input or output"),
        ([user("  "), assistant("a")], "empty input or output"),
    ],
)
def test_conversations_that_cannot_be_learned(
    tmp_path: Path, messages: list[Any], reason: str
) -> None:
    """Each by its line and reason, and never another row with it."""
    assert why(tmp_path, *messages) == [reason]


@pytest.mark.parametrize("messages", ["text", None, {"role": "user"}, 7])
def test_messages_that_are_no_list(tmp_path: Path, messages: Any) -> None:
    """The key alone makes no conversation."""
    dropped = reasons(tmp_path, {"messages": messages}, GOOD_TALK)
    assert dropped == {"messages is no list of messages": [2]}


@pytest.mark.parametrize(
    "tools",
    [
        "weather",
        {"weather": {}},
        ["weather"],
        [{"type": "function"}],
        [{"name": "weather"}],
        [{"type": "function", "function": {"name": 7}}],
        [{"type": "function", "function": {"name": "weather", "default": float("nan")}}],
    ],
)
def test_tools_that_are_none(tmp_path: Path, tools: Any) -> None:
    """A template that is given them raises, or writes rubbish."""
    assert why(tmp_path, user("q"), assistant("a"), tools=tools) == [
        "tools is no list of functions"
    ]


def test_the_same_question_with_other_tools_is_another_one(tmp_path: Path) -> None:
    """Whoever may call tools answers otherwise; taken for one, the answers would be compared."""
    rows = [talk(user("q"), assistant("a")), talk(user("q"), assistant("a"), tools=[function()])]
    data = read_rows(tmp_path, rows)
    assert [example.line for example in data.examples] == [1, 2]
    assert not data.dropped


def test_the_same_question_of_somebody_else_is_another_one(tmp_path: Path) -> None:
    """Templates show names; two people may get two answers."""
    rows = [talk(user("q", name=name), assistant("a")) for name in ("ida", "oda", "ida")]
    assert read_rows(tmp_path, rows).dropped == {"repeats an earlier row": [3]}


def test_calls_that_differ_are_no_repetition(tmp_path: Path) -> None:
    """Their texts are equal: empty."""
    rows = [
        talk(user("q"), assistant(None, tool_calls=[tool_call({"city": city})]))
        for city in ("Oslo", "Rome", "Oslo")
    ]
    data = read_rows(tmp_path, rows)
    assert [example.line for example in data.examples] == [1, 2]
    assert data.dropped == {"repeats an earlier row": [3]}


SURROGATE = r"\ud83d"


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(talk(user("qX"), assistant("aX"))),
        json.dumps(talk(user("q", name="nX"), assistant("aX"))),
        json.dumps(talk(user("q"), assistant("a", tool_calls=[tool_call({"keyX": "vX"})]))),
        json.dumps(talk(user("q"), assistant("a", tool_calls=[tool_call("{}", name="nX")]))),
        json.dumps(talk(user("q"), assistant("a", tool_calls=[tool_call("{}", id="iX")]))),
        json.dumps(talk(user("q"), assistant("a"), tools=[function("fX")])),
        json.dumps(talk(user("q"), assistant("a"), tools=[{**function(), "keyX": ["X"]}])),
        json.dumps(talk(user("q"), {"role": "tool", "content": "X", "tool_call_id": "X"},
                        assistant("a"))),
    ],
)  # fmt: skip
def test_lone_surrogates_are_nowhere_in_an_example(tmp_path: Path, line: str) -> None:
    """Neither the tokenizer nor the report could write them."""
    data = read_rows(tmp_path, [line.replace("X", SURROGATE)])
    for example in data.examples:
        every = json.dumps([example.context, example.answer, example.tools], ensure_ascii=False)
        assert "\ufffd" in every
        assert every.encode()
    assert data.examples


# --- prompt_completion ---


@pytest.mark.parametrize(
    ("label", "good"),
    [({}, True), *(({"label": label}, good) for label, good in [
        (True, True), (False, False), ("good", True), ("bad", False), (None, True)
    ])],
)  # fmt: skip
def test_labels_of_prompts(tmp_path: Path, label: dict[str, Any], good: bool) -> None:
    """TRL's files have true and false, the app's words are good and bad; without one it is good."""
    rows = [
        {"prompt": "q", "completion": "a", **label},
        {"prompt": "p", "completion": "b", "label": not good},
    ]
    first, second = read_rows(tmp_path, rows, method="kto").examples
    assert (first.prompt, first.completion, first.good) == ("q", "a", good)
    assert second.good is not good


@pytest.mark.parametrize("label", ["GOOD", "", "true", 1, 0, 1.0, [True], {"good": True}])
def test_other_labels_are_dropped(tmp_path: Path, label: Any) -> None:
    """Guessing one would teach what somebody called bad."""
    row = {"prompt": "q", "completion": "a", "label": label}
    dropped = reasons(tmp_path, row, {"prompt": "p", "completion": "b"})
    assert dropped == {"label is neither good nor bad": [2]}


def test_prompts_of_texts_and_of_lists(tmp_path: Path) -> None:
    """A text is one message of the user; a list is the conversation as it is."""
    context = [{"role": "system", "content": "s"}, user("q"), assistant("a"), user("r")]
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "completion": "a"},
        {"prompt": context, "completion": [assistant("b")], "tools": [function()]},
        {"prompt": context, "completion": "b"},
        {"prompt": "c", "completion": [assistant(None, tool_calls=[tool_call("{}")])]},
    ]
    first, second, third, fourth = read_rows(tmp_path, rows).examples
    assert (first.context, first.answer, first.tools) == ((user("q"),), assistant("a"), ())
    assert (second.context, second.answer) == (tuple(context), assistant("b"))
    assert second.tools == (function(),)
    assert (third.context, third.answer) == (second.context, second.answer)
    assert fourth.answer["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": 7, "completion": "a"}, "messages is no list of messages"),
        ({"prompt": [], "completion": "a"}, "messages is no list of messages"),
        ({"prompt": None, "completion": "a"}, "messages is no list of messages"),
        ({"prompt": "q", "completion": None}, "messages is no list of messages"),
        ({"prompt": "q", "completion": [user("a")]}, "an answer is not one message of the assis"),
        (
            {"prompt": "q", "completion": [assistant("a"), assistant("b")]},
            "an answer is not one message of the assistant",
        ),
        ({"prompt": "", "completion": "a"}, "empty input or output"),
        ({"prompt": "q", "completion": " \n"}, "empty input or output"),
        ({"prompt": "q", "completion": "a", "tools": 7}, "tools is no list of functions"),
    ],
)
def test_prompts_that_cannot_be_learned(tmp_path: Path, row: Any, reason: str) -> None:
    """By line and reason."""
    dropped = reasons(tmp_path, row, {"prompt": "p", "completion": "b"})
    ((told, lines),) = dropped.items()
    assert told.startswith(reason)
    assert lines == [2]


# --- preferences ---


def preference(prompt: Any = "q", chosen: Any = "a", rejected: Any = "b") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def paired(data: Read) -> list[tuple[str, str, str]]:
    for chosen, rejected in data.pairs:
        assert chosen.context == rejected.context
        assert chosen.good
        assert not rejected.good
        assert chosen.line == rejected.line
    return sorted((good.prompt, good.completion, bad.completion) for good, bad in data.pairs)


def test_preferences_are_pairs(tmp_path: Path) -> None:
    """Texts or lists; which one was preferred decides what is learned."""
    lists = preference([user("r")], [assistant("c")], [assistant("d")])
    data = read_rows(tmp_path, [preference(), lists])
    assert paired(data) == [("q", "a", "b"), ("r", "c", "d")]
    assert [example.good for example in data.examples] == [True, False] * 2


def test_a_pair_stays_with_its_line(tmp_path: Path) -> None:
    """Of one question's pairs the good answer of another line was not weighed against this one."""
    rows = [preference(chosen=f"a{turn}", rejected=f"b{turn}") for turn in range(5)]
    data = read_rows(tmp_path, rows)
    assert paired(data) == [("q", f"a{turn}", f"b{turn}") for turn in range(5)]


def test_a_chosen_answer_that_repeats_keeps_its_rejected_one(tmp_path: Path) -> None:
    """Each was preferred to just that one, whichever line the answer stood in first."""
    answers = [(f"a{turn % 4}", f"b{turn}") for turn in range(16)]
    data = read_rows(tmp_path, [preference("q", *pair) for pair in answers], method="dpo")
    found = [(good.completion, bad.completion) for good, bad in data.pairs]
    assert sorted(found) == sorted(answers)
    assert data.dropped == {"repeats an earlier row": list(range(5, 17))}


@pytest.mark.parametrize("depth", [50, *range(100, 1000, 60), 5_000, 100_000])
def test_deeply_nested_tools_and_arguments_never_break_the_reader(
    tmp_path: Path, depth: int
) -> None:
    """Read or dropped by name; Python reads deeper than it can write."""
    deep = '{"a":' * depth + "1" + "}" * depth
    told = ("tools is no", "the line is not JSON", "a tool call has arguments that are no")
    for row in (
        json.dumps(talk(user("q"), assistant("a"), tools=[{**function(), "x": 0}])),
        json.dumps(talk(user("q"), assistant("a", tool_calls=[tool_call({"x": 0})]))),
        json.dumps(talk(user("q"), assistant("a", tool_calls=[tool_call(deep)]))),
    ):
        line = row.replace('"x": 0', f'"x": {deep}').replace(r"{\"x\": 0}", json.dumps(deep))
        data = read_rows(tmp_path, [json.dumps(GOOD_TALK), line])
        lines = {example.line for example in data.examples}
        assert all(reason.startswith(told) for reason in data.dropped)
        assert lines | {2 for _ in data.dropped} == {1, 2}
        assert depth > 50 or lines == {1, 2}


def test_without_pairs_the_chosen_answers_are_learned(tmp_path: Path) -> None:
    """A rejected answer that is learned is the worst that can happen."""
    data = read_rows(tmp_path, [preference(), preference("r", "c", "d")], method="sft")
    assert data.texts == [("q", "a"), ("r", "c")]
    assert data.dropped == {"rejected answers": [1, 2]}


@pytest.mark.parametrize(
    "row",
    [
        preference(chosen="a", rejected="a"),
        preference(chosen=[assistant("a")], rejected="a"),
        preference(chosen="a", rejected=[assistant([{"type": "text", "text": "a"}])]),
    ],
)
def test_equal_answers_prefer_nothing(tmp_path: Path, row: Any) -> None:
    """However they are spelled."""
    dropped = reasons_of_pairs(tmp_path, row)
    assert dropped == {"chosen and rejected are the same": [2]}


@pytest.mark.parametrize(
    "row",
    [
        preference(prompt=None),
        preference(chosen=None),
        preference(rejected=7),
        preference(rejected=[]),
        preference(chosen=[user("a")]),
        preference(rejected=[user("q"), assistant("b")]),
        preference(prompt=[user([{"type": "image_url", "image_url": {"url": PIXEL}}])]),
        {**preference(), "tools": "none"},
    ],
)
def test_preferences_that_cannot_be_learned(tmp_path: Path, row: Any) -> None:
    """Neither half of them is used."""
    assert list(reasons_of_pairs(tmp_path, row).values()) == [[2]]


def reasons_of_pairs(tmp_path: Path, row: Any) -> dict[str, list[int]]:
    data = read_rows(tmp_path, [preference("p", "x", "y"), row])
    assert {example.line for example in data.examples} == {1}
    return data.dropped


# --- which shape a file has ---

ROWS: dict[str, Any] = {
    "from_runs": {
        "runId": "r",
        "targetType": "workflow",
        "targetId": "w",
        "trail": [{"nodeId": "n", "agentId": "a", "order": 0, "input": "q", "output": "a"}],
        "output": {"output": "a"},
    },
    "from_feedback": {"input": '"q"', "output": '"a"', "label": "good"},
    "messages": GOOD_TALK,
    "preferences": preference(),
    "prompt_completion": {"prompt": "q", "completion": "a"},
}


def test_there_is_a_row_of_every_shape() -> None:
    """Otherwise the tests below leave one out."""
    assert {each.NAME for each in FORMATS} == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_shape_is_told_by_its_keys(tmp_path: Path, name: str) -> None:
    """Nobody is asked; keys that are not known change nothing, nor does the order of keys."""
    row = {"zzz": 1, **dict(reversed(ROWS[name].items())), "id": 7, "metadata": {"messages": []}}
    data = read_rows(tmp_path, [row], method="auto")
    assert data.format == name
    assert data.texts[0] == ("q", "a")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_lacks_a_key_is_of_no_shape(name: str) -> None:
    """Half a row is not guessed at."""
    keys = {each.NAME: each.KEYS for each in FORMATS}[name]
    for key in keys:
        left = {other: value for other, value in ROWS[name].items() if other != key}
        assert format_of(left) is None


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(ROWS, 2)))
def test_files_of_two_shapes_are_refused_where_the_shape_changes(
    tmp_path: Path, first: str, second: str
) -> None:
    """Labels of one may mean something else in the other; the line tells where to cut the file."""
    rows = [json.dumps(ROWS[first]), "", "no JSON", "[1]", json.dumps(ROWS[first])]
    rows += [json.dumps(ROWS[second])] * 2
    with pytest.raises(DatasetError) as caught:
        read_rows(tmp_path, rows)
    assert caught.value.cause == (
        f"Line 6 of the data set is of the shape {second}, those before it are {first}"
    )


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_no_shape_among_others_is_refused(tmp_path: Path, name: str) -> None:
    """Its keys and what would be understood are told."""
    with pytest.raises(DatasetError, match=r"Line 2 .* no known shape; its keys: answer, question"):
        read_rows(tmp_path, [ROWS[name], {"question": "q", "answer": "a"}])


def test_a_conversation_without_end_costs_no_more_than_a_long_one(tmp_path: Path) -> None:
    """Each answer has all before it for its context: ten thousand would fill the memory."""
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    steps = [
        {"nodeId": "n", "agentId": "a", "order": n, "input": f"q{n}", "output": "a"}
        for n in range(20_000)
    ]
    for row in (
        {"messages": turn * 20_000},
        {"runId": "r", "trail": steps, "output": {"output": "a"}},
    ):
        path = tmp_path / "long.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        with compile_dataset(path, DatasetOptions()) as compiled:
            assert len(compiled) == 100
            assert "a line has more than 100 answers" in compiled.dropped


def test_a_prompt_must_ask(tmp_path: Path) -> None:
    """Without a question there is nothing that the answer answers."""
    data = read_rows(
        tmp_path,
        [
            {"prompt": "q", "completion": "a"},
            {"prompt": [{"role": "system", "content": "Be brief."}], "completion": "b"},
            {"prompt": [user("q"), assistant("a")], "completion": "c"},
        ],
    )
    assert data.texts == [("q", "a")]
    assert data.dropped == {
        "an answer has no question before it": [2],
        "a prompt ends with an answer": [3],
    }


def test_ids_of_calls_make_no_other_call(tmp_path: Path) -> None:
    """They are drawn by chance; the same call rated twice is one."""
    talks = [
        {
            "messages": [
                user("q"),
                assistant("", tool_calls=[{**tool_call("{}"), "id": f"call_{n}"}]),
            ]
        }
        for n in range(3)
    ]
    data = read_rows(tmp_path, talks)
    assert len(data.examples) == 1
    assert data.dropped == {"repeats an earlier row": [2, 3]}


def test_a_function_without_parameters_may_be_called_with_nothing(tmp_path: Path) -> None:
    """Servers write an empty text, or nothing."""
    nothings: tuple[object, ...] = ("", None, "{}", {})
    for nothing in nothings:
        talk = {"messages": [user("q"), assistant("", tool_calls=[tool_call(nothing)])]}
        (example,) = read_rows(tmp_path, [talk]).examples
        assert example.answer["tool_calls"][0]["function"]["arguments"] == {}


def test_a_tool_may_have_nothing_to_say(tmp_path: Path) -> None:
    """What the model says then is an answer like any other."""
    call = assistant("", tool_calls=[tool_call("{}")], weight=0)
    talk = [user("q"), call, {"role": "tool", "content": ""}, assistant("Done.")]
    assert read_rows(tmp_path, [{"messages": talk}]).texts == [("", "Done.")]
