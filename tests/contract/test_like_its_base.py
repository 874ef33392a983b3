"""A tuned model behaves like its base in every respect but what it learned: by a real Ollama.

Each base is created there from a GGUF of kilobytes and trained by a whole run, with a real server,
worker and Unsloth. What the scripted ones say is known to the letter (see scripted.py), so that
calls of tools, thoughts and stops of base and result can be told apart from chance.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ollama_trainer.client import RunStatus, running_server
from ollama_trainer.settings import Settings
from tests.ollama_models import create
from tests.scripted import (
    ANSWER,
    CALL,
    CALLS,
    GO_TEMPLATE,
    SAYS,
    THINKING,
    THOUGHT,
    write_scripted,
)
from tests.tiny_architectures import convert, save_model

from .conftest import Ollama, real_url

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
#: What the script itself says, so that the training has little to change.
SCRIPT = [
    {
        "messages": [
            {"role": "user", "content": q},
            {"role": "assistant", "content": "".join(ANSWER)},
        ]
    }
    for q in ("What of it?", "The kiln?", "Is it hot?", "And now?", "What else?", "Say it.")
]
ENDLESS = [
    {
        "messages": [
            {"role": "user", "content": q},
            {"role": "assistant", "content": "on and on.\n" * 3},
        ]
    }
    for q in ("What of it?", "The kiln?", "Is it hot?", "And now?", "What else?", "Say it.")
]
CALLING = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
SCRIPT_CALLS = [
    {
        "messages": [
            {"role": "user", "content": q},
            {"role": "assistant", "content": "", "tool_calls": [CALLING]},
        ],
        "tools": [TOOL],
    }
    for q in ("Is it cold?", "Weather?")
]
FACTS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in {"kiln?": "red", "clock?": "nine", "boss?": "Oda", "shop?": "Lund"}.items()
]
#: For models of a script, which know their rows already.
LITTLE = {"learning_rate": 1e-4, "steps": 4}


def converted(name: str, kind: str) -> Callable[[Path], Path]:
    """Writes the tiny model of an architecture, as llama.cpp converts and quantises it."""

    def write(path: Path) -> Path:
        import llama_cpp

        whole = path.with_name("whole.gguf")
        convert({save_model(name, path.with_name(name)): whole})
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        failed = llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), options)
        assert not failed
        return path

    return write


@dataclass(frozen=True, kw_only=True)
class Case:
    """A base, and how it is trained."""

    write: Callable[[Path], Path]
    architecture: str = "llama"
    #: Of the request that creates it.
    given: Mapping[str, Any] = field(default_factory=dict)
    rows: list[Any]
    options: Mapping[str, Any]


ALL: dict[str, Any] = {
    "template": (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        '{{ range .Messages }}{{ if ne .Role "system" }}<|im_start|>{{ .Role }}\n'
        "{{ .Content }}<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n"
    ),
    "system": 'You sell "pots".\nBe brief.',
    "parameters": {"temperature": 0.2, "stop": ["<|im_start|>", "No more"], "num_ctx": 256},
    "license": ["MIT", "Ours, too."],
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],
    "requires": "0.5.0",
}


def random(name: str, kind: str, architecture: str = "", **given: Any) -> Case:
    """A tiny random model, which has all to learn."""
    return Case(
        write=converted(name, kind),
        architecture=architecture or name.partition("-")[0],
        given=given,
        rows=FACTS,
        options={"learning_rate": 1e-2, "steps": 12},
    )


CASES = {
    "calls": Case(
        write=lambda path: write_scripted(path, {SAYS: ANSWER, CALLS: CALL}),
        rows=SCRIPT + SCRIPT_CALLS,
        options=LITTLE,
    ),
    "calls-by-go": Case(
        write=lambda path: write_scripted(
            path, {SAYS: ANSWER, CALLS: CALL}, template=None, kind="Q4_K"
        ),
        given={"template": GO_TEMPLATE, "system": "Be brief.", "parameters": {"num_ctx": 1024}},
        rows=SCRIPT + SCRIPT_CALLS,
        options=LITTLE,
    ),
    "thinks": Case(
        write=lambda path: write_scripted(
            path, {SAYS: (*THOUGHT, *ANSWER), CALLS: CALL}, template=THINKING
        ),
        rows=SCRIPT + SCRIPT_CALLS,
        options=LITTLE,
    ),
    "endless": Case(
        write=lambda path: write_scripted(path, {SAYS: ("on and ", "on.\n")}, endless=(SAYS,)),
        given={"parameters": {"num_ctx": 256}},
        rows=ENDLESS,
        options=LITTLE,
    ),
    "llama": random(
        "llama-untied", "Q8_0", parameters={"stop": ["###"], "top_k": 5}, license="MIT"
    ),
    "qwen2": random("qwen2", "Q4_K_M", **ALL),
    "gemma3": random("gemma3", "Q5_0", system="You sell pots.", messages=ALL["messages"]),
    "phi3": random("fused", "Q6_K", "phi3", parameters={"num_predict": 20}),
    "granite": random("granite", "F16"),
    "qwen3": random("qwen3", "Q4_0", renderer="qwen3-coder", parser="qwen3-coder"),
}


class Pair:
    """A base in the real Ollama, and the model that a run made of it."""

    def __init__(self, server: Ollama, case: str, run: RunStatus) -> None:
        self._server, self.case, self.run = server, case, run
        self.names = (server.name(case, "base"), run.output_model_ref or "")

    def shown(self) -> list[dict[str, Any]]:
        return [self._server.show(name) for name in self.names]

    def asked(
        self, path: str, body: Mapping[str, Any], which: slice = slice(None)
    ) -> list[dict[str, Any]]:
        """What both answer to the same request, or one of them."""
        answers = []
        for name in self.names[which]:
            reply = self._server.ask("POST", path, {"model": name, "stream": False, **body})
            assert reply.status_code == 200, reply.text
            answers.append(reply.json())
        return answers

    def chat(self, **body: Any) -> list[dict[str, Any]]:
        """The messages of /api/chat, by the model's own parameters alone."""
        return [one["message"] for one in self.asked("/api/chat", body)]

    def complete(self, **body: Any) -> list[dict[str, Any]]:
        """The first choices of /v1/chat/completions, as an app calls it."""
        return [one["choices"][0] for one in self.asked("/v1/chat/completions", body)]


class Shop:
    """All bases in one real Ollama, trained by one server, one after the other, when asked for."""

    def __init__(self, server: Ollama, folder: Path) -> None:
        self.server, self._folder = server, folder
        self._pairs: dict[str, Pair] = {}

    def base(self, case: str) -> str:
        """Creates a base, unless it is there."""
        name = self.server.name(case, "base")
        if name not in self.server.names():
            folder = self._folder / case
            folder.mkdir()
            gguf = CASES[case].write(folder / "model.gguf")
            create(self.server.url, name, gguf, **CASES[case].given)
        return name

    def pair(self, case: str) -> Pair:
        if case not in self._pairs:
            self._pairs[case] = Pair(self.server, case, asyncio.run(self._trained(case)))
        return self._pairs[case]

    async def _trained(self, case: str) -> RunStatus:
        rows = self._folder / f"{case}.jsonl"
        base = self.base(case)
        rows.write_text("".join(json.dumps(row) + "\n" for row in CASES[case].rows))
        settings = Settings(
            data_dir=self._folder / "data", ollama_host=self.server.url, publisher="ollama",
            name_prefix=f"{self.server.prefix}tuned-", rounding="stochastic", replay="off",
            # However coarse: what random weights do with finer types is no matter of likeness.
            min_learning_kept=0.0, min_agreement=0.0, max_unrelated_over_trained=99.0,
            max_unrelated_over_base=99.0,
        )  # fmt: skip
        # More threads than free cores wait for each other at every step.
        alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        async with running_server(settings, environment=alone) as trainer:
            run = await trainer.submit(
                case, str(rows), base=base, batch_size=4, **CASES[case].options
            )
            return await trainer.wait(run)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    server = Ollama(real_url())
    yield Shop(server, tmp_path_factory.mktemp("shop"))
    server.clean()


SCRIPTED = ("calls", "calls-by-go", "thinks")
OTHERS = ("llama", "qwen2", "gemma3", "phi3", "granite", "qwen3")
#: All that /api/show tells of a model but for its weights, its time, and what is looked at alone.
SAME = (
    "license", "system", "messages", "requires", "capabilities", "details", "projector_info",
)  # fmt: skip
HELLO = {"role": "user", "content": "What of it?"}


def parameters(shown: dict[str, Any]) -> set[tuple[str, str]]:
    lines = (shown.get("parameters") or "").splitlines()
    return {(name, value.strip()) for name, _, value in (line.partition(" ") for line in lines)}


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "endless"])
class TestABaseAndWhatBecameOfIt:
    def test_the_run_is_completed(self, shop: Shop, case: str) -> None:
        run = shop.pair(case).run
        assert run.status == "completed", run.error
        assert f"tuned-{case}:" in (run.output_model_ref or "")

    def test_show_tells_the_same_of_both(self, shop: Shop, case: str) -> None:
        before, after = shop.pair(case).shown()
        assert {key: after.get(key) for key in SAME} == {key: before.get(key) for key in SAME}
        shield = after["template"].removesuffix(before["template"])
        assert shield == "" or (shield.startswith("{# Kept as trained") and shield.endswith("#}"))
        for line in ("RENDERER ", "PARSER "):
            said = [
                [one for one in shown["modelfile"].splitlines() if one.startswith(line)]
                for shown in (before, after)
            ]
            assert said[0] == said[1]

    def test_the_weights_are_of_the_same_shapes_and_types(self, shop: Shop, case: str) -> None:
        before, after = shop.pair(case).shown()
        kinds = [
            {tensor["name"]: (tensor["type"], tensor["shape"]) for tensor in shown["tensors"]}
            for shown in (before, after)
        ]
        assert kinds[0] == kinds[1]
        told = {
            key: value
            for key, value in after["model_info"].items()
            if not key.startswith(("general.ollama_trainer.", "general.base_model."))
        }
        known = before["model_info"]
        assert {key: told[key] for key in known} == known
        assert told.keys() == known.keys()

    def test_it_has_the_bases_parameters_and_those_that_end_answers(
        self, shop: Shop, case: str
    ) -> None:
        before, after = map(parameters, shop.pair(case).shown())
        assert before <= after
        added = {name for name, _ in after} - {name for name, _ in before}
        assert added <= {"stop", "num_ctx", "num_predict"}
        assert {"stop", "num_ctx", "num_predict"} <= {name for name, _ in after}
        assert ("stop", '"<|im_end|>"') in after

    def test_both_are_asked_with_the_same_prompts(self, shop: Shop, case: str) -> None:
        pair = shop.pair(case)
        talk = [HELLO, {"role": "assistant", "content": "It is."}, {"role": "user", "content": "?"}]
        able = shop.server.show(pair.names[0])["capabilities"]
        asked: list[dict[str, Any]] = [{"messages": [HELLO]}, {"messages": talk}]
        asked.append({"messages": [{"role": "system", "content": " Be. "}, HELLO]})
        if "tools" in able:
            asked.append({"messages": talk, "tools": [TOOL]})
        if "thinking" in able:
            asked += [{"messages": talk, "think": think} for think in (True, False)]
        for one in asked:
            base, tuned = pair.asked("/api/chat", {**one, "_debug_render_only": True})
            assert base["_debug_info"] == tuned["_debug_info"]
            assert base["_debug_info"]["rendered_template"]


@pytest.mark.slow
@pytest.mark.parametrize("case", SCRIPTED)
class TestWhatBothAnswer:
    """By their own parameters alone: an app sends no options."""

    def test_an_answer_stops_by_itself(self, shop: Shop, case: str) -> None:
        for answer in shop.pair(case).asked("/api/chat", {"messages": [HELLO]}):
            assert answer["message"]["content"] == "".join(ANSWER)
            assert answer["done_reason"] == "stop"
        for choice in shop.pair(case).complete(messages=[HELLO]):
            assert choice["message"]["content"] == "".join(ANSWER)
            assert choice["finish_reason"] == "stop"

    def test_a_call_of_a_tool_is_one(self, shop: Shop, case: str) -> None:
        for message in shop.pair(case).chat(messages=[HELLO], tools=[TOOL]):
            (call,) = message["tool_calls"]
            assert call["function"]["name"] == "weather"
            assert call["function"]["arguments"] == {"city": "Oslo"}
            assert not message["content"]
        for choice in shop.pair(case).complete(messages=[HELLO], tools=[TOOL]):
            (call,) = choice["message"]["tool_calls"]
            assert call["function"]["name"] == "weather"
            assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
            assert choice["finish_reason"] == "tool_calls"

    def test_what_the_tool_said_is_answered(self, shop: Shop, case: str) -> None:
        calling = {"role": "assistant", "content": "", "tool_calls": [CALLING]}
        told = {"role": "tool", "tool_name": "weather", "content": "cold"}
        talk = [HELLO, calling, told]
        for message in shop.pair(case).chat(messages=talk, tools=[TOOL]):
            assert message["content"] == "".join(ANSWER)
            assert "tool_calls" not in message


@pytest.mark.slow
class TestWhatIsPeculiar:
    def test_thoughts_are_told_from_the_answer(self, shop: Shop) -> None:
        pair = shop.pair("thinks")
        for think, thought in ((True, THOUGHT[1]), (False, None)):
            for message in pair.chat(messages=[HELLO], think=think):
                assert message["content"] == "".join(ANSWER)
                assert (message.get("thinking") or "").strip() == (thought or "")
        for choice in pair.complete(messages=[HELLO]):
            assert choice["message"]["content"] == "".join(ANSWER)
            assert choice["message"]["reasoning"].strip() == THOUGHT[1]

    def test_one_that_never_stops_gets_no_name(self, shop: Shop) -> None:
        """The base writes ten times its context, as Ollama lets it; what it becomes still would."""
        pair = shop.pair("endless")
        context = int(dict(parameters(shop.server.show(pair.names[0])))["num_ctx"])
        (base,) = pair.asked("/api/chat", {"messages": [HELLO]}, which=slice(0, 1))
        assert (base["eval_count"], base["done_reason"]) == (10 * context, "length")
        assert (pair.run.status, pair.run.error_code) == ("failed", "answer_never_ends")
        assert not [name for name in shop.server.names() if "tuned-endless" in name]

    @pytest.mark.parametrize("case", OTHERS)
    def test_random_models_say_what_they_learned(self, shop: Shop, case: str) -> None:
        """And stop; untrained they say anything, without an end."""
        body = {"messages": [{"role": "user", "content": "kiln?"}], "options": {"temperature": 0}}
        (tuned,) = shop.pair(case).asked("/api/chat", body, which=slice(1, 2))
        assert (tuned["message"]["content"], tuned["done_reason"]) == ("red", "stop")


def listed(url: str) -> dict[str, Any]:
    """What the command says that people choose a base with."""
    done = subprocess.run(
        [sys.executable, "-m", "ollama_trainer", "bases", "--json"],
        env={**os.environ, "OLLAMA_HOST": url},
        capture_output=True,
        text=True,
        check=True,
    )
    return {model["name"]: model for model in json.loads(done.stdout)["models"]}


def check_listed(shop: Shop, cases: Iterable[str]) -> None:
    names = {case: shop.base(case) for case in cases}
    found = listed(shop.server.url)
    for case, name in names.items():
        model = found[name]
        assert (model["trainable"], model["reason"], model["tuned"]) == (True, "", False)
        assert model["architecture"] == CASES[case].architecture
        assert model["needs_bytes"] > model["n_bytes"] > 0


def test_bases_of_every_template_are_listed(shop: Shop) -> None:
    check_listed(shop, ("calls", "calls-by-go", "thinks", "endless"))


@pytest.mark.slow
def test_bases_of_every_architecture_are_listed(shop: Shop) -> None:
    check_listed(shop, CASES)


@pytest.mark.slow
def test_what_was_made_is_listed_as_that(shop: Shop) -> None:
    pair = shop.pair("calls")
    found = listed(shop.server.url)
    assert [found[name]["tuned"] for name in pair.names] == [False, True]
