"""Conversations as Ollama's own types leave them. Each expectation was seen on an Ollama 0.33."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollama_trainer.ollama.messages import as_served, for_api, preceded, tools_as_served
from ollama_trainer.records import OllamaModel

USER = {"role": "user", "content": "Hi", "name": "ida"}
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"z": 1.0, "a": 2}}}
ASKING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3", "name": "f", "tool_call_id": "c1"}


def tool(parameters: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **more}}


def written(parameters: Any, **more: Any) -> str:
    """The parameters, as a template writes them."""
    (made,) = tools_as_served([tool(parameters, **more)])
    return json.dumps(made["function"]["parameters"])


def test_messages_have_the_fields_that_ollama_has() -> None:
    assert as_served([USER, ASKING, RESULT]) == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "f", "arguments": {"z": 1, "a": 2}},
                    "id": "c1",
                }
            ],
        },
        {"role": "tool", "content": "3", "name": "f", "tool_call_id": "c1"},
    ]
    assert for_api([USER, ASKING, RESULT]) == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "function": CALL["function"]}],
        },
        {"role": "tool", "content": "3", "tool_name": "f", "tool_call_id": "c1"},
    ]


def test_tools_come_in_ollamas_order_without_what_it_drops() -> None:
    given = {
        "$defs": {"b": 1, "a": 2},
        "properties": {
            "z": {
                "type": "string",
                "items": {"b": 1, "a": {"d": 1.0, "c": 2.5}},
                "enum": [1.0, "b"],
            },
            "m": {"anyOf": [{"type": "string"}, {"type": ["null"]}], "description": "q"},
            "e": {"type": [], "properties": {}},
            "s": {"$ref": "#/x", "default": 3},
            "o": {"required": ["k"], "properties": {"k": {"type": ["integer", "null"]}}},
        },
        "type": "object",
        "required": [],
        "additionalProperties": False,
    }
    assert written(given, strict=True) == (
        '{"type": "object", "$defs": {"a": 2, "b": 1}, "properties": {"z": {"type": "string", '
        '"items": {"a": {"c": 2.5, "d": 1}, "b": 1}, "enum": [1, "b"]}, "m": {"anyOf": '
        '[{"type": "string"}, {"type": "null"}], "description": "q"}, "e": {"properties": {}}, '
        '"s": {}, "o": {"properties": {"k": {"type": ["integer", "null"]}}, "required": ["k"]}}}'
    )
    (made,) = tools_as_served([tool({"type": "object"}, strict=True)])
    assert list(made["function"]) == ["name", "description", "parameters"]
    assert written({}) == '{"type": "", "properties": null}'


@pytest.mark.parametrize(
    ("given", "served"),
    [
        (1e21, 1e21),
        (0.1, 0.1),
        (True, True),
        (2**53 + 1, 2**53),
        ([{"z": 1, "b": 2.0}], [{"b": 2, "z": 1}]),
    ],
)
def test_arguments_are_gos_numbers_and_sorted_below_the_first_level(
    given: Any, served: Any
) -> None:
    call = {"function": {"name": "f", "arguments": {"z": given, "a": None}}}
    (message,) = as_served([{"role": "assistant", "content": "", "tool_calls": [call]}])
    arguments = message["tool_calls"][0]["function"]["arguments"]
    assert json.dumps(arguments) == json.dumps({"z": served, "a": None})


def test_what_ollama_puts_before_a_conversation() -> None:
    said = {"role": "user", "content": "Before"}
    system = {"role": "system", "content": "Own."}
    model = OllamaModel(model="m", system="Be brief.", messages=(said,))
    assert preceded(model, [USER]) == [{"role": "system", "content": "Be brief."}, said, USER]
    assert preceded(model, [system, USER]) == [said, system, USER]
    assert preceded(OllamaModel(model="m"), [USER]) == preceded(None, [USER]) == [USER]
