"""Jobs: what their runs get that ask for nothing else. A job that nobody settled needs no row."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from ollama_trainer.queue.database import Database
from ollama_trainer.queue.store import now


class Job(NamedTuple):
    """One row of the table `jobs`."""

    job_id: str
    #: By the names that a request to train has for them.
    options: Mapping[str, Any]
    #: ISO 8601 in UTC.
    updated_at: str


class JobStore:
    """Jobs by id. Reads and writes raise `StoreUnavailable` when the database does not work now."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.sql

    def get(self, job_id: str) -> Job | None:
        """None when nothing was settled for it."""
        row = self._database.row("job", job_id=job_id)
        return Job(row["job_id"], json.loads(row["options"]), row["updated_at"]) if row else None

    def options(self, job_id: str) -> Mapping[str, Any]:
        """What its runs get that ask for nothing else."""
        job = self.get(job_id)
        return job.options if job is not None else {}

    async def put(self, job_id: str, options: Mapping[str, Any]) -> Job:
        """Settles these options, and no others, for the runs that are submitted from now on."""
        return await self._database.write(self._put, job_id, options)

    def _put(self, connection: sqlite3.Connection, job_id: str, options: Mapping[str, Any]) -> Job:
        job = Job(job_id, dict(options), now())
        values = {"job_id": job_id, "options": json.dumps(job.options), "now": job.updated_at}
        connection.execute(self._sql["job_put"], values)
        return job
