"""from_runs: what agents did, told by files as the app writes them; golden files of both shapes.

A row of the golden files is in the app's exact shape; what must come of it was written by hand.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.errors import DatasetError
from ollama_trainer.formats import runs
from ollama_trainer.records import DatasetOptions, Example
from tests.reading import Read, read_file, read_rows

GOLDEN = Path(__file__).parents[1] / "golden"


def golden_rows(name: str) -> list[dict[str, Any]]:
    text = (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8")
    return [
        json.loads(line) for line in text.split("\n") if line.startswith("{") and line[-1] == "}"
    ]


def as_expected(data: Read) -> dict[str, Any]:
    """In the form of the files *.expected.json."""
    return {
        "format": data.format,
        "rows_read": data.rows_read,
        "secrets": data.secrets,
        "dropped": data.dropped,
        "examples": [
            {
                "line": example.line,
                "messages": list(example.context),
                "answer": example.answer["content"],
                "good": example.good,
                "after_unseen_tools": example.after_unseen_tools,
            }
            for example in data.examples
        ],
    }


@pytest.mark.parametrize("name", ["from_feedback", "from_runs"])
def test_the_golden_files(name: str) -> None:
    """Whatever is changed, what comes of the app's files changes only on purpose."""
    expected = json.loads((GOLDEN / f"{name}.expected.json").read_text(encoding="utf-8"))
    data = read_file(GOLDEN / f"{name}.jsonl", **expected.pop("options"))
    found = as_expected(data)
    # Line by line first: a long difference says nothing.
    for line in range(1, 1 + max(example["line"] for example in expected["examples"])):
        assert [e for e in found["examples"] if e["line"] == line] == [
            e for e in expected["examples"] if e["line"] == line
        ]
    assert found == expected
    assert {example.answer["role"] for example in data.examples} == {"assistant"}


@pytest.mark.parametrize("name", ["from_feedback", "from_runs"])
def test_every_golden_line_is_accounted_for(name: str) -> None:
    """A row that is neither used nor named is lost without anybody knowing."""
    expected = json.loads((GOLDEN / f"{name}.expected.json").read_text(encoding="utf-8"))
    text = (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8")
    written = {number for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    told = {line for lines in expected["dropped"].values() for line in lines}
    assert told | {example["line"] for example in expected["examples"]} == written
    assert expected["rows_read"] == len(written)


def test_no_call_of_a_tool_is_made_up() -> None:
    """The file has summaries at best: calls made from them would have arguments that never were."""
    data = read_file(GOLDEN / "from_runs.jsonl", method="sft")
    every = json.dumps([[*example.context, example.answer] for example in data.examples])
    names = [
        call["name"]
        for row in golden_rows("from_runs")
        for step in row["trail"]
        for call in step.get("toolCalls", ())
    ]
    assert names
    for word in (*names, "tool", "city=Oslo", "2 rounds"):
        assert word not in every
    assert not any(example.tools for example in data.examples)
    assert [example.line for example in data.examples if example.after_unseen_tools] == [10]


def step(order: int, node: str = "n1", **more: Any) -> dict[str, Any]:
    return {"nodeId": node, "agentId": f"a-{node}", "agentName": node, "order": order, **more}


def run(trail: Any, *, target: str | None = None, output: Any = "the end") -> dict[str, Any]:
    kind = "agent" if target else "workflow"
    return {
        "runId": "r",
        "targetType": kind,
        "targetId": target or "w",
        "trail": trail,
        "output": {"output": output, "trail": trail},
    }


def found(row: dict[str, Any]) -> list[Example | str]:
    return list(runs.read(row, 1, DatasetOptions()))


def said(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """The conversations of a run, answer last; sentences are errors here."""
    examples = [each for each in found(row) if isinstance(each, Example)]
    assert len(examples) == len(found(row))
    return [
        (*(message["content"] for message in example.context), example.completion)
        for example in examples
    ]


TALK = [
    step(0, input="One?", output="1"),
    step(1, "n2", input="Two?", output="2"),
    step(2, input="Three?", output="3"),
]


def test_steps_are_taken_in_their_order() -> None:
    """A file that lists them otherwise says the same."""
    expected = [("One?", "1"), ("Two?", "2"), ("One?", "1", "Three?", "3")]
    assert said(run(TALK)) == expected
    for seed in range(6):
        shuffled = random.Random(seed).sample(TALK, len(TALK))
        assert said(run(shuffled)) == expected


@pytest.mark.parametrize("where", ["row", "output", "both"])
def test_the_trail_may_stand_twice(where: str) -> None:
    """Read twice, every answer would weigh twice; read in the wrong place, none is found."""
    row = run(TALK)
    if where == "row":
        del row["output"]["trail"]
    elif where == "output":
        row["trail"] = []
    assert len(said(row)) == 3


@pytest.mark.parametrize("key", [{}, {"round": 0}, {"round": 3}])
def test_of_a_repeated_step_the_last_counts(key: dict[str, Any]) -> None:
    """A resumed run goes through its steps again; what it said before was given up."""
    first = step(0, input="One?", output="draft", **key)
    last = {**first, "output": "final"}
    assert said(run([first, *TALK[1:2], last])) == [("One?", "final"), ("Two?", "2")]


@pytest.mark.parametrize("other", [{"nodeId": "n9"}, {"round": 1}, {"order": 7}])
def test_steps_that_differ_in_place_round_or_order_are_no_repetition(other: dict[str, Any]) -> None:
    """Taken for one, an answer would be lost."""
    first = step(0, input="One?", output="1", round=0)
    assert len(said(run([first, {**first, "input": "Two?", "output": "2", **other}]))) == 2


@pytest.mark.parametrize("missing", [{}, {"input": None}, {"input": ""}])
def test_what_one_agent_says_the_next_one_hears(missing: dict[str, Any]) -> None:
    """The app leaves out inputs that are the output before."""
    trail = [
        step(0, input="Go.", output={"b": 1, "a": 2}),
        step(1, "n2", output="Seen.", **missing),
    ]
    assert said(run(trail)) == [("Go.", '{"a":2,"b":1}'), ('{"a":2,"b":1}', "Seen.")]


def test_waiting_for_the_user_is_no_error() -> None:
    """Question and reply belong to one conversation; the same input, brought again, stands once."""
    waiting = step(0, input="Book.", error="WAITING_FOR_USER")
    reply = step(2, input="At eight.", output="Booked.", inputIsUserReply=True)
    again = {**waiting, "order": 1}
    assert said(run([waiting, again, reply])) == [("Book.\n\nAt eight.", "Booked.")]
    asked = {**waiting, "output": "When?"}
    assert said(run([asked, reply])) == [
        ("Book.", "When?"),
        ("Book.", "When?", "At eight.", "Booked."),
    ]


def test_a_failed_step_says_and_hears_nothing() -> None:
    """What it was given is not what the next answer is to."""
    failed = step(0, input="Open the door.", output="Broken.", error="no door")
    row = run([failed, step(1, input="Try.", output="Done."), step(2, "n2", output="Seen.")])
    assert found(row)[0] == "a step failed"
    examples = [each for each in found(row) if isinstance(each, Example)]
    assert [(e.prompt, e.completion) for e in examples] == [("Try.", "Done."), ("Done.", "Seen.")]
    assert [len(example.context) for example in examples] == [1, 1]


@pytest.mark.parametrize("mark", ["Recent turns:\n", "Summary:\n"])
@pytest.mark.parametrize("before", ["", "Your turn.\n\n", "Your turn.\n"])
def test_an_input_that_recounts_the_talk_stands_alone(mark: str, before: str) -> None:
    """The app sends it alone; with the turns before it the model would hear all twice."""
    recounting = f"{before}{mark}a: b"
    trail = [*TALK, step(3, input=recounting, output="4"), step(4, input="Five?", output="5")]
    assert said(run(trail))[3:] == [(recounting, "4"), (recounting, "4", "Five?", "5")]
    no_mark = f"{before}See {mark}a: b"
    assert len(said(run([*TALK, step(3, input=no_mark, output="4")]))[3]) == 6


@pytest.mark.parametrize("agent", ["", None])
def test_a_workflow_that_asks_its_user_answers_nothing(agent: str | None) -> None:
    """Its question is written by whoever drew the workflow."""
    asking = {**step(1, "w", input="Which?", output="Never learned."), "agentId": agent}
    trail = [step(0, input="Go.", output="Went."), asking, step(2, "n2", output="On.")]
    assert said(run(trail)) == [("Go.", "Went."), ("Went.", "On.")]


def test_a_run_of_nothing_but_questions_to_the_user_is_named(tmp_path: Path) -> None:
    """Whatever such a step has for an output: a row that gives nothing is told by its number."""
    asking = {**step(0, "w", input="Which?", output="Blue."), "agentId": ""}
    data = read_rows(tmp_path, [run(TALK), run([asking])])
    assert data.dropped == {"no step of the run has an output": [2]}


def test_one_agent_s_run_is_learned_from_that_agent_alone() -> None:
    """Otherwise it would learn to speak for the others; a stranger to the trail changes nothing."""
    assert [type(each) for each in found(run(TALK, target="a-n2"))] == [str, Example, str]
    assert [type(each) for each in found(run(TALK, target="a-n1"))] == [Example, str, Example]
    assert len(said(run(TALK, target="nobody"))) == 3


FAILED = {"success": False, "error": "x", "errorDetails": {"message": "x"}}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (FAILED, "failed"),
        ({"success": False}, "failed"),
        ({"error": "x", "trail": TALK}, "failed"),
        ({"success": False, "output": "x", "trail": TALK}, "failed"),
        ({"question": "Which?", "type": "clarification", "trail": TALK}, "waits"),
        ({"message": "Which?", "trail": TALK}, "waits"),
        ({"trail": TALK, "executing": True}, "not over"),
        ({"trail": TALK, "executing": False}, "not over"),
        ({"trail": TALK}, "not over"),
        ({}, "not over"),
        ({"output": {"userResponded": True, "response": "Blue."}, "trail": TALK}, "not over"),
        (None, "queued"),
        ("text", "cannot be told"),
        ([TALK], "cannot be told"),
    ],
)
def test_only_what_succeeded_is_learned(output: Any, reason: str) -> None:
    """No state is written down; a failed run's answers led to the failure."""
    (told,) = found({**run(TALK), "output": output})
    assert isinstance(told, str)
    assert reason in told


def test_a_queued_run_has_no_output() -> None:
    """The key is left out, not null."""
    row = run(TALK)
    del row["output"]
    assert found(row) == ["the run is queued"]


@pytest.mark.parametrize("output", ["", None, False, 0, {"userResponded": False}, {"error": "x"}])
def test_a_run_whose_own_output_is_odd_succeeded_nevertheless(output: Any) -> None:
    """What counts is that the key is there; the steps are what is learned from."""
    assert len(said(run(TALK, output=output))) == 3


@pytest.mark.parametrize("trail", ["text", 7, {"nodeId": "n"}, ["text"], [None], [[TALK]]])
def test_a_trail_of_something_else_is_named(trail: Any) -> None:
    """Later versions of the app may write another one; never a crash."""
    assert found(run(trail)) == ["the run's trail is no list of steps"]


@pytest.mark.parametrize("trail", [[], None, [{}], [step(0, input="One?")], [step(0, output="")]])
def test_a_run_without_answers_is_named(trail: Any) -> None:
    """Nothing can be learned, and the row is told."""
    assert [type(each) for each in found(run(trail))] == [str]


@pytest.mark.parametrize("order", [None, "1", [1], float("nan"), True, 1 << 70, -1, 0.5])
def test_odd_orders_break_nothing(order: Any) -> None:
    """An order that is none leaves a step in its place of the list."""
    trail = [step(0, input="One?", output="1"), step(order, "n2", input="Two?", output="2")]
    assert sorted(said(run(trail))) == [("One?", "1"), ("Two?", "2")]


def test_values_that_json_does_not_have_are_named() -> None:
    """They have no text; the steps beside them have."""
    trail = [step(0, input={"a": float("inf")}, output="1"), step(1, input="Two?", output="2")]
    assert found(run(trail))[0] == "a step's input or output is no JSON value"
    assert len(found(run(trail))) == 2


def test_a_file_of_runs_that_all_failed_says_so(tmp_path: Path) -> None:
    """The likeliest first file of somebody whose agents do not work yet."""
    rows = [{**run([]), "output": FAILED}] * 3
    with pytest.raises(DatasetError, match=r"None of the 3 rows.*the run failed: 3 \(lines 1, 2,"):
        read_rows(tmp_path, rows)


def test_nobody_hands_on_to_itself(tmp_path: Path) -> None:
    """What a place said is not what it was asked next."""
    trail = [
        {"nodeId": "n", "agentId": "a", "order": 0, "input": "hi", "output": "X"},
        {"nodeId": "n", "agentId": "a", "order": 1, "output": "Y"},
        {"nodeId": "m", "agentId": "b", "order": 2, "output": "Z"},
    ]
    row = {"runId": "r", "trail": trail, "output": {"output": "Z"}}
    data = read_rows(tmp_path, [row])
    assert data.texts == [("hi", "X"), ("Y", "Z")]
    assert data.dropped == {"a step has no input": [1]}


def test_orders_may_begin_anew_in_each_round(tmp_path: Path) -> None:
    """Otherwise a later answer would stand before an earlier question."""
    trail = [
        {"nodeId": node, "agentId": "a", "round": turn, "order": order, "input": f"{node}{turn}?",
         "output": f"{node}{turn}."}
        for turn in (0, 1) for order, node in enumerate("mn")
    ]  # fmt: skip
    data = read_rows(tmp_path, [{"runId": "r", "trail": trail, "output": {"output": "x"}}])
    assert [text for _, text in data.texts] == ["m0.", "n0.", "m1.", "n1."]
