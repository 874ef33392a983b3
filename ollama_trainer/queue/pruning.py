"""Removes what finished runs need no longer. Records, logs and data sets always stay.

- As soon as a run has ended: checkpoints, statistics and names for the base's files, and a GGUF
  that was not found good.
- Of each job's finished runs, all but the last `keep_last`: adapter and GGUF as well. Never of the
  run whose model was published last; and never a GGUF that was left in its folder as the result.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from pathlib import Path

from ollama_trainer.queue.database import Database
from ollama_trainer.queue.publications import PublicationStore
from ollama_trainer.queue.rows import Run
from ollama_trainer.queue.store import now
from ollama_trainer.records import RunState
from ollama_trainer.workspace import PARTIAL_SUFFIX, DataDirectory, RunDirectory

_log = logging.getLogger(__name__)


class Pruner:
    """Keeps the disk free of what nobody needs.

    Args:
        keep_last: finished runs of each job whose big files are kept.
    """

    def __init__(
        self,
        database: Database,
        publications: PublicationStore,
        data: DataDirectory,
        keep_last: int,
    ) -> None:
        self._database = database
        self._publications = publications
        self._data = data
        self._keep_last = keep_last
        #: Held while files of a finished run are removed, or counted on.
        self.lock = asyncio.Lock()

    async def sweep(self) -> None:
        """Goes over all jobs, after a start."""
        for row in await self._database.search("jobs_unpruned"):
            await self.sweep_job(row["job_id"])

    async def sweep_job(self, job_id: str) -> None:
        """Goes over the finished runs of one job that still have their files."""
        for number, row in enumerate(await self._database.search("unpruned", job_id=job_id)):
            run = Run.of(row)
            async with self.lock:
                if not self._publications.is_idle(run):
                    continue
                directory = self._data.run(run.run_id)
                await asyncio.to_thread(_tidy, directory, failed=run.state is RunState.FAILED)
                if number >= self._keep_last and not await self._is_last(run):
                    await self._prune(run, directory)

    async def _is_last(self, run: Run) -> bool:
        """Whether its model was published last of its job."""
        last = await self._database.search("published_last", job_id=run.job_id)
        return run.run_id in [row["run_id"] for row in last]

    async def _prune(self, run: Run, directory: RunDirectory) -> None:
        published = [p.publisher for p in self._publications.of(run) if p.output_model_ref]
        if run.output_model_ref is not None and run.spec is not None:
            published.append(run.spec.publisher)
        # What the folder publisher gave out is that very file.
        await asyncio.to_thread(_remove_model, directory, gguf="folder" not in published)
        await self._database.write(self._mark, run.seq)
        _log.info("run %s: its big files were removed", run.run_id)

    def _mark(self, connection: sqlite3.Connection, seq: int) -> None:
        connection.execute(self._database.sql["pruned_insert"], {"seq": seq, "now": now()})


def remove_all(directory: RunDirectory) -> None:
    """Removes a run's directory; the other name comes first, so that no half of one is found."""
    doomed = directory.path.with_name(directory.path.name + PARTIAL_SUFFIX)
    shutil.rmtree(doomed, ignore_errors=True)
    if directory.path.exists():
        directory.path.rename(doomed)
        shutil.rmtree(doomed)


def _tidy(directory: RunDirectory, *, failed: bool) -> None:
    for path in (directory.checkpoints, directory.statistics, directory.kept):
        _remove(path)
    for path in directory.path.glob(f"*{PARTIAL_SUFFIX}"):
        _remove(path)
    if failed and not directory.manifest("modelfile").exists():
        _remove(directory.gguf)


def _remove_model(directory: RunDirectory, *, gguf: bool) -> None:
    _remove(directory.adapter)
    if gguf:
        _remove(directory.gguf)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
