"""What the fake Ollama can be told to do wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Faults:
    """What goes wrong, until it is set back."""

    #: Text of an error line after the first status of /api/create.
    create_error: str = ""
    #: /api/create ends after its first status, without error or success.
    create_ends: bool = False
    #: /api/create makes the model; then the connection breaks before it says so.
    create_lost: bool = False
    #: "before": the upload breaks and nothing is kept; "after": kept, then the connection breaks.
    blob_reset: str = ""
    #: Every request gets 403 with an empty body.
    forbid: bool = False
    #: This many of the next requests to a model get 503.
    busy: int = 0
    #: Text of the error 500 with which every loading fails.
    load_error: str = ""
    #: At a request whose path begins so, the server breaks the connection and stops listening.
    vanish_at: str = ""
    #: Whether it tells prompts when it is asked to; old ones answer instead.
    renders: bool = True
    #: Whether it says of its files that they lie where they are not: as from inside a container.
    hides_blobs: bool = False
    #: Whether it spoils the last byte of each file that a model is created of.
    spoils: bool = False
    #: Seconds before each answer.
    delay_s: float = 0.0
    #: What goes wrong at one request alone: a status to refuse it with, "break" (the connection
    #: ends before anything is done), "lose" (it is done, and the answer lost) or "hang".
    once: str = ""
    #: Which one: "METHOD /the/path", and how many of them are let pass before.
    once_at: str = ""
    once_after: int = 0
    #: Answers of models stop after their first word until this is set back.
    hold_answers: bool = False
