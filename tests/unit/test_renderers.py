"""Renderers that Ollama chooses by names are told by their own (server/renderer_resolution.go)."""

import pytest

from ollama_trainer.ollama.renderers import settled_renderer


@pytest.mark.parametrize(
    ("model", "parameters", "renderer"),
    [
        ("gemma4:e4b", "8.0B", "gemma4-small"),
        ("gemma4:26b", "25.8B", "gemma4-large"),
        # By the name, whatever the size is.
        ("me/Gemma4-12B-it:q4", "11.8B", "gemma4-large"),
        ("big-e2b:latest", "31.2B", "gemma4-small"),
        # By the size, where the name says none.
        ("mine:latest", "31.2B", "gemma4-large"),
        ("mine:latest", "12B", "gemma4-large"),
        ("mine:latest", "999.9M", "gemma4-small"),
        ("mine:latest", "much", "gemma4-small"),
        ("mine:latest", "", "gemma4-small"),
    ],
)
def test_the_renderer_is_the_one_that_the_base_has(
    model: str, parameters: str, renderer: str
) -> None:
    for version in ("0.33.0-rc2", "0.40.1", "0.0.0"):
        assert settled_renderer("gemma4", model, parameters, version) == renderer


def test_others_stay_as_they_are() -> None:
    for renderer in ("", "qwen3-coder", "gemma4-large"):
        assert settled_renderer(renderer, "gemma4:e2b", "5B", "0.40.0") == renderer


def test_an_older_ollama_may_not_know_it() -> None:
    assert settled_renderer("gemma4", "gemma4:26b", "25.8B", "0.32.9") == "gemma4"
