"""from_runs: what the agents of a run did, a run a line.

    {"runId": …, "targetType": …, "targetId": …, "trail": [step, …], "output": …}

A run's state is not written down and is told by the shape of `output`; only a run that succeeded
is learned from. A step's output is an answer to its input, which is what another agent handed on
or what the user replied; the steps of one place in the workflow are one conversation. Names and
summaries of tool calls are all that the file has of them, so none are made up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ollama_trainer.formats._chat import MOST_ANSWERS, TOO_MANY
from ollama_trainer.formats._text import canonical
from ollama_trainer.records import DatasetOptions, Example, Message

NAME = "from_runs"
KEYS = frozenset({"runId", "trail"})

#: What a step has for an error while it waits for its user: none.
_WAITING = "WAITING_FOR_USER"
#: By this an input already tells what was said before; the app sends it alone.
_RECOUNTED = ("Recent turns:\n", "Summary:\n")
_QUEUED = object()

Step = Mapping[str, Any]


def read(row: Mapping[str, Any], line: int, _options: DatasetOptions) -> Iterator[Example | str]:
    """An example for each answer of the run."""
    output = row.get("output", _QUEUED)
    reason = _unsuccessful(output)
    if reason is not None:
        yield reason
        return
    trail = row["trail"] or output.get("trail")
    if not isinstance(trail, list) or not all(isinstance(step, Mapping) for step in trail):
        yield "the run's trail is no list of steps"
        return
    steps = _in_order(trail)
    if not any(_is_there(step.get("output")) and _is_agents(step) for step in steps):
        yield "no step of the run has an output"
        return
    agent = row.get("targetId") if row.get("targetType") == "agent" else None
    # What other agents say to the one that is tuned is not for it to say.
    known = any(step.get("agentId") == agent for step in steps)
    found = _examples(steps, line, agent if known else None)
    n_answers = 0
    for each in found:
        n_answers += isinstance(each, Example)
        if n_answers > MOST_ANSWERS:
            yield TOO_MANY
            return
        yield each


def _unsuccessful(output: Any) -> str | None:
    """Why a run is not to be learned from; None when it succeeded."""
    if output is _QUEUED or output is None:
        return "the run is queued"
    if not isinstance(output, Mapping):
        return "the run's state cannot be told"
    if output.get("success") is False or (output.get("error") and "output" not in output):
        return "the run failed"
    if "output" not in output:
        if {"question", "type", "message"} & output.keys():
            return "the run waits for its user"
        return "the run was cancelled or is not over"
    inner = output["output"]
    if isinstance(inner, Mapping) and inner.get("userResponded") is True:
        return "the run goes on after its user's reply and is not over"
    return None


def _in_order(trail: Sequence[Step]) -> list[Step]:
    """The steps in their order, of each repeated one the last."""
    places = {id(step): place for place, step in enumerate(trail)}
    last = {
        (str(step.get("nodeId")), str(step.get("round")), _order(step, place)): step
        for place, step in enumerate(trail)
    }
    rounds = [step.get("round") for step in last.values()]
    by_round = all(isinstance(each, int) for each in rounds)
    return sorted(
        last.values(),
        key=lambda step: (step["round"] if by_round else 0, _order(step, places[id(step)])),
    )


def _order(step: Step, place: int) -> float:
    order = step.get("order")
    return order if isinstance(order, int | float) and order == order else place


def _examples(steps: Sequence[Step], line: int, agent: str | None) -> Iterator[Example | str]:
    """Walks through a run; `agent` is whose answers are learned, None: everybody's."""
    talks: defaultdict[str, _Talk] = defaultdict(_Talk)
    #: The place that spoke last, and what it said.
    handed_on: tuple[str, str | None] = ("", None)
    for step in steps:
        talk = talks[str(step.get("nodeId"))]
        try:
            said = _text(step.get("input"))
            answer = _text(step.get("output"))
        except (ValueError, RecursionError):
            yield "a step's input or output is no JSON value"
            continue
        if step.get("error") and step["error"] != _WAITING:
            yield "a step failed"
            continue
        if not _is_agents(step):
            continue
        node, words = handed_on
        # Nobody hands on to itself.
        talk.hear(words if said is None and node != str(step.get("nodeId")) else said)
        if answer is None:
            continue
        handed_on = str(step.get("nodeId")), answer
        context = talk.answered(answer)
        if agent is not None and step.get("agentId") != agent:
            yield "a step is another agent's"
        elif not context:
            yield "a step has no input"
        else:
            yield Example(
                context=context,
                answer={"role": "assistant", "content": answer},
                after_unseen_tools=bool(step.get("toolCalls")),
                line=line,
            )


def _is_agents(step: Step) -> bool:
    """False where the workflow itself asks its user something: nobody's answer."""
    return bool(step.get("agentId", True))


class _Talk:
    """What one place in the workflow heard and said so far."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._heard: list[str] = []

    def hear(self, text: str | None) -> None:
        """Takes in an input; a resumed step brings the same one again."""
        if text is not None and text not in self._heard:
            self._heard.append(text)

    def answered(self, answer: str) -> tuple[Message, ...]:
        """The conversation before an answer, which is then part of it; empty: nothing was heard."""
        if not self._heard:
            return ()
        text = "\n\n".join(self._heard)
        if text.startswith(_RECOUNTED) or any(f"\n{mark}" in text for mark in _RECOUNTED):
            self._messages.clear()
        self._messages.append({"role": "user", "content": text})
        context = tuple(self._messages)
        self._messages.append({"role": "assistant", "content": answer})
        self._heard.clear()
        return context


def _is_there(value: Any) -> bool:
    return value is not None and value != ""


def _text(value: Any) -> str | None:
    return canonical(value) if _is_there(value) else None
