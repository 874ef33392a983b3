"""Finished runs whose model is published once more, without training: rows of their own, since a
finished run never changes."""

from __future__ import annotations

import sqlite3

from ollama_trainer.queue.database import Database
from ollama_trainer.queue.rows import Publication, Run
from ollama_trainer.queue.store import now
from ollama_trainer.records import ErrorInfo, RunState


class PublicationStore:
    """Publications by run. Writes raise `StoreUnavailable` when nothing can be written now."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.sql

    def of(self, run: Run) -> list[Publication]:
        """All of a run, the first one first."""
        return [Publication.of(row) for row in self._database.rows("publications", seq=run.seq)]

    def is_idle(self, run: Run) -> bool:
        """Whether none of a run is unfinished."""
        return all(publication.state.terminal for publication in self.of(run))

    def next(self) -> tuple[Publication, str] | None:
        """The unfinished one that was asked for first, with its run's id."""
        row = self._database.row("publication_next")
        return (Publication.of(row), row["run_id"]) if row is not None else None

    async def request(self, run: Run, publisher: str) -> Publication:
        """The unfinished publication of a run, begun unless there is one."""
        return await self._database.write(self._request, run.seq, publisher)

    async def started(self, publication: Publication) -> None:
        await self._database.write(self._update, "publication_start", id=publication.id)

    async def lost(self, publication: Publication) -> None:
        """Its worker went away without a word."""
        await self._database.write(self._update, "publication_lost", id=publication.id)

    async def finish(
        self, publication: Publication, output_model_ref: str | None, error: ErrorInfo | None
    ) -> None:
        """Ends it: with a reference, or with an error."""
        await self._database.write(
            self._update,
            "publication_finish",
            id=publication.id,
            state=RunState.FAILED if error else RunState.COMPLETED,
            output_model_ref=None if error else output_model_ref,
            error=error.model_dump_json() if error else None,
            now=now(),
        )

    def _request(self, connection: sqlite3.Connection, seq: int, publisher: str) -> Publication:
        values = {"seq": seq, "publisher": publisher, "now": now()}
        connection.execute(self._sql["publication_insert"], values)
        row = connection.execute(self._sql["publication_unfinished"], {"seq": seq}).fetchone()
        return Publication.of(row)

    def _update(self, connection: sqlite3.Connection, /, query: str, **values: object) -> None:
        connection.execute(self._sql[query], values)
