"""Planted secrets: whatever format and field they stand in, no token that is trained on has them.

They are looked for in the text that the tokens stand for, behind the reader, the redaction, the
chat template and the tokenizer: nothing else shows what a model would learn.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest

from ollama_trainer.compiler import compile_dataset
from ollama_trainer.errors import DatasetError
from ollama_trainer.gguf.file import GgufFile, read_gguf
from ollama_trainer.pipeline.dataset import PreparedData, inspect, prepare
from ollama_trainer.prompts import open_prompt_format
from ollama_trainer.records import DatasetOptions, Method, TrainingOptions
from tests.reading import read_rows
from tests.tiny_models import write_vocabulary

#: So much of a secret is a leak.
_LEAK = 8
#: Says everything that a conversation has: tools, calls and all.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for key in ('name', 'tool_call_id') %}{% if message[key] %}{{ message[key] }}\n{% endif %}"
    "{% endfor %}{{ message['content'] }}{% for call in message['tool_calls'] or [] %}"
    "<call>{{ call['id'] }} {{ call['function']['name'] }} "
    "{{ call['function']['arguments'] | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Canaries:
    """Makes secrets, each another one, and remembers them."""

    def __init__(self) -> None:
        self._random = random.Random(11)
        self.made: list[str] = []

    def _of(self, letters: str, length: int, prefix: str = "") -> str:
        made = prefix + "".join(self._random.choices(letters, k=length))
        self.made.append(made)
        return made

    def openai(self) -> str:
        return self._of(string.ascii_letters, 40, "sk-" + "proj-")

    def aws(self) -> str:
        return self._of(string.ascii_uppercase[:16] + "234567", 16, "AK" + "IA")

    def password(self) -> str:
        return self._of(string.ascii_letters + string.digits, 14) + "7x"

    def prose(self) -> str:
        """Each kind in a text as people write it."""
        kinds = f"key {self.openai()}, then {self.aws()} as the other one.\n"
        return f"{kinds}password: {self.password()}\nThat is all."

    def fields(self) -> dict[str, Any]:
        """Each kind as a field of an object."""
        return {
            "password": self.password(),
            "note": f"see {self.openai()}",
            "inner": {"list": [self.aws(), {"api_key": self.openai()}]},
        }


def from_feedback(make: Canaries) -> Iterator[dict[str, Any]]:
    yield {"input": json.dumps(make.prose()), "output": json.dumps(make.prose()), "label": "good"}
    yield {"input": json.dumps(make.fields()), "output": json.dumps("Done."), "label": "good"}
    yield {"input": make.fields(), "output": make.fields(), "label": "good"}
    yield {"input": make.prose(), "output": "Kept as it stands.", "label": "good"}
    yield {"input": "Twice?", "output": json.dumps(json.dumps(make.fields())), "label": "good"}
    yield {
        "input": json.dumps(f"Which one? {make.openai()}"),
        "output": json.dumps(make.prose()),
        "label": "bad",
        "notes": f"correction: {make.prose()}",
    }


def from_runs(make: Canaries) -> Iterator[dict[str, Any]]:
    call = {"name": "login", "argsSummary": make.prose(), "resultSummary": make.openai()}
    trail = [
        {"nodeId": "n1", "order": 0, "input": make.prose(), "output": make.fields()},
        {"nodeId": "n2", "order": 1, "output": make.prose(), "toolCalls": [call]},
        {"nodeId": "n1", "order": 2, "input": make.fields(), "output": "Done."},
        {"nodeId": "n1", "order": 3, "input": "Again?", "output": make.prose()},
        {"nodeId": "n3", "order": 4, "input": make.prose(), "error": "WAITING_FOR_USER"},
        {"nodeId": "n3", "order": 5, "input": make.prose(), "output": "Yes."},
    ]
    yield {"runId": "r", "trail": trail, "output": {"output": make.prose(), "trail": trail}}


def tool(make: Canaries, name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"p": {"enum": [make.fields()]}}}
    function = {"name": name, "description": make.prose(), "parameters": parameters}
    return {"type": "function", "function": function}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "login", "arguments": arguments}}


def messages(make: Canaries) -> Iterator[dict[str, Any]]:
    talk: list[dict[str, Any]] = [
        {"role": "system", "content": make.prose()},
        {"role": "user", "content": [{"type": "text", "text": make.prose()}]},
        {"role": "assistant", "content": None, "tool_calls": [call(json.dumps(make.fields()))]},
        {"role": "tool", "content": json.dumps(make.fields()), "tool_call_id": "c1"},
        {"role": "assistant", "content": make.prose()},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": make.prose(), "tool_calls": [call(make.fields())]},
        {"role": "tool", "content": make.prose(), "name": "login"},
        {"role": "assistant", "content": "Not learned.", "weight": 0},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Done."},
    ]
    yield {"messages": talk, "tools": [tool(make, "login"), tool(make, "logout")]}
    named = {"role": "user", "content": "Short.", "name": make.openai()}
    yield {"messages": [named, {"role": "assistant", "content": "Short, too."}]}
    yield {"messages": [named, {"role": "assistant", "content": make.prose()}]}
    odd = {"id": make.openai(), "function": {"name": make.aws(), "arguments": {make.openai(): 1}}}
    result = {"role": "tool", "content": "Done.", "tool_call_id": make.openai()}
    calling = {"role": "assistant", "content": "I call.", "tool_calls": [odd]}
    asked = {"role": "user", "content": "Names and keys?"}
    yield {"messages": [asked, calling, result, {"role": "assistant", "content": "So."}]}


def prompt_completion(make: Canaries) -> Iterator[dict[str, Any]]:
    yield {"prompt": make.prose(), "completion": make.prose()}
    yield {
        "prompt": [
            {"role": "developer", "content": make.prose()},
            {"role": "user", "content": json.dumps(make.fields())},
        ],
        "completion": [
            {"role": "assistant", "content": "", "tool_calls": [call(make.fields())]},
        ],
        "tools": [tool(make, "login")],
    }


def preferences(make: Canaries) -> Iterator[dict[str, Any]]:
    yield {"prompt": make.prose(), "chosen": make.prose(), "rejected": make.prose()}
    yield {
        "prompt": [{"role": "user", "content": json.dumps(make.fields())}],
        "chosen": [{"role": "assistant", "content": make.prose()}],
        "rejected": [{"role": "assistant", "content": "No.", "tool_calls": [call(make.fields())]}],
        "tools": [tool(make, "login")],
    }


#: Name -> rows; the canaries that stand in no example at all.
FORMATS: dict[str, tuple[Callable[[Canaries], Iterator[dict[str, Any]]], int]] = {
    "from_feedback": (from_feedback, 0),
    # Summaries of a tool call, and what the run itself came to.
    "from_runs": (from_runs, 3 + 1 + 3),
    # A user's name, which Ollama hands to no template.
    "messages": (messages, 1),
    "prompt_completion": (prompt_completion, 0),
    "preferences": (preferences, 0),
}
TRAINING = TrainingOptions(max_length=20_000)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    return read_gguf(write_vocabulary(path, TEMPLATE))


@pytest.fixture(params=FORMATS)
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str], int]:
    """A file, the secrets in it, and how many of them no example has."""
    rows, n_elsewhere = FORMATS[request.param]
    make = Canaries()
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(make)), encoding="utf-8")
    return path, make.made, n_elsewhere


def options(secrets: str) -> DatasetOptions:
    return DatasetOptions.model_validate({"secrets": secrets, "corrections": True})


def trained_texts(base: GgufFile, path: Path, secrets: str) -> Iterator[str]:
    """All that is learned from or judged by, as tokens say it; the bad answers of pairs, too."""
    data = prepare(path, base, TRAINING, options(secrets), path.parent)
    with open_prompt_format(base) as form:
        for example in (*data.examples, *data.held_out):
            yield form.tokenizer.text(example.ids)
        yield from learned_by_other_methods(form, path, secrets)
    yield from reports(data, path, secrets)


def learned_by_other_methods(form: Any, path: Path, secrets: str) -> Iterator[str]:
    """Good and bad answers, whichever method there is enough for."""
    for method in get_args(Method):
        chosen = options(secrets).model_copy(update={"method": method})
        with suppress(DatasetError), compile_dataset(path, chosen) as compiled:
            found = [example for _, _, example in compiled.examples(1000, 1)]
            for example in chain(found, *compiled.pairs()):
                yield form.tokenizer.text(form.tokenize(example).ids)


def reports(data: PreparedData, path: Path, secrets: str) -> Iterator[str]:
    """What people are shown and what is kept of a run."""
    yield data.report.model_dump_json()
    yield data.question
    yield inspect(path, "no-such-base", TRAINING, options(secrets), path.parent).model_dump_json()


def parts(secret: str) -> set[str]:
    return {secret[at : at + _LEAK] for at in range(len(secret) - _LEAK + 1)}


def test_no_canary_is_learned_or_shown(
    base: GgufFile, planted: tuple[Path, list[str], int]
) -> None:
    """A model that learned a key gives it to whoever asks; a report is copied into tickets."""
    path, secrets, _ = planted
    texts = list(trained_texts(base, path, "redact"))
    for text in texts:
        for secret in secrets:
            leaked = sorted(part for part in parts(secret) if part in text)
            assert not leaked, (secret, text)
    assert any("[REDACTED:" in text for text in texts)


def test_without_redaction_the_canaries_are_there(
    base: GgufFile, planted: tuple[Path, list[str], int]
) -> None:
    """Otherwise the test above could not fail."""
    path, secrets, n_elsewhere = planted
    together = "\n".join(trained_texts(base, path, "off"))
    missing = [secret for secret in secrets if secret not in together]
    assert len(missing) == n_elsewhere
    assert "[REDACTED:" not in together


def test_a_data_set_with_canaries_can_be_refused(
    base: GgufFile, planted: tuple[Path, list[str], int]
) -> None:
    """By the lines, without the secrets themselves."""
    path, secrets, _ = planted
    with pytest.raises(DatasetError) as caught:
        prepare(path, base, TRAINING, options("refuse"))
    told = str(caught.value)
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert [f"line {number}" in told for number in range(1, n_lines + 1)] == [True] * n_lines
    assert "secrets" in told
    assert not any(part in told for secret in secrets for part in parts(secret))


def test_secrets_are_counted_where_they_stand(tmp_path: Path) -> None:
    """One of a message with other fields is one, not two."""
    make = Canaries()
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": f"Use {make.openai()}", "name": "ida"},
        {"role": "assistant", "content": f"Used {make.aws()}."},
    ]
    data = read_rows(tmp_path, [{"messages": talk}])
    assert data.secrets == {"openai-key": 1, "aws-access-key": 1}


def test_a_data_set_without_secrets_is_not_refused(base: GgufFile, tmp_path: Path) -> None:
    """Otherwise nobody would ask for it."""
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "My password?", "completion": "Ask the admin for a new password."}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert prepare(path, base, TRAINING, options("refuse")).report.secrets == {}
