"""Keeps a chat template from being replaced by one of Ollama's own."""

from __future__ import annotations

#: Ollama takes one of its bundled Go templates, with that one's stops, for any chat template at an
#: edit distance below 100 from the Jinja that it knows for it (its template/template.go). None of
#: those holds a tilde, so 128 of them keep the distance at 128 or more whatever the template is.
_SHIELD = (
    "{# Kept as trained: without this remark Ollama would put a template of its own in this one's "
    "place, with other rules. " + "~" * 128 + " #}"
)


def protect_chat_template(jinja: str) -> str:
    """The template with a Jinja comment in it that keeps Ollama from replacing it.

    Renders to the same text, also with `trim_blocks` and `lstrip_blocks`; doing it twice changes
    nothing. An empty template stays empty, since Ollama has nothing to replace there.
    """
    if not jinja or _SHIELD[2:-2] in jinja:
        return jinja
    body = jinja.lstrip()
    blank = jinja[: len(jinja) - len(body)]
    if not blank:
        return _SHIELD + jinja
    if body.startswith(("{%", "{#")):
        # The comment must treat the blanks before it just as the tag did that stood there.
        mark = body[2] if body[2:3] in ("-", "+") else ""
        return blank + "{#" + mark + _SHIELD[2:] + body
    # `trim_blocks` eats a newline right after a comment, but not after an expression.
    return _SHIELD + "{{ '' }}" + jinja
