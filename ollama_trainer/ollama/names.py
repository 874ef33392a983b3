"""Names of models, as Ollama reads them (its types/model/name.go and internal/modelref)."""

from __future__ import annotations

import re

#: host / namespace / model : tag.
MODEL_NAME = re.compile(
    r"(?:(?:[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}/)?[A-Za-z0-9_][A-Za-z0-9_-]{0,79}/)?"
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}))?"
)
#: What a name begins with that names neither host nor namespace.
_USUAL = ("registry.ollama.ai/", "library/")


def full_name(name: str) -> str:
    """The name in lower case, as Ollama compares it, with its tag and without the usual host."""
    name = name.lower()
    for beginning in _USUAL:
        name = name.removeprefix(beginning)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def is_cloud(name: str) -> bool:
    """Whether Ollama would ask its own cloud for the model, even for what it is like."""
    tag = full_name(name).rpartition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")
