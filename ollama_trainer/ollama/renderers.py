"""Renderers that Ollama chooses by a model's name, called by their own.

For the renderer `gemma4` Ollama looks for sizes anywhere in a model's name, tag included, and then
at its number of parameters. A tuned model has another name than its base, and a run's id may hold
`12b` by chance: so it gets the renderer that its base has by its name and size. The same rule is
followed here (server/renderer_resolution.go).
"""

from __future__ import annotations

import re

_CHOSEN_BY_NAME = "gemma4"
_SMALL, _LARGE = "gemma4-small", "gemma4-large"
#: The first version that is known to have both by these names.
_SINCE = (0, 33, 0)
_LARGE_PARAMETERS = 12e9
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9}


def settled_renderer(renderer: str, model: str, parameters: str, version: str) -> str:
    """The renderer that a model has in Ollama, by a name that is not looked at again.

    Args:
        renderer: as the model has it.
        model: Ollama's canonical name of it.
        parameters: how many it has in Ollama's words, `4.3B` for instance.
        version: Ollama's; older ones may not know the renderers by their own names.
    """
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    parts = tuple(map(int, numbers.groups())) if numbers else (0, 0, 0)
    # 0.0.0 is what an Ollama calls itself that someone built from source.
    if renderer != _CHOSEN_BY_NAME or (0, 0, 0) < parts < _SINCE:
        return renderer
    name = model.lower()
    if "e2b" in name or "e4b" in name:
        return _SMALL
    if any(size in name for size in ("12b", "26b", "31b")):
        return _LARGE
    return _LARGE if _count(parameters) >= _LARGE_PARAMETERS else _SMALL


def _count(parameters: str) -> float:
    unit = _UNITS.get(parameters[-1:].upper())
    try:
        return float(parameters[:-1]) * unit if unit else 0.0
    except ValueError:
        return 0.0
