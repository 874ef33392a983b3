"""The scripted models, by llama.cpp: what others are tried with must itself be as it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.scripted import ANSWER, CALL, CALLS, END, SAYS, THOUGHT, write_scripted

SCRIPTS: dict[str, tuple[dict[str, Sequence[str]], str, str]] = {
    "answers": ({SAYS: ANSWER}, SAYS, "The kiln is red and hot."),
    "calls": (
        {SAYS: ANSWER, CALLS: CALL},
        CALLS,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    ),
    "does not call": ({SAYS: ANSWER, CALLS: CALL}, SAYS, "The kiln is red and hot."),
    "thinks": (
        {SAYS: (*THOUGHT, *ANSWER)},
        SAYS,
        "<think>\nKilns burn.\n</think>\n\nThe kiln is red and hot.",
    ),
}


def written(path: Path, prompt: str, n_most: int = 40) -> tuple[str, str]:
    """What llama.cpp writes after a prompt, greedily, and the text of the token that ended it."""
    import llama_cpp

    llama = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False)
    try:
        ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        found: list[int] = []
        for token in llama.generate(ids, temp=0.0):
            if token == llama.token_eos() or len(found) == n_most:
                break
            found.append(token)
        last = llama.detokenize([token], special=True).decode()
        return llama.detokenize(found, special=True).decode(), last
    finally:
        llama.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "Q8_0") for name in SCRIPTS] + [("calls", kind) for kind in ("F32", "F16", "Q4_K")],
)
def test_llama_cpp_writes_what_the_script_says(tmp_path: Path, name: str, kind: str) -> None:
    answers, last, text = SCRIPTS[name]
    path = write_scripted(tmp_path / "model.gguf", answers, kind=kind)
    prompt = f"<|im_start|>user\nWhat of the kiln?{END}\n<|im_start|>assistant\n{last}"
    assert written(path, prompt) == (text, END)


def test_an_endless_answer_does_not_end(tmp_path: Path) -> None:
    path = write_scripted(tmp_path / "model.gguf", {SAYS: ("on and ",)}, endless=(SAYS,))
    text, last = written(path, f"<|im_start|>assistant\n{SAYS}")
    assert (text, last) == ("on and " * 40, "on and ")


def test_a_narrow_one_is_as_exact(tmp_path: Path) -> None:
    path = write_scripted(tmp_path / "model.gguf", {SAYS: ANSWER, CALLS: CALL}, width=32)
    assert written(path, f"Hello{CALLS}") == ("".join(CALL), END)


@pytest.mark.parametrize(
    "pieces", [("a b", "c d", "a b", "e f"), ("the",), ("<|im_start|>",)], ids=str
)
def test_what_cannot_be_said_is_refused(tmp_path: Path, pieces: Sequence[str]) -> None:
    with pytest.raises(ValueError, match=r"is followed by|is a token already"):
        write_scripted(tmp_path / "model.gguf", {SAYS: pieces})
