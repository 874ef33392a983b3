"""What the fake Ollama says when a model is to be loaded or asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ollama_trainer.testing._fake_store import Refusal, StoredModel

_INTEGERS = frozenset(
    {
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep"),
        *("num_predict", "repeat_last_n", "seed", "top_k"),
    }
)
_REALS = frozenset(
    {
        *("min_p", "temperature", "top_p", "typical_p"),
        *("frequency_penalty", "presence_penalty", "repeat_penalty"),
    }
)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DEFAULT_KEEP_ALIVE_S = 300.0


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses what the real one refuses when it loads a model, and only then.

    Raises:
        Refusal: an option of the wrong type; unknown options pass.
    """
    for name, value in options.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _INTEGERS and not is_number:
            raise Refusal(f'option "{name}" must be of type integer')
        if name in _REALS and not is_number:
            raise Refusal(f'option "{name}" must be of type float32')
        if name == "stop" and not isinstance(value, list):
            raise Refusal('option "stop" must be of type array')


def check_loads(model: StoredModel) -> None:
    """Refuses a file whose tensors do not fit its own description, as the real one does on loading.

    Raises:
        Refusal: it would not load.
    """
    info = model.gguf
    wanted = info.values.get(f"{info.architecture}.block_count", 0)
    blocks = {m[1] for t in info.tensors if (m := re.match(r"blk\.(\d+)\.", t.name))}
    if not info.architecture or wanted != len(blocks):
        raise Refusal("llama-server process has terminated: exit status 1")


def keep_alive_s(value: object) -> float:
    """Seconds for which a model stays loaded; infinite for negative ones."""
    if value is None:
        return _DEFAULT_KEEP_ALIVE_S
    if isinstance(value, str):
        parts = re.findall(r"(-?[\d.]+)(ms|s|m|h)?", value)
        seconds = sum(float(number) * _UNITS_S[unit or "s"] for number, unit in parts)
    else:
        seconds = float(str(value))
    return float("inf") if seconds < 0 else seconds


def expiry(seconds: float) -> str:
    """When a model that was used now leaves memory, as /api/ps writes it."""
    return (datetime.now(UTC) + timedelta(seconds=min(seconds, 3e9))).isoformat()


def chunks(
    model: str, answer: str, num_predict: int, *, chat: bool, prompt_tokens: int
) -> Iterator[dict[str, Any]]:
    """The pieces of a streamed answer, a word each, and the closing one with its counts."""
    words = re.findall(r"\S+\s*", answer)
    given = words if num_predict < 0 else words[:num_predict]
    for word in given:
        yield _piece(model, word, chat=chat)
    yield _piece(model, "", chat=chat) | {
        "done": True,
        "done_reason": "stop" if len(given) == len(words) else "length",
        "total_duration": 3_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": prompt_tokens,
        "prompt_eval_duration": 1_000_000,
        "eval_count": len(given) + (len(given) == len(words)),
        "eval_duration": 1_000_000,
    }


def whole(pieces: Iterator[dict[str, Any]], *, chat: bool) -> dict[str, Any]:
    """The answer in one object, as it comes without streaming."""
    text = ""
    last: dict[str, Any] = {}
    for piece in pieces:
        text += piece["message"]["content"] if chat else piece["response"]
        last = piece
    if chat:
        return last | {"message": {"role": "assistant", "content": text}}
    return last | {"response": text}


def with_calls(answer: dict[str, Any]) -> dict[str, Any]:
    """A whole answer of a chat, with what is marked as calls of tools in their own place."""
    text = answer["message"]["content"]
    calls = [json.loads(call) for call in _CALL.findall(text)]
    if not calls:
        return answer
    message = {
        "role": "assistant",
        "content": _CALL.sub("", text).strip(),
        "tool_calls": [{"function": call} for call in calls],
    }
    return answer | {"message": message}


def without_words(model: str, reason: str, *, chat: bool) -> dict[str, Any]:
    """The answer to a request that only loads or unloads."""
    return _piece(model, "", chat=chat) | {"done": True, "done_reason": reason}


def _piece(model: str, text: str, *, chat: bool) -> dict[str, Any]:
    piece: dict[str, Any] = {
        "model": model,
        "created_at": datetime.now(UTC).isoformat(),
        "done": False,
    }
    if chat:
        return piece | {"message": {"role": "assistant", "content": text}}
    return piece | {"response": text}
