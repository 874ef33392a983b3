"""docs/settings.md holds every setting as it is declared.

python tests/unit/test_docs_settings.py     writes its table anew
"""

import os
import re
from pathlib import Path

from ollama_trainer.settings import Settings, default_text, describe, flag_name, variable_name

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "settings.md"
HEAD = ("| Setting | Variable | Flag | Default | Meaning |", "|---|---|---|---|---|")
REMEDY = f"write the table anew: python {Path(__file__).relative_to(ROOT).as_posix()}"


def declared() -> dict[str, str]:
    """Setting -> its line of the table."""
    return {name: _line(name) for name in Settings.model_fields}


def documented(page: str) -> dict[str, str]:
    """The same, as a page has it."""
    lines = re.finditer(r"^\| `(\w+)` \| `[A-Z_]+` \| `--.*$", page, re.MULTILINE)
    return {line[1]: line[0] for line in lines}


def _line(name: str) -> str:
    # Path lists are joined in another way on each platform; the page is the same everywhere.
    meaning = describe(name).replace(f"'{os.pathsep}'", "':' (';' on Windows)")
    cells = (
        f"`{name}`",
        f"`{variable_name(name)}`",
        f"`{flag_name(name)}`",
        _default(name),
        meaning.replace("|", r"\|"),
    )
    return f"| {' | '.join(cells)} |"


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return "`ollama-trainer` in the platform's directory for data"
    if field.default is None:
        return "chosen"
    return f"`{default_text(name)}`" if default_text(name) else "none"


def test_the_page_has_every_setting_as_declared() -> None:
    found = documented(PAGE.read_text(encoding="utf-8"))
    assert sorted(found) == sorted(declared()), REMEDY
    for name, line in declared().items():
        assert found[name] == line, REMEDY


def test_what_is_missing_or_different_is_seen() -> None:
    page = "\n".join(declared().values())
    assert documented(page) == declared()
    assert "port" not in documented(page.replace(_line("port"), ""))
    assert documented(page.replace("`8765`", "`8766`"))["port"] != _line("port")


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    table = "\n".join((*HEAD, *declared().values())) + "\n"
    old = re.compile(rf"^{re.escape(HEAD[0])}\n(?:\|.*\n)*", re.MULTILINE)
    PAGE.write_text(old.sub(lambda _: table, text), encoding="utf-8")
