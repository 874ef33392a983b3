"""Chats whose answers are known before the model is published, so that the served one can be tried.

Some of the trained questions are answered by the finished file and by its base, both in llama.cpp.
What is served must end its answer as the file did, and must not give the base's answer where the
two differ; a call of a tool that the file writes must come back as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from ollama_trainer.fidelity import Written, written
from ollama_trainer.gguf.file import GgufFile
from ollama_trainer.pipeline.report import Seen
from ollama_trainer.prompts import Tokenizer, open_tokenizer
from ollama_trainer.records import (
    Example,
    GoldenChat,
    Message,
    TokenizedExample,
    visible_answer,
)

#: Trained rows that are tried, and of these, chats that are kept.
_TRIED, _KEPT = 6, 3
#: The same of rows whose answer calls a tool.
_TRIED_CALLS, _KEPT_CALLS = 2, 1
#: The longest answer, in tokens; short ones are given twice what was trained, and some more.
_MOST_TOKENS = 512
_MORE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A trained row that may become a golden chat."""

    messages: tuple[Message, ...]
    tools: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    #: The trained answer, without its end.
    answer_ids: tuple[int, ...]
    #: Names of the tools that it calls.
    calls: tuple[str, ...]


def candidates(rows: Iterable[Seen]) -> tuple[Candidate, ...]:
    """The shortest trained rows: of different answers first, and some that call tools."""
    found = [_candidate(row.example, row.ids) for row in rows if row.ids is not None]
    found.sort(key=lambda one: len(one.prompt_ids) + len(one.answer_ids))
    plain = [one for one in found if not one.calls]
    first: dict[tuple[int, ...], Candidate] = {}
    for one in plain:
        first.setdefault(one.answer_ids, one)
    others = (one for one in plain if first[one.answer_ids] is not one)
    calling = (one for one in found if one.calls)
    return (*islice(chain(first.values(), others), _TRIED), *islice(calling, _TRIED_CALLS))


def _candidate(example: Example, ids: TokenizedExample) -> Candidate:
    start = ids.mask.index(1)
    calls = example.answer.get("tool_calls") or ()
    return Candidate(
        messages=example.context,
        tools=example.tools,
        prompt_ids=ids.ids[:start],
        answer_ids=ids.ids[start:-1],
        calls=tuple(call["function"]["name"] for call in calls),
    )


def golden_chats(
    base: GgufFile, served: Path, asked: Sequence[Candidate]
) -> tuple[GoldenChat, ...]:
    """What the finished file answers to some trained rows, the most telling ones first.

    Args:
        base: what it was made of.
        served: the finished file.

    Raises:
        Unloadable: llama.cpp cannot load one of them.
    """
    if not asked:
        return ()
    prompts = [one.prompt_ids for one in asked]
    longest = max(len(one.answer_ids) for one in asked)
    cap = min(_MOST_TOKENS, 2 * longest + _MORE_TOKENS)
    tuned, before = (written(path, prompts, cap) for path in (served, base.path))
    with open_tokenizer(base) as tokenizer:
        chats = [
            _golden(tokenizer, *three)
            for three in zip(asked, tuned, before, strict=True)
            if not three[0].calls or three[1] == Written([*three[0].answer_ids], True)
        ]
    chats.sort(key=lambda chat: (not chat.ended, chat.base_answer is None))
    calling = [chat for chat in chats if chat.calls][:_KEPT_CALLS]
    return tuple([chat for chat in chats if not chat.calls][:_KEPT] + calling)


def _golden(tokenizer: Tokenizer, asked: Candidate, tuned: Written, before: Written) -> GoldenChat:
    answer = visible_answer(tokenizer.text(tuned.ids))
    of_base = visible_answer(tokenizer.text(before.ids))
    return GoldenChat(
        messages=asked.messages,
        tools=asked.tools,
        answer=answer,
        n_tokens=len(tuned.ids) + 1,
        ended=tuned.ended,
        base_answer=None if of_base == answer else of_base,
        calls=asked.calls,
    )
