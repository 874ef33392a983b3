"""What the publisher counts on in an Ollama server, tried on the real one and on the fake.

Where the fake strays from the real one, these tests fail on one of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import Server

ABSENT = "sha256:" + "0" * 64


def upload(server: Server, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    response = server.ask("POST", f"/api/blobs/{digest}", content=data)
    assert response.status_code in (200, 201)
    return digest


def create(server: Server, **body: Any) -> list[dict[str, Any]]:
    """The lines of /api/create."""
    response = server.ask("POST", "/api/create", body)
    return [json.loads(line) for line in response.text.splitlines()]


def make(server: Server, name: str, gguf: Path | None = None, **body: Any) -> None:
    digest = upload(server, (gguf or server.files.protected).read_bytes())
    lines = create(server, model=name, files={"model.gguf": digest}, **body)
    assert lines[-1] == {"status": "success"}


def refused(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]


def test_version_and_root(server: Server) -> None:
    assert set(server.ask("GET", "/api/version").json()) == {"version"}
    assert server.ask("HEAD", "/api/version").status_code == 200
    assert server.ask("GET", "/").text == "Ollama is running"


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/api/show", {}, (400, "model is required")),
        ("POST", "/api/show", {"model": "absent"}, (404, "model 'absent:latest' not found")),
        ("POST", "/api/generate", {"model": "absent"}, (404, "model 'absent' not found")),
        ("POST", "/api/chat", {"model": "absent"}, (404, "model 'absent' not found")),
        ("POST", "/api/chat", {"model": ""}, (400, "model is required")),
        ("DELETE", "/api/delete", {"model": "absent"}, (404, "model 'absent' not found")),
        (
            "POST",
            "/api/copy",
            {"source": "absent", "destination": "b"},
            (404, 'model "absent" not found'),
        ),
        ("POST", "/api/create", {"model": "a b", "files": {}}, (400, "invalid model name")),
        (
            "POST",
            "/api/create",
            {"model": "a"},
            (400, "neither 'from' or 'files' was specified"),
        ),
        (
            "POST",
            "/api/create",
            {"model": "a", "files": {"/etc/x": ABSENT}},
            (400, "file path must be relative"),
        ),
        (
            "POST",
            "/api/create",
            {"model": "a", "files": {"x": ""}},
            (400, "invalid digest format"),
        ),
    ],
)
def test_refusals(
    server: Server, method: str, path: str, body: Any, expected: tuple[int, str]
) -> None:
    assert refused(server.ask(method, path, body)) == expected


@pytest.mark.parametrize("path", ["show", "create", "generate", "chat"])
def test_a_missing_body_is_named(server: Server, path: str) -> None:
    assert refused(server.ask("POST", f"/api/{path}")) == (400, "missing request body")


class TestBlobs:
    def test_head(self, server: Server) -> None:
        there = upload(server, b"there")
        wanted = {there: 200, ABSENT: 404, "sha256:12": 400, "x": 400}
        got = {d: server.ask("HEAD", f"/api/blobs/{d}").status_code for d in wanted}
        assert got == wanted

    def test_a_wrong_digest_is_refused_and_nothing_kept(self, server: Server) -> None:
        got = f"sha256:{hashlib.sha256(b'other').hexdigest()}"
        response = server.ask("POST", f"/api/blobs/{ABSENT}", content=b"other")
        words = f'digest mismatch, expected "{ABSENT}", got "{got}"'
        assert refused(response) == (400, words)
        assert server.ask("HEAD", f"/api/blobs/{ABSENT}").status_code == 404

    def test_new_is_201_and_known_is_200(self, server: Server) -> None:
        data = server.prefix.encode()
        path = f"/api/blobs/sha256:{hashlib.sha256(data).hexdigest()}"
        codes = [server.ask("POST", path, content=data).status_code for _ in range(2)]
        assert codes == [201, 200]

    def test_much_for_a_known_blob_is_not_read(self, server: Server) -> None:
        digest = upload(server, b"small")
        try:
            response = server.ask("POST", f"/api/blobs/{digest}", content=b"x" * (64 << 20))
        except httpx.TransportError:
            return
        assert response.status_code == 200


class TestCreate:
    def test_statuses(self, server: Server) -> None:
        digest = upload(server, server.files.protected.read_bytes())
        files = {"model.gguf": digest}
        lines = create(server, model=server.name(), files=files, license="x")
        statuses = [line["status"] for line in lines]
        assert statuses[0] == "parsing GGUF"
        assert statuses[-2:] == ["writing manifest", "success"]
        assert any(" layer sha256:" in status for status in statuses)
        whole = server.ask(
            "POST", "/api/create", {"model": server.name(), "files": files, "stream": False}
        )
        assert (whole.status_code, whole.json()) == (200, {"status": "success"})

    def test_the_same_makes_the_same_digest_under_another_name(self, server: Server) -> None:
        """The publisher tells by it whether a taken name holds the same model."""
        for model, num_ctx in (("a", 64), ("b", 64), ("c", 65)):
            make(server, server.name(model), parameters={"num_ctx": num_ctx, "stop": ["x"]})
        listed = server.ask("GET", "/api/tags").json()["models"]
        a, b, c = (
            next(m["digest"] for m in listed if m["name"] == server.name(model)) for model in "abc"
        )
        assert a == b != c

    @pytest.mark.parametrize("stream", [True, False])
    def test_what_is_no_gguf(self, server: Server, stream: bool) -> None:
        digest = upload(server, b"no gguf at all")
        body = {"model": server.name(), "files": {"model.gguf": digest}, "stream": stream}
        response = server.ask("POST", "/api/create", body)
        words = "supplied file was not in GGUF format"
        assert response.status_code == (200 if stream else 400)
        assert json.loads(response.text.splitlines()[-1]) == {"error": words}
        assert server.names() == []

    def test_an_unknown_kind_of_file(self, server: Server) -> None:
        digest = upload(server, b"no gguf at all")
        body = {"model": server.name(), "files": {"model.xyz": digest}}
        assert refused(server.ask("POST", "/api/create", body)) == (400, "unknown type")

    def test_a_truncated_gguf(self, server: Server) -> None:
        digest = upload(server, server.files.truncated.read_bytes())
        lines = create(server, model=server.name(), files={"model.gguf": digest})
        assert "offset+size" in lines[-1]["error"]
        assert "exceeds file size" in lines[-1]["error"]
        assert server.names() == []

    def test_a_blob_that_is_missing(self, server: Server) -> None:
        lines = create(server, model=server.name(), files={"model.gguf": ABSENT})
        assert "no such file or directory" in lines[-1]["error"]

    def test_a_bad_template(self, server: Server) -> None:
        digest = upload(server, server.files.protected.read_bytes())
        files = {"model.gguf": digest}
        lines = create(server, model=server.name(), files=files, template="{{ .Prompt")
        assert lines[-1]["error"].startswith("template error: ")

    def test_adapters_and_quantize(self, server: Server) -> None:
        digest = upload(server, server.files.protected.read_bytes())
        files = {"model.gguf": digest}
        adapters = create(server, model=server.name(), files=files, adapters=files)[-1]
        quantize = create(server, model=server.name("q"), files=files, quantize="q8_0")[-1]
        if server.refuses_adapters:
            assert adapters == {"error": "LoRA adapters are no longer supported"}
            assert quantize["error"].startswith("create-time quantization is only supported for")
        else:
            assert adapters == {"status": "success"}
            assert set(quantize) <= {"status", "error"}

    def test_a_template_like_a_bundled_one_is_replaced(self, server: Server) -> None:
        digest = upload(server, server.files.plain.read_bytes())
        lines = create(server, model=server.name(), files={"model.gguf": digest})
        assert {"status": "using autodetected template chatml"} in lines
        shown = server.show(server.name())
        assert ".Messages" in shown["template"]
        assert shown["parameters"].count("stop") == 2

    def test_a_protected_template_stays(self, server: Server) -> None:
        make(server, server.name())
        assert server.show(server.name())["template"] == server.files.jinja


class TestShow:
    def test_fields(self, server: Server) -> None:
        parameters = {"num_ctx": 64, "temperature": 0.5, "stop": ["a", 'b"c']}
        make(server, server.name(), parameters=parameters, license=["one", "two"])
        shown = server.show(server.name())
        assert shown["license"] == "one\ntwo"
        lines = sorted(line.split(maxsplit=1) for line in shown["parameters"].splitlines())
        assert lines == [
            ["num_ctx", "64"],
            ["stop", '"a"'],
            ["stop", '"b\\"c"'],
            ["temperature", "0.5"],
        ]
        assert shown["details"]["format"] == "gguf"
        assert shown["details"]["family"] == "llama"
        info = shown["model_info"]
        assert info["general.architecture"] == "llama"
        assert info["general.parameter_count"] > 0
        assert "tokenizer.chat_template" not in info
        assert info["tokenizer.ggml.tokens"] is None
        assert {"name", "type", "shape"} == set(shown["tensors"][0])
        first = next(x for x in shown["modelfile"].splitlines() if x.startswith("FROM "))
        assert "/sha256-" in first

    def test_tags(self, server: Server) -> None:
        make(server, server.name())
        models = server.ask("GET", "/api/tags").json()["models"]
        (entry,) = [model for model in models if model["name"] == server.name()]
        assert set(entry) == {
            *("name", "model", "modified_at", "size", "digest", "details", "capabilities")
        }
        assert len(entry["digest"]) == 64
        assert entry["size"] >= server.files.protected.stat().st_size * 0.9


class TestNames:
    def test_they_are_compared_without_case(self, server: Server) -> None:
        make(server, server.name("model"))
        upper = server.name("model").upper()
        assert server.ask("POST", "/api/show", {"model": upper}).status_code == 200
        make(server, upper)
        assert server.names() == [server.name("model")]

    def test_copy_and_delete(self, server: Server) -> None:
        make(server, server.name("a"))
        body = {"source": server.name("a"), "destination": server.name("b")}
        assert server.ask("POST", "/api/copy", body).status_code == 200
        assert server.names() == [server.name("a"), server.name("b")]
        assert server.ask("DELETE", "/api/delete", {"model": server.name("a")}).status_code == 200
        assert server.names() == [server.name("b")]
        answer = server.ask("POST", "/api/generate", {"model": server.name("b"), "stream": False})
        assert answer.status_code == 200, "the copy keeps the weights"

    def test_the_tag_local_is_a_trap(self, server: Server) -> None:
        if server.fake is None:
            pytest.skip("the real one makes such a model and can never delete it again")
        name = server.name("trap", "local")
        make(server, name)
        assert server.ask("POST", "/api/show", {"model": name}).status_code == 404
        assert server.ask("DELETE", "/api/delete", {"model": name}).status_code == 404


class TestAnswers:
    def test_chat_streams_and_ends(self, server: Server) -> None:
        name = server.name()
        make(server, name, parameters={"num_predict": 4})
        messages = [{"role": "user", "content": "Tell me a story."}]
        response = server.ask("POST", "/api/chat", {"model": name, "messages": messages})
        pieces = [json.loads(line) for line in response.text.splitlines()]
        assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        last = pieces[-1]
        assert last["done_reason"] == "length"
        assert last["eval_count"] == 4
        assert last["message"] == {"role": "assistant", "content": ""}
        counts = {"total_duration", "load_duration", "prompt_eval_count", "eval_count"}
        assert counts <= set(last)
        assert server.loaded() == [name]

    def test_generate_in_one_piece(self, server: Server) -> None:
        name = server.name()
        make(server, name)
        body = {"model": name, "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}
        answer = server.ask("POST", "/api/generate", body).json()
        assert answer["done"]
        assert answer["done_reason"] == "length"
        assert answer["response"]
        body = {"model": name, "keep_alive": 0, "stream": False}
        freed = server.ask("POST", "/api/generate", body).json()
        assert freed["done_reason"] == "unload"

    def test_an_empty_prompt_only_loads(self, server: Server) -> None:
        name = server.name()
        make(server, name)
        answer = server.ask("POST", "/api/generate", {"model": name, "stream": False}).json()
        assert answer["done_reason"] == "load"
        assert server.loaded() == [name]

    def test_an_overwritten_name_keeps_its_old_weights_in_memory(self, server: Server) -> None:
        """Hence the publisher unloads before anything else takes the name."""
        name = server.name()
        make(server, name)
        server.ask("POST", "/api/generate", {"model": name, "stream": False})
        # The plain file differs in its metadata, so the stored file has another digest.
        make(server, name, server.files.plain)
        server.ask("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False})
        time.sleep(0.5)
        assert server.loaded() == [name]
        # Bring the old weights back under the name, so that they can be freed.
        make(server, name)
        server.ask("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False})

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({"options": {"num_ctx": "abc"}}, 500, 'option "num_ctx" must be of type integer'),
            ({"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
            ({"think": True}, 400, '"{name}" does not support thinking'),
            (
                {"tools": [{"type": "function", "function": {"name": "f"}}]},
                400,
                "registry.ollama.ai/library/{name} does not support tools",
            ),
        ],
    )
    def test_what_chat_refuses(
        self, server: Server, body: dict[str, Any], status: int, words: str
    ) -> None:
        name = server.name()
        make(server, name)
        messages = [{"role": "user", "content": "Hi"}]
        response = server.ask("POST", "/api/chat", {"model": name, "messages": messages} | body)
        assert refused(response) == (status, words.format(name=name))

    def test_nonsense_passes_at_create_and_fails_at_use(self, server: Server) -> None:
        name = server.name()
        make(server, name, parameters={"num_ctx": "abc", "no_such_thing": 1})
        assert server.ask("POST", "/api/generate", {"model": name}).status_code == 500

    def test_what_cannot_be_loaded(self, server: Server) -> None:
        name = server.name()
        digest = upload(server, server.files.unloadable.read_bytes())
        lines = create(server, model=name, files={"model.gguf": digest})
        if "error" in lines[-1]:
            assert "llama-quantize" in lines[-1]["error"]
            return
        response = server.ask("POST", "/api/generate", {"model": name, "prompt": "Hi"})
        assert response.status_code == 500
        assert response.json()["error"]


def test_a_foreign_host_name_is_refused_without_a_word(server: Server) -> None:
    response = server.ask("GET", "/api/version", headers={"Host": "example.com"})
    assert (response.status_code, response.content) == (403, b"")
    response = server.ask("GET", "/api/version", headers={"Host": "[::1]"})
    assert response.status_code == 403, "for want of a port"
    for own in ("localhost", "127.0.0.1:1", "box.local", "[::1]:1"):
        response = server.ask("GET", "/api/version", headers={"Host": own})
        assert response.status_code == 200
