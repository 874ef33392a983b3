"""A model is tried in Ollama before it gets its name: with answers that are known, and with tools.

The models say what a script says; the fake Ollama is told to say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer import publishers
from ollama_trainer.errors import (
    AnswerNeverEnds,
    AnswersLikeBase,
    EmptyAnswer,
    OllamaCannotLoad,
    PublishError,
    StoredDiffers,
    ToolCallsLost,
)
from ollama_trainer.gguf.file import read_gguf
from ollama_trainer.modelfile import modelfile_for
from ollama_trainer.ollama.shield import protect_chat_template
from ollama_trainer.publishers import NOT_CHECKED, PublisherOptions
from ollama_trainer.records import GoldenChat
from ollama_trainer.testing import tiny_gguf
from ollama_trainer.testing.fake_ollama import FakeOllama
from tests.scripted import ANSWER, CALL, CALLS, END, SAYS, TEMPLATE, write_scripted

from .conftest import Server
from .test_ollama_server import make

TEXT = "".join(ANSWER)
OTHER = ("A stove", " is blue.")
QUESTION = {"role": "user", "content": "What is it?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
KNOWN = GoldenChat(messages=(QUESTION,), answer=TEXT, n_tokens=9, ended=True, base_answer="Well.")
CALLING = GoldenChat(
    messages=(QUESTION,), tools=(TOOL,), answer="".join(CALL), n_tokens=6, ended=True,
    calls=("weather",),
)  # fmt: skip
#: The tool that any model is asked to call.
ANY_CALL = (
    "<tool", "_call>\n", '{"name": "get_weather", ', '"arguments": {"town": "Paris"}}',
    "\n</tool_call>",
)  # fmt: skip
NO_TOOLS = TEMPLATE.replace("tools", "words").replace("tool_call", "word").replace("tool_", "")
MODELFILE = modelfile_for(stops=[END], num_ctx=512, num_predict=200)


class Model:
    """One scripted model, in a file and as the fake Ollama plays it."""

    def __init__(
        self,
        folder: Path,
        says: Sequence[str],
        calls: Sequence[str] = (),
        *,
        endless: bool = False,
    ) -> None:
        answers = {SAYS: says} | ({CALLS: calls} if calls else {})
        template = protect_chat_template(TEMPLATE if calls else NO_TOOLS)
        folder.mkdir(exist_ok=True)
        self.gguf = write_scripted(
            folder / "model.gguf", answers, template=template, endless=[SAYS] if endless else []
        )
        self._says = " ".join(says) * 99 if endless else "".join(says)
        self._calls = "".join(calls)

    def play(self, server: Server, base: Model | None = None) -> None:
        """Makes the fake answer as the model does, or as its base where that is asked."""
        if server.fake is None:
            return
        requests = server.fake.requests

        def answer(_messages: list[dict[str, Any]]) -> str:
            body = requests[-1][2]
            of = base if base is not None and "base" in body["model"] else self
            return of._calls if body.get("tools") else of._says

        server.fake.set_answer(answer)


def publish(server: Server, gguf: Path, told: list[str] | None = None, **options: Any) -> str:
    notes = told if told is not None else []
    one = publishers.get(
        "ollama", PublisherOptions(ollama_host=server.url, num_thread=2, **options)
    )
    name = server.name("tuned")
    return one.publish(gguf, MODELFILE, name, lambda _, what: notes.append(what)).ref


def fails(server: Server, gguf: Path, kind: type[PublishError], **options: Any) -> PublishError:
    """Nothing half-made may be left, and the file stays as it is."""
    before = gguf.read_bytes()
    with pytest.raises(kind) as raised:
        publish(server, gguf, **options)
    assert [name for name in server.names() if "base" not in name] == []
    assert server.loaded() == []
    assert gguf.read_bytes() == before
    assert raised.value.remedy
    assert not raised.value.retryable
    return raised.value


def not_checked(told: Sequence[str]) -> list[str]:
    return [what.removeprefix(NOT_CHECKED) for what in told if what.startswith(NOT_CHECKED)]


def test_the_known_answer_is_all_that_is_asked_for(server: Server, tmp_path: Path) -> None:
    model = Model(tmp_path, ANSWER)
    model.play(server)
    told: list[str] = []
    assert publish(server, model.gguf, told, golden=(KNOWN,)) == server.name("tuned")
    assert not_checked(told) == []
    assert any(what.endswith("ended by stop") for what in told)
    assert server.loaded() == []


def test_an_answer_that_does_not_end(server: Server, tmp_path: Path) -> None:
    model = Model(tmp_path, ANSWER, endless=True)
    model.play(server)
    error = fails(server, model.gguf, AnswerNeverEnds, golden=(KNOWN,))
    assert error.code == "answer_never_ends"
    assert "'What is it?' does not end by itself within 73 tokens" in error.cause


def test_the_bases_answer(server: Server, tmp_path: Path) -> None:
    """As if Ollama had been given the base itself, or had never read the new file."""
    model = Model(tmp_path, ANSWER)
    model.play(server)
    trained = KNOWN.model_copy(update={"answer": "It is blue.", "base_answer": TEXT})
    error = fails(server, model.gguf, AnswersLikeBase, golden=(trained,))
    assert error.code == "answers_like_its_base"
    assert TEXT in error.cause
    assert "It is blue." in error.cause


def test_one_of_several_known_answers_is_enough(server: Server, tmp_path: Path) -> None:
    model = Model(tmp_path, ANSWER)
    model.play(server)
    like_base = KNOWN.model_copy(update={"base_answer": TEXT})
    assert publish(server, model.gguf, golden=(like_base, KNOWN))


def test_nothing_that_could_tell_it_from_its_base_is_said(server: Server, tmp_path: Path) -> None:
    model = Model(tmp_path, ANSWER)
    model.play(server)
    told: list[str] = []
    publish(server, model.gguf, told, golden=(KNOWN.model_copy(update={"base_answer": None}),))
    assert not_checked(told) == ["its base answers the questions that were tried alike"]


def test_an_empty_answer(server: Server, tmp_path: Path) -> None:
    model = Model(tmp_path, ())
    model.play(server)
    assert fails(server, model.gguf, EmptyAnswer, golden=(KNOWN,)).code == "empty_answer"


def test_what_cannot_be_loaded_has_a_name(server: Server) -> None:
    error = fails(server, server.files.unloadable, OllamaCannotLoad, golden=(KNOWN,))
    assert error.code == "ollama_cannot_load"


class TestCalls:
    """Of tools."""

    def test_a_trained_call_comes_back(self, server: Server, tmp_path: Path) -> None:
        model = Model(tmp_path, ANSWER, CALL)
        model.play(server)
        told: list[str] = []
        publish(server, model.gguf, told, golden=(KNOWN, CALLING), capabilities=("tools",))
        assert not_checked(told) == []
        assert "asking for the call of a tool" in told

    def test_a_trained_call_that_is_lost(self, server: Server, tmp_path: Path) -> None:
        model = Model(tmp_path, ANSWER, OTHER)
        model.play(server)
        error = fails(server, model.gguf, ToolCallsLost, golden=(KNOWN, CALLING))
        assert error.code == "tool_calls_lost"
        assert "A stove is blue." in error.cause

    def test_what_the_base_calls(self, server: Server, tmp_path: Path) -> None:
        base = Model(tmp_path / "base", ANSWER, ANY_CALL)
        model = Model(tmp_path / "tuned", ANSWER, OTHER)
        model.play(server, base)
        error = fails(server, model.gguf, ToolCallsLost, **self.made(server, base))
        assert "though its base calls it" in error.cause

    def test_what_not_even_the_base_calls(self, server: Server, tmp_path: Path) -> None:
        base = Model(tmp_path / "base", ANSWER, OTHER)
        model = Model(tmp_path / "tuned", ANSWER, OTHER)
        model.play(server, base)
        told: list[str] = []
        publish(server, model.gguf, told, **self.made(server, base))
        assert not_checked(told) == [
            "neither the model nor its base calls a tool when it is asked to"
        ]
        assert server.loaded() == []

    def test_another_model_under_the_bases_name_is_not_asked(
        self, server: Server, tmp_path: Path
    ) -> None:
        base = Model(tmp_path / "base", ANSWER, ANY_CALL)
        model = Model(tmp_path / "tuned", ANSWER, OTHER)
        model.play(server, base)
        told: list[str] = []
        options = self.made(server, base) | {"base_digest": "0" * 64}
        publish(server, model.gguf, told, **options)
        assert not_checked(told) == [
            "the model calls no tool when it is asked to, and its base is not here to compare"
        ]

    def made(self, server: Server, base: Model) -> dict[str, Any]:
        """What is known of a base that was created in Ollama."""
        name = server.name("base")
        make(server, name, base.gguf)
        path = server.show(name)["modelfile"].partition("\nFROM ")[2].partition("\n")[0]
        return {
            "golden": (KNOWN,),
            "base_model": name,
            "base_digest": path[-64:],
            "capabilities": ("tools",),
        }


class TestStored:
    """What Ollama stored is what it was given."""

    def test_the_same_in_another_order(self, server: Server, tmp_path: Path) -> None:
        """Some versions write the file anew; no order of the scripted file's is theirs."""
        model = Model(tmp_path, ANSWER)
        model.play(server)
        told: list[str] = []
        name = publish(server, model.gguf, told, golden=(KNOWN,))
        assert not_checked(told) == []
        stored = server.show(name)["modelfile"].partition("\nFROM ")[2].partition("\n")[0]
        if server.fake is None or server.fake.profile == "0.33":
            assert Path(stored).read_bytes() != model.gguf.read_bytes(), "else nothing was tried"

    def test_a_spoilt_byte(self, fake_server: Server, tmp_path: Path) -> None:
        model = Model(tmp_path, ANSWER)
        model.play(fake_server)
        self.fake_of(fake_server).faults.spoils = True
        error = fails(fake_server, model.gguf, StoredDiffers, golden=(KNOWN,))
        assert error.code == "stored_differs"
        last = max(read_gguf(model.gguf).tensors, key=lambda tensor: tensor.offset)
        if self.fake_of(fake_server).profile == "0.40":
            assert f"its tensor {last.name!r} differs" in error.cause

    def test_the_digest_is_enough_where_the_file_is_not_seen(
        self, fake_server: Server, tmp_path: Path
    ) -> None:
        model = Model(tmp_path, ANSWER)
        in_order = tmp_path / "in order" / "model.gguf"
        in_order.parent.mkdir()
        tiny_gguf.rewrite_sorted(model.gguf, tiny_gguf.read(model.gguf), in_order)
        model.play(fake_server)
        self.fake_of(fake_server).faults.hides_blobs = True
        told: list[str] = []
        publish(fake_server, in_order, told, golden=(KNOWN,))
        assert not_checked(told) == []

    def test_else_the_answers_tell(self, rewriting: Server, tmp_path: Path) -> None:
        model = Model(tmp_path, ANSWER)
        model.play(rewriting)
        self.fake_of(rewriting).faults.hides_blobs = True
        told: list[str] = []
        publish(rewriting, model.gguf, told, golden=(KNOWN,))
        (note,) = not_checked(told)
        assert "cannot be read here: only its answers were compared" in note
        wrong = KNOWN.model_copy(update={"answer": "It is blue."})
        rewriting.clean()
        error = fails(rewriting, model.gguf, StoredDiffers, golden=(wrong,))
        assert TEXT in error.cause

    def fake_of(self, server: Server) -> FakeOllama:
        assert server.fake is not None
        return server.fake


@pytest.fixture
def fake_server(fake: FakeOllama, request: pytest.FixtureRequest) -> Server:
    return Server(fake.url, request.getfixturevalue("tiny_files"), fake)


@pytest.fixture
def rewriting(request: pytest.FixtureRequest) -> Any:
    """A fake one that writes files anew."""
    with FakeOllama("0.33") as fake:
        yield Server(fake.url, request.getfixturevalue("tiny_files"), fake)
