"""Identifiers that callers choose become directories and Ollama names, and stay harmless there."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.names import (
    DEFAULT_TEMPLATE,
    alias_of,
    check_prefix,
    check_run_id,
    check_template,
    job_slug,
    model_name,
)

#: What Ollama accepts as `namespace/model:tag`, in lower case.
OLLAMA_NAME = re.compile(
    r"(?:[a-z0-9_][a-z0-9_-]{0,79}/)?"
    r"(?P<model>[a-z0-9_][a-z0-9_.-]{0,79}):(?P<tag>[a-z0-9_][a-z0-9_.-]{0,79})"
)
#: What its renderers look for anywhere in a name (server/renderer_resolution.go).
SIZES = ("e2b", "e4b", "12b", "26b", "31b")
PREFIXES = ("tuned-", "x" * 24, "", "v1", "e", "acme-3")
TEMPLATES = (
    DEFAULT_TEMPLATE,
    "me/{prefix}{job}:{run}",
    "{job}:{run}",
    "{job}b-{prefix}x.2:v1.{run}-tuned",
    "_1{job}b:{run}",
    f"{'n' * 80}/{'a' * 30}{{job}}{'b' * 26}:{'t' * 7}-{{run}}-{'z' * 7}",
)
RUN_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
#: Ids that are made of what is dangerous in names.
HOSTILE = st.lists(
    st.sampled_from(
        [*SIZES, *"beBE126_-./: \n\0é😀İK\u2028\ud800", "2b", "{run}", "latest", "cloud"]
    ),
    min_size=1,
    max_size=40,
).map("".join)
JOB_IDS = st.one_of(st.text(min_size=1, max_size=200), HOSTILE)


def usable(template: str, prefix: str) -> bool:
    try:
        check_template(template, prefix)
    except ValueError:
        return False
    return True


#: All but those that are too long together.
NAMINGS = [pair for pair in itertools.product(TEMPLATES, PREFIXES) if usable(*pair)]


@pytest.mark.parametrize("run_id", ["a", "0f8fad5b-d9cb-469f-a165-70867728950e", "A_b-1", "x" * 64])
def test_plain_identifiers_pass_unchanged(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "run_id",
    [
        *("", ".", "..", "../x", "a/b", "a\\b", "a b", "a\n", "-a", "_a", "a.b", "ä", "a\0", "%2e"),
        *("x" * 65, "C:", "local", "Cloud", "my-Cloud", "latest", "LATEST", "untried-0f-1"),
        *("\ud800", None, 7, ["a"], {"a": 1}),
    ],
)
def test_anything_else_is_refused(run_id: object) -> None:
    with pytest.raises(InvalidRequest, match="runId"):
        check_run_id(run_id)


@pytest.mark.parametrize("job_id", ["support", "job_1", "a-b", "12", "gemma-12-b", "b2b", "e2-b"])
def test_a_job_id_that_fits_is_its_own_slug(job_id: str) -> None:
    assert job_slug(job_id) == job_id


def test_job_ids_that_had_to_change_do_not_meet() -> None:
    changed = ["Support", "support!", "sup port", "sup/port", "süpport", "", "..", "x" * 200]
    changed += ["support-12b", "support-12-b", "e2b", job_slug("Support"), "\ud800", "\udfff"]
    slugs = [job_slug(job_id) for job_id in [*changed, "support", "x" * 201]]
    assert len(set(slugs)) == len(slugs)


@given(JOB_IDS, RUN_IDS, st.sampled_from(NAMINGS))
def test_every_model_name_is_one_that_ollama_takes(
    job_id: str, run_id: str, naming: tuple[str, str]
) -> None:
    template, prefix = naming
    name = model_name(prefix, job_id, run_id, template)
    match = OLLAMA_NAME.fullmatch(name)
    assert match
    model = name.rpartition(":")[0]
    assert not [size for size in SIZES if size in model], "the run's id alone may hold one"
    assert run_id.lower() in match["tag"]
    assert OLLAMA_NAME.fullmatch(alias_of(name))
    try:
        check_run_id(run_id)
    except InvalidRequest:
        return
    assert match["tag"] not in ("cloud", "local", "latest")
    assert not match["tag"].endswith("-cloud")
    assert not match["tag"].startswith("untried-")


@given(JOB_IDS, JOB_IDS, st.sampled_from(NAMINGS))
def test_two_jobs_never_share_an_alias(one: str, other: str, naming: tuple[str, str]) -> None:
    template, prefix = naming
    aliases = {alias_of(model_name(prefix, job, "r1", template)) for job in (one, other)}
    assert len(aliases) == len({one, other})


def test_names_are_made_as_they_are_told() -> None:
    assert model_name("tuned-", "support", "R1") == "tuned-support:r1"
    assert alias_of("tuned-support:r1") == "tuned-support:latest"
    assert model_name("t-", "a", "r", "me/{prefix}x.{job}:v2-{run}") == "me/t-x.a:v2-r"
    # Neither what stands before nor the id alone has a size in it.
    assert "12b" not in model_name("v1", "2b-things", "r1")


@pytest.mark.parametrize("prefix", ["Tuned-", "-a", "a/b", "a:b", "x" * 25, "ü", "my12b-", "e2b"])
def test_a_prefix_that_cannot_begin_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"prefix|size"):
        check_prefix(prefix)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{prefix}{job}", "exactly one ':'"),
        ("{job}:{run}:x", "exactly one ':'"),
        ("{prefix}:{run}", "needs {job} once"),
        ("{job}{job}:{run}", "needs {job} once"),
        ("{job}:latest", "{run} once"),
        ("{job}-{run}:x", "{run} once"),
        ("{job}:{run}{run}", "{run} once"),
        ("{job}-{date}:{run}", "beside {prefix}"),
        ("{prefix}{prefix}{job}:{run}", "beside {prefix}"),
        ("{Job}:{run}", "needs {job} once"),
        ("X{job}:{run}", "beside {prefix}"),
        ("-{job}:{run}", "beside {prefix}"),
        ("host.example/me/{job}:{run}", "namespace"),
        ("library/{job}:{run}", "namespace"),
        ("{prefix}/{job}:{run}", "namespace"),
        ("/{job}:{run}", "namespace"),
        ("{job}:{run}-cloud", "meaning of their own"),
        ("{job}:untried-{run}", "meaning of their own"),
        ("{job}:{run}cloud", "around {run}"),
        ("{job}:lo{run}", "around {run}"),
        ("{job}:-{run}", "around {run}"),
        ("{job}:{run}-{job}", "around {run}"),
        ("{job}:abcdefgh-{run}-abcdefgh", "16 characters"),
        (f"{'a' * 57}{{job}}:{{run}}", "may hold 56"),
        ("gemma-12b-{job}:{run}", "size"),
        ("me-e4b/{job}:{run}", "size"),
        ("{job}:{run}-26b", "size"),
        ("{job}:{run}\n", "around {run}"),
    ],
)
def test_a_template_whose_names_could_fail_is_refused(template: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_template(template, "tuned-")


def test_prefix_and_template_are_looked_at_together() -> None:
    check_template("1{prefix}{job}:{run}", "b-")
    with pytest.raises(ValueError, match="size"):
        check_template("1{prefix}{job}:{run}", "2b-")
