"""Identifiers that callers choose become directories and Ollama names, and stay harmless there."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.names import check_prefix, check_run_id, job_slug, model_name

#: What Ollama accepts as `model:tag`.
OLLAMA_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}:[a-z0-9_][a-z0-9_.-]{0,79}")


@pytest.mark.parametrize("run_id", ["a", "0f8fad5b-d9cb-469f-a165-70867728950e", "A_b-1", "x" * 64])
def test_plain_identifiers_pass_unchanged(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id",
    [
        *("", ".", "..", "../x", "a/b", "a\\b", "a b", "a\n", "-a", "_a", "a.b", "ä", "a\0", "%2e"),
        *("x" * 65, "C:", "local", "Cloud", "\ud800", None, 7, ["a"], {"a": 1}),
    ],
)
def test_anything_else_is_refused(run_id: object) -> None:
    with pytest.raises(InvalidRequest, match="runId"):
        check_run_id(run_id)


@pytest.mark.parametrize("job_id", ["support", "job_1", "a-b"])
def test_a_job_id_that_fits_is_its_own_slug(job_id: str) -> None:
    assert job_slug(job_id) == job_id


def test_job_ids_that_had_to_change_do_not_meet() -> None:
    changed = ["Support", "support!", "sup port", "sup/port", "süpport", "", "..", "x" * 200]
    slugs = [job_slug(job_id) for job_id in [*changed, "support", "x" * 201]]
    assert len(set(slugs)) == len(slugs)


@given(
    st.text(min_size=1, max_size=200),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
)
def test_every_model_name_is_one_that_ollama_takes(job_id: str, run_id: str) -> None:
    for prefix in ("tuned-", "x" * 24, ""):
        assert OLLAMA_NAME.fullmatch(model_name(prefix, job_id, run_id))


@pytest.mark.parametrize("prefix", ["Tuned-", "-a", "a/b", "a:b", "x" * 25, "ü"])
def test_a_prefix_that_cannot_begin_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        check_prefix(prefix)
