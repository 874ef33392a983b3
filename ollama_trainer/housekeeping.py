"""What this program's models cost in Ollama, and how they are removed.

Which ones are its own they tell themselves (ollama/versions.py). Nothing else is ever touched:
neither a model of somebody else's, whatever its name begins with, nor a version that has a second
name, an alias or a copy. A run stays completed when its model is removed, and its GGUF stays in
its directory, to be published again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ollama_trainer.errors import InvalidRequest, PublishError
from ollama_trainer.gguf.provenance import in_a_line
from ollama_trainer.names import RUN_ID
from ollama_trainer.ollama.names import full_name
from ollama_trainer.ollama.versions import Held, is_alias, look, unload
from ollama_trainer.records import Manifest, OutputFile
from ollama_trainer.reports import ModelsReport, ModelVersion, RemovalReport, Told
from ollama_trainer.workspace import DataDirectory

if TYPE_CHECKING:
    from ollama_trainer.ollama.api import OllamaApi

_LIST = "`ollama-trainer models` lists those that there are."


class Stock:
    """What an Ollama holds just now.

    Raises:
        OllamaUnreachable, PublishError: as of `OllamaApi`.
    """

    def __init__(self, api: OllamaApi, url: str, data: DataDirectory) -> None:
        self._api, self._url, self._data = api, url, data
        self.names = look(api)
        self.loaded = api.loaded_digests()
        self.versions = sorted(
            (held for held in self.names if held.is_version),
            key=lambda held: (_job(held), -held.named_at.timestamp(), held.name),
        )

    def of(self, job: str | None) -> list[Held]:
        """The versions of one job, or of all, job by job and the newest first."""
        wanted = None if job is None else in_a_line(job)
        return [held for held in self.versions if wanted in (None, _job(held))]

    def others(self, version: Held) -> list[Held]:
        """Further names of the very same model."""
        return [
            held
            for held in self.names
            if held.digest == version.digest and held.name != version.name
        ]

    def models(self, job: str | None = None) -> ModelsReport:
        """See the command `models`."""
        told = tuple(self._told(version) for version in self.of(job))
        return ModelsReport(ollama=self._url, models=told)

    def remove(self, names: Sequence[str]) -> RemovalReport:
        """Removes versions, and aliases, by their names.

        Raises:
            InvalidRequest: one of them is none, or has a name more. Nothing was removed.
        """
        doomed = [self._own(name) for name in dict.fromkeys(map(full_name, names))]
        # Aliases first: a version without its alias is whole, an alias alone is an orphan.
        doomed.sort(key=lambda held: held.is_version)
        for version in doomed:
            left = [held.name for held in self.others(version) if held not in doomed]
            if version.is_version and left:
                raise InvalidRequest(
                    f"{version.name} is also called {', '.join(left)}",
                    self._how_to_free(version, left),
                )
        return self._removed(doomed, (), dry_run=False)

    def collect(self, keep: int, job: str | None = None, *, dry_run: bool) -> RemovalReport:
        """Removes all but the newest versions of each job.

        Args:
            keep: so many of each job.
            dry_run: whether it is only told.
        """
        doomed: list[Held] = []
        kept: list[Told] = []
        seen: dict[str, int] = defaultdict(int)
        for version in self.of(job):
            seen[_job(version)] += 1
            others = ", ".join(held.name for held in self.others(version))
            if seen[_job(version)] <= keep:
                kept.append(Told(name=version.name, what=f"one of its job's newest {keep}"))
            elif others:
                kept.append(Told(name=version.name, what=f"also called {others}"))
            elif version.digest in self.loaded:
                kept.append(Told(name=version.name, what="in memory now"))
            else:
                doomed.append(version)
        return self._removed(doomed, kept, dry_run=dry_run)

    def _own(self, name: str) -> Held:
        """The version or alias of that name.

        Raises:
            InvalidRequest: there is none.
        """
        found = next((held for held in self.names if full_name(held.name) == name), None)
        if found is None:
            raise InvalidRequest(f"Ollama at {self._url} has no model {name}", _LIST)
        if not found.is_version and not self._is_alias(found):
            raise InvalidRequest(
                f"{found.name} was not made by this program, or is somebody's copy",
                f"If nobody needs it: ollama rm {found.name}. {_LIST}",
            )
        return found

    def _is_alias(self, held: Held) -> bool:
        return any(is_alias(held, version) for version in self.versions)

    def _how_to_free(self, version: Held, left: list[str]) -> str:
        aliases = [held.name for held in self.others(version) if self._is_alias(held)]
        if aliases == left:
            return (
                f"Publish another run of the job, which moves {aliases[0]}, or name both: "
                f"ollama-trainer rm {aliases[0]} {version.name}"
            )
        return f"Remove those names first, if nobody needs them (ollama rm {left[0]})."

    def _told(self, version: Held) -> ModelVersion:
        others = self.others(version)
        aliases = [held for held in others if is_alias(held, version)]
        return ModelVersion(
            name=version.name,
            alias="".join(held.name for held in aliases),
            copies=tuple(held.name for held in others if held not in aliases),
            job=_job(version),
            run=(version.told.run_id if version.told else None) or "",
            base=self._base(version),
            n_bytes=version.n_bytes,
            frees_bytes=self._bytes_of(self._freed_with([version, *aliases])),
            upload_bytes=sum(upload.n_bytes for upload in self._uploads([version])),
            made_at=version.named_at,
            loaded=version.digest in self.loaded,
        )

    def _base(self, version: Held) -> str:
        digest = (version.told.base_digest if version.told else None) or ""
        here = [held.name for held in self.names if digest and held.weights == digest]
        return min(here, default="") or version.parent or digest[:12]

    def _freed_with(self, doomed: Iterable[Held]) -> list[Held]:
        """One for each file of weights that nothing else has when those are gone."""
        gone = list(doomed)
        needed = {_weights(held) for held in self.names if held not in gone}
        freed = {_weights(held): held for held in gone if _weights(held) not in needed}
        return list(freed.values())

    def _bytes_of(self, freed: Iterable[Held]) -> int:
        return sum(held.n_bytes for held in freed)

    def _uploads(self, versions: Iterable[Held]) -> Iterator[OutputFile]:
        """Files as they were uploaded, where they lie in Ollama beside what it made of them."""
        in_use = {held.weights for held in self.names}
        for version in versions:
            upload = self._upload_of(version)
            if upload is None or upload.sha256 in in_use:
                continue
            if self._api.has_blob(f"sha256:{upload.sha256}"):
                yield upload

    def _upload_of(self, version: Held) -> OutputFile | None:
        """What the run's directory says of its GGUF; None where there is no such directory."""
        run_id = version.told.run_id if version.told else None
        if run_id is None or not RUN_ID.fullmatch(run_id):
            return None
        directory = self._data.run(run_id)
        try:
            told = Manifest.model_validate_json(directory.manifest("modelfile").read_bytes())
        except (OSError, ValidationError):
            return None
        return told.outputs.get(directory.gguf.name)

    def _removed(
        self, doomed: Sequence[Held], kept: Sequence[Told], *, dry_run: bool
    ) -> RemovalReport:
        uploads = list(self._uploads(held for held in doomed if held.is_version))
        failed: list[Told] = []
        gone: list[Held] = []
        for held in doomed:
            why_not = None if dry_run else self._delete(held)
            if why_not is None:
                gone.append(held)
            else:
                failed.append(Told(name=held.name, what=why_not))
        freed = self._freed_with(gone)
        still = [] if dry_run else [held for held in freed if self._is_still_there(held)]
        left = self._bytes_of(still) + sum(upload.n_bytes for upload in uploads)
        return RemovalReport(
            ollama=self._url,
            dry_run=dry_run,
            removed=tuple(held.name for held in gone),
            kept=tuple(kept),
            failed=tuple(failed),
            freed_bytes=self._bytes_of(freed) - self._bytes_of(still),
            at_restart_bytes=left,
        )

    def _delete(self, held: Held) -> str | None:
        """Deletes one name; returns why not, where it does not."""
        try:
            # Since it was looked at, a run may have been published, or an alias have moved.
            listed = self._api.listed()
            _, digest = listed.pop(held.name.lower(), ("", ""))
            if digest != held.digest:
                return "it has just been changed"
            others = [name for name, digest in listed.values() if digest == held.digest]
            if held.is_version and others:
                return f"it is also called {', '.join(others)} now"
            if held.is_version and not unload(self._api, held):
                return "it is answering; try again when it has"
            self._api.delete(held.name)
        except PublishError as error:
            return str(error)
        return None

    def _is_still_there(self, held: Held) -> bool:
        return bool(held.weights) and self._api.has_blob(f"sha256:{held.weights}")


def _job(version: Held) -> str:
    return (version.told.job_id if version.told else None) or ""


def _weights(held: Held) -> str:
    """What is told apart by: the file, or the model where nobody knows its file."""
    return held.weights or held.digest
