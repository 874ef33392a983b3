"""Publishes into Ollama: upload, create, try, and only then name.

    hash ─► upload ─► create under a name for trial ─► try ─► copy to its name

To try it means: it can do what its base can, what is stored is what was made, it loads, its prompts
are those that it was trained with, its answers are the trained ones and end by themselves, and a
call of a tool comes back as one. Each of these fails by a name of its own (see errors.py).

The model gets its own name by a copy (of a manifest, some hundred bytes) after it has answered, so
that nothing half-made or untried is ever seen under that name, not even when the worker is killed.

Then the job's alias moves to it (`_alias.py`).

A name that is taken is never overwritten. Whether what is there is the same model is told by the
digest of the manifest: one Ollama makes the same one of the same file, parameters and licence,
although some versions rewrite the file and no digest of it can be foretold. (After an update of
Ollama it may differ; then the name counts as taken.)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ollama_trainer.errors import CapabilitiesLost, OllamaUnreachable, PublishError
from ollama_trainer.modelfile import Modelfile, check_model_name
from ollama_trainer.ollama import open_api
from ollama_trainer.ollama.host import Endpoint, resolve
from ollama_trainer.ollama.shown import blob_digest
from ollama_trainer.publishers import NOT_CHECKED, PublisherOptions, Report, _alias
from ollama_trainer.publishers._prompts import check_prompts, check_template
from ollama_trainer.publishers._stored import check_stored, stored_file
from ollama_trainer.publishers._trial import (
    MODEL_REMEDY,
    ask_any,
    ask_for_call,
    ask_for_identity,
    ask_golden,
    load,
)
from ollama_trainer.records import PublishedModel

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import Limits, OllamaApi

#: The longest answer of a model whose Modelfile names none, in tokens.
_ANSWER_TOKENS = 256
#: How long the model may take to leave Ollama's memory, in seconds.
_UNLOAD_S = 10.0
_READ_BYTES = 1 << 20
#: Capabilities that a model of text alone does not take over from its base.
_NOT_TEXT = {"vision", "audio"}
#: How Ollama says that it did not keep the chat template of the file.
_REPLACED = "using autodetected template"


class _Made(NamedTuple):
    """A model under its name for trial, and what it was made of."""

    trial: str
    gguf: Path
    #: `sha256:` and hex.
    digest: str


class OllamaPublisher:
    """The reference of the model is the name under which Ollama lists it."""

    def __init__(
        self, options: PublisherOptions, endpoint: Endpoint, limits: Limits | None = None
    ) -> None:
        self._options = options
        self._endpoint = endpoint
        self._limits = limits

    def publish(
        self, gguf: Path, modelfile: Modelfile, model_name: str, report: Report
    ) -> PublishedModel:
        """See `Publisher.publish`.

        Publishing the same model under the same name again succeeds.

        Raises:
            OllamaUnreachable: no Ollama answers, or it went away.
            PublishError: Ollama refused, the model did not answer, or the name is taken.
        """
        name = _full_name(model_name)
        trial = _trial_name(name, self._options.attempt)
        with open_api(self._endpoint, self._limits) as api:
            version = api.check_version()
            report(0.0, f"Ollama {version} at {self._endpoint.url}")
            digest = _digest(gguf, _part(report, 0.0, 0.1))
            # What a killed attempt left: it would make the answer of /api/show after the creation
            # worthless. Before the upload, since its blob, which may be the same, goes with it.
            for left in _trials(api, name, up_to=self._options.attempt):
                api.delete(left)
            self._options.confirm("trial")
            api.upload(gguf, digest, _part(report, 0.1, 0.5))
            try:
                self._create(api, modelfile, trial, digest, _part(report, 0.5, 0.75))
                _is_there(api, trial, name)  # a taken name is better told before the trial
                made = _Made(trial, gguf, digest)
                self._try(api, modelfile, made, _part(report, 0.75, 0.95))
                canonical = self._promote(api, trial, name)
            except BaseException:
                with suppress(PublishError):
                    api.delete(trial)
                raise
            try:
                api.delete(trial)
            except PublishError as error:
                report(0.99, f"the name for trial {trial} is left behind: {error.cause}")
            _alias.move(api, canonical, report)
        report(1.0, f"published as {canonical}")
        return PublishedModel(ref=canonical, next_command=f"ollama run {canonical}")

    def _create(
        self, api: OllamaApi, modelfile: Modelfile, trial: str, digest: str, report: Report
    ) -> None:
        statuses: list[str] = []

        def note(fraction: float, status: str) -> None:
            statuses.append(status)
            report(fraction, status)

        try:
            api.create(modelfile.create_request(trial, digest), note)
        except PublishError:
            # The model may stand although the answer was lost on its way.
            if api.show(trial) is None:
                raise
        replaced = [s for s in statuses if s.startswith(_REPLACED)]
        if replaced and modelfile.template is None:
            raise PublishError(
                f"Ollama put its template {replaced[0].removeprefix(_REPLACED).strip()} in the "
                "place of the model's own, so that it would be asked in other words than trained",
                "Export the GGUF with a protected chat template (see ollama/shield.py).",
            )

    def _try(
        self,
        api: OllamaApi,
        modelfile: Modelfile,
        made: _Made,
        report: Report,
    ) -> None:
        """Sees that the model is there as it was made, loads and answers; leaves it unloaded."""
        trial = made.trial
        shown = api.show(trial)
        if shown is None:
            raise PublishError("Ollama said success and does not have the model", MODEL_REMEDY)
        # The oldest versions tell no capabilities.
        self._check_capabilities(shown.capabilities)
        is_known = check_stored(api, trial, made.gguf, made.digest)
        options: dict[str, int | float] = {"temperature": 0.0, "seed": 1}
        if self._options.num_thread is not None and self._endpoint.loopback:
            options["num_thread"] = self._options.num_thread
        report(0.0, "loading the model")
        try:
            load(api, trial, options)
            self._check_prompts(api, modelfile, trial, shown.template, options, report)
            cap = int(str(modelfile.parameters.get("num_predict", _ANSWER_TOKENS)))
            self._ask(api, trial, options, cap, _part(report, 0.5, 0.9), is_known=is_known)
            if shown.capabilities is None or "tools" in shown.capabilities:
                thinks = "thinking" in (shown.capabilities or ())
                self._ask_for_call(api, trial, options, _part(report, 0.9, 1.0), thinks=thinks)
        finally:
            # Also after a failure: what is loaded would stay in memory without a name.
            with suppress(PublishError):
                api.unload(trial)
        _wait_until_unloaded(api, trial, report)

    def _check_capabilities(self, capabilities: Sequence[str] | None) -> None:
        """Raises:
        CapabilitiesLost: it writes no text, or the base could do more.
        """
        if capabilities is None:
            return
        if "completion" not in capabilities:
            raise CapabilitiesLost(
                f"Ollama says that the model cannot answer, only: {', '.join(capabilities)}",
                "Train on a base model that writes text.",
            )
        missing = set(self._options.capabilities) - set(capabilities) - _NOT_TEXT
        if missing:
            raise CapabilitiesLost(
                f"Ollama says that the model lacks what its base could do: "
                f"{', '.join(sorted(missing))}",
                "Publish it into the version of Ollama that the base is from; the GGUF is kept.",
            )

    def _check_prompts(
        self,
        api: OllamaApi,
        modelfile: Modelfile,
        trial: str,
        template: str | None,
        options: Mapping[str, Any],
        report: Report,
    ) -> None:
        prompts = self._options.prompts
        part = _part(report, 0.2, 0.5)
        if prompts and not check_prompts(api, trial, prompts, options, part):
            check_template(modelfile, template)
            report(0.5, f"{NOT_CHECKED}this Ollama does not tell what prompts it makes")

    def _ask(
        self,
        api: OllamaApi,
        trial: str,
        options: Mapping[str, Any],
        cap: int,
        report: Report,
        *,
        is_known: bool,
    ) -> None:
        """Lets it answer what it was trained on, and tells it by that where its file is not seen.

        Args:
            is_known: its file was seen.
        """
        report(0.0, "asking the model")
        chats = [chat for chat in self._options.golden if not chat.calls]
        if not chats:
            report(1.0, ask_any(api, trial, self._options.question, options, cap))
            report(1.0, f"{NOT_CHECKED}no trained answer is known that it could be held to")
        else:
            report(0.5, ask_golden(api, trial, chats, options, cap))
            if all(chat.base_answer is None for chat in chats):
                report(0.5, f"{NOT_CHECKED}its base answers the questions that were tried alike")
        if is_known:
            return
        if chats:
            ask_for_identity(api, trial, chats, options, cap)
        seen = "only its answers were compared" if chats else "nothing could be compared"
        report(1.0, f"{NOT_CHECKED}the file that Ollama stored cannot be read here: {seen}")

    def _ask_for_call(
        self,
        api: OllamaApi,
        trial: str,
        options: Mapping[str, Any],
        report: Report,
        *,
        thinks: bool,
    ) -> None:
        report(0.0, "asking for the call of a tool")
        chats = [chat for chat in self._options.golden if chat.calls]
        base = "" if chats else self._base_here(api)
        unclear = ask_for_call(api, trial, base, chats, options, thinks=thinks)
        if unclear is not None:
            report(1.0, f"{NOT_CHECKED}{unclear}")

    def _base_here(self, api: OllamaApi) -> str:
        """The base's name, where this Ollama has the very base that was trained; else nothing."""
        base, digest = self._options.base_model, self._options.base_digest
        described = api.described(base) if base else None
        if described is None:
            return ""
        return base if blob_digest(str(stored_file(described))) == digest else ""

    def withdraw(self, model_name: str, *, named: bool) -> None:
        """See `Publisher.withdraw`.

        Raises:
            OllamaUnreachable: no Ollama answers.
            PublishError: Ollama refused.
        """
        name = _full_name(model_name)
        with open_api(self._endpoint, self._limits) as api:
            api.check_version()
            doomed = _trials(api, name)
            if named and name in api.listed():
                _alias.take_back(api, name)
                doomed.append(name)
            for model in doomed:
                if model in api.loaded():
                    api.unload(model)
                api.delete(model)

    def _promote(self, api: OllamaApi, trial: str, name: str) -> str:
        """Gives the tried model its name; returns the name as Ollama lists it."""
        if _is_there(api, trial, name):
            return _listed_as(api, name)
        self._options.confirm("name")
        try:
            api.copy(trial, name)
        except PublishError:
            # As after create: the answer may have been lost, not the copy.
            if name not in api.listed():
                raise
        try:
            return _listed_as(api, name)
        except PublishError as error:
            # The run fails for good: nothing may bear its name. (Another try finds it there.)
            if not error.retryable:
                with suppress(PublishError):
                    api.delete(name)
            raise


def create(options: PublisherOptions) -> OllamaPublisher:
    """The publisher for the Ollama that the options name.

    Raises:
        PublishError: OLLAMA_HOST is no address.
    """
    return OllamaPublisher(options, resolve(options.ollama_host))


def ollama_version(host: str) -> str:
    """The version of the Ollama at `host`, which takes any form of OLLAMA_HOST.

    Raises:
        OllamaUnreachable: none answers.
        PublishError: it is too old, or `host` is no address.
    """
    with open_api(resolve(host)) as api:
        return api.check_version()


def _is_there(api: OllamaApi, trial: str, name: str) -> bool:
    """Whether the name exists and holds the model on trial.

    Raises:
        PublishError: it holds another one.
    """
    listed = api.listed()
    if name not in listed:
        return False
    if trial in listed and listed[name][1] == listed[trial][1]:
        return True
    raise PublishError(
        f"Ollama already has a model {name}, and it is another one",
        f"Models are never overwritten. Remove it (ollama rm {name}) if nobody needs it, "
        "or publish under another name.",
    )


def _listed_as(api: OllamaApi, name: str) -> str:
    """The name as Ollama writes it.

    Raises:
        PublishError: it does not list or show it.
    """
    listed = api.listed()
    if name not in listed or api.show(name) is None:
        raise PublishError(
            f"Ollama does not list {name} after it took the name", "Try again; see Ollama's log."
        )
    return listed[name][0]


def _wait_until_unloaded(api: OllamaApi, model: str, report: Report) -> None:
    """Waits a moment; a model that stays is worth a note, not a failure."""
    end = time.monotonic() + _UNLOAD_S
    while _may_be_loaded(api, model):
        if time.monotonic() > end:
            report(0.95, "Ollama still holds the model in memory")
            return
        time.sleep(0.1)
        # It may not have heard it the first time.
        with suppress(PublishError):
            api.unload(model)


def _may_be_loaded(api: OllamaApi, model: str) -> bool:
    """True also where Ollama does not say.

    Raises:
        OllamaUnreachable: none answers any more.
    """
    try:
        return model in api.loaded()
    except OllamaUnreachable:
        raise
    except PublishError:
        return True


def _full_name(model_name: str) -> str:
    """Lower case, since Ollama compares names without case, and with its tag."""
    name = check_model_name(model_name).lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _mark(name: str) -> str:
    return f"untried-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _trial_name(name: str, attempt: int) -> str:
    """One for each attempt, so that a lost one that still lives spoils nothing for the next."""
    return f"{name.rpartition(':')[0]}:{_mark(name)}-{attempt}"


def _trials(api: OllamaApi, name: str, up_to: int | None = None) -> list[str]:
    """Names for trial that attempts at `name` left behind, those of later attempts left aside."""
    prefix = f"{name.rpartition(':')[0]}:{_mark(name)}-"
    numbers = {
        listed: listed.removeprefix(prefix)
        for listed in api.listed()
        if listed.startswith(prefix) and listed.removeprefix(prefix).isdecimal()
    }
    return [trial for trial, number in numbers.items() if up_to is None or int(number) <= up_to]


def _digest(gguf: Path, report: Report) -> str:
    """The file's digest in Ollama's form."""
    total = hashlib.sha256()
    done = 0
    try:
        size = gguf.stat().st_size
        with gguf.open("rb") as handle:
            while chunk := handle.read(_READ_BYTES):
                total.update(chunk)
                done += len(chunk)
                report(done / size, "computing the file's digest")
    except OSError as error:
        raise PublishError(
            f"the GGUF {gguf} cannot be read: {error.strerror}", "Let the run export it again."
        ) from error
    return f"sha256:{total.hexdigest()}"


def _part(report: Report, start: float, end: float) -> Report:
    """A report whose 0 to 1 is a part of the whole, told at most once for each fiftieth of it."""
    last: tuple[int, str] = (-1, "")

    def tell(fraction: float, message: str) -> None:
        nonlocal last
        whole = start + (end - start) * fraction
        fiftieth = int(whole * 50)
        is_new = fraction == 0.0 or message.startswith(NOT_CHECKED)
        if fiftieth != last[0] or (is_new and message != last[1]):
            last = (fiftieth, message)
            report(whole, message)

    return tell
