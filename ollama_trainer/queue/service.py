"""The queue as the server sees it: submit a run, look at runs, cancel, publish again, delete."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from ollama_trainer.errors import (
    Cancelled,
    DatasetError,
    DiskFull,
    InvalidRequest,
    MachineBusy,
    ServerError,
    StoreUnavailable,
    TrainerError,
)
from ollama_trainer.executors import Executor
from ollama_trainer.queue.database import Ballast, Database
from ollama_trainer.queue.jobs import JobStore
from ollama_trainer.queue.lock import DirectoryLock
from ollama_trainer.queue.pruning import Pruner, remove_all
from ollama_trainer.queue.publications import PublicationStore
from ollama_trainer.queue.retries import Tried, given_up, next_try
from ollama_trainer.queue.rows import Publication, Run, Submission
from ollama_trainer.queue.snapshot import Snapshot, SnapshotStopped, snapshot_once
from ollama_trainer.queue.store import RunStore
from ollama_trainer.queue.supervisor import Supervisor
from ollama_trainer.queue.watch import Patience
from ollama_trainer.records import ErrorInfo, RunState
from ollama_trainer.settings import Settings
from ollama_trainer.workspace import DataDirectory, RunDirectory

_log = logging.getLogger(__name__)
#: Data sets copied at once: a small one need not wait for a big one.
_COPIES = 4
#: Seconds that a reply waits for the copy.
_COPY_PATIENCE_S = 0.05
#: Seconds before a copied data set is stored again, where the database could not be written.
_PAUSE_S = 1.0


class NotNow(InvalidRequest):
    """The state of a run does not allow what was asked for."""

    code = "conflict"


class RunQueue:
    """All runs of one data directory, which it locks.

    Raises:
        ServerError: another server holds the directory, or a newer program wrote its database.
    """

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self._settings = settings
        self._data = DataDirectory(settings.data_dir)
        self.lock, self._database = _open(self._data)
        self.store = RunStore(self._database)
        self.publications = PublicationStore(self._database)
        self.jobs = JobStore(self._database)
        self._pruner = Pruner(self._database, self.publications, self._data, settings.keep_last)
        self._supervisor = Supervisor(
            self.store,
            self.publications,
            self._data,
            executor,
            retry_for_s=settings.retry_for_s,
            patience=Patience(beat_s=settings.lease_s, word_s=settings.stall_s),
            ended=self._prune_job_of,
        )
        self._copiers = ThreadPoolExecutor(_COPIES, thread_name_prefix="dataset-copier")
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Takes up what an earlier server left, and works from then on."""
        for run in self.store.uncopied():
            self._copy(run)
        self._supervisor.start()
        self._background(self._pruner.sweep(), "prune")

    async def stop(self) -> None:
        """Ends the worker; unfinished runs go on at the next start."""
        await self._supervisor.stop()
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._copiers.shutdown(wait=False, cancel_futures=True)
        self._database.close()
        self.lock.release()

    async def submit(self, submission: Submission) -> Run:
        """Stores a run; when this returns it can no longer be lost.

        Raises:
            RunIdTaken: the id stands for another request.
            StoreUnavailable: it could not be stored.
        """
        run, new = await self.store.accept(submission, submission.spec(self._settings))
        if new:
            # Who removes its file after the reply finds that a small one was copied by then.
            await asyncio.wait({self._copy(run)}, timeout=_COPY_PATIENCE_S)
        return run

    async def reject(self, submission: Submission, error: TrainerError) -> None:
        """Stores a refused request as a failed run: a client that only polls learns of it."""
        await self.store.reject(submission, error)

    async def cancel(self, run: Run) -> None:
        """Ends a run before its end. A run that was cancelled already is left so.

        Raises:
            NotNow: it has ended otherwise.
        """
        if run.state is RunState.PENDING:
            error = Cancelled("The run was cancelled before it began")
            if await self.store.fail_pending(run.run_id, error):
                self._supervisor.wake()
                return
        await self.store.request_cancel(run.run_id)
        current = self.store.get(run.run_id)
        if current is None or current.state.terminal:
            if current is not None and current.error and current.error.code == Cancelled.code:
                return
            raise NotNow("the run has ended already", "Its result stands in GET /status/{runId}.")
        self._supervisor.cancel(run.run_id)

    async def publish(self, run: Run, publisher: str | None) -> Publication:
        """Publishes a finished run's model once more.

        Args:
            publisher: None means as the run's request said.

        Raises:
            NotNow: the run has not ended, or has no model any more.
        """
        if not run.state.terminal:
            raise NotNow("the run has not ended", "Wait for its end, or cancel it.")
        directory = self._data.run(run.run_id)
        if not directory.manifest("modelfile").exists() or not directory.gguf.exists():
            raise NotNow(
                "the run has no finished model on the disk",
                "It never got so far, or its files were removed: train again.",
            )
        assert run.spec is not None  # noqa: S101 - it got as far as a model
        async with self._pruner.lock:
            if not directory.gguf.exists():
                raise NotNow("the run's files were removed just now", "Train again.")
            publication = await self.publications.request(run, publisher or run.spec.publisher)
        self._supervisor.wake()
        return publication

    async def delete(self, run: Run) -> None:
        """Removes a finished run with its files. What it published stays.

        Raises:
            NotNow: somebody works on it, or will.
        """
        async with self._pruner.lock:
            if not (run.state.terminal and self.publications.is_idle(run)):
                raise NotNow("the run is not finished", "Cancel it, or wait for its end.")
            await asyncio.to_thread(remove_all, self._data.run(run.run_id))
            await self.store.delete(run.run_id)

    def directory(self, run: Run) -> RunDirectory:
        return self._data.run(run.run_id)

    # The copies of data sets

    def _copy(self, run: Run) -> asyncio.Task[None]:
        return self._background(self._copy_dataset(run), f"copy {run.run_id}")

    async def _copy_dataset(self, run: Run) -> None:
        """Makes a run ready to start, or fails it at once, wherever it stands in the queue."""
        outcome = await self._snapshot(run)
        while outcome is not None:
            try:
                if isinstance(outcome, Snapshot):
                    await self.store.dataset_copied(run.run_id, outcome.sha256, outcome.n_bytes)
                else:
                    await self.store.fail_pending(run.run_id, outcome)
                break
            except StoreUnavailable as error:
                _log.error("run %s waits: %s", run.run_id, error)
                await asyncio.sleep(_PAUSE_S)
        if self.store.get(run.run_id) is None:
            # It was cancelled and deleted meanwhile: its data must not stay.
            await asyncio.to_thread(remove_all, self._data.run(run.run_id))
        self._supervisor.wake()

    async def _snapshot(self, run: Run) -> Snapshot | TrainerError | None:
        """The copy, why there can be none, or None when the server stops or nobody wants it."""
        tried = Tried()
        while True:
            try:
                return await self._take_snapshot(run)
            except SnapshotStopped:
                return None
            except (DiskFull, MachineBusy) as error:
                waiting = next_try(ErrorInfo.of(error), tried, self._settings.retry_for_s)
                if waiting is None:
                    reason = given_up(ErrorInfo.of(error), tried)
                    return type(error)(reason.cause, reason.remedy)
                tried = Tried(waiting=waiting)
                try:
                    await self.store.dataset_waits(run.run_id, waiting)
                except StoreUnavailable as full:
                    _log.error("run %s waits: %s", run.run_id, full)
                await asyncio.sleep((waiting.until - datetime.now(UTC)).total_seconds())
            except DatasetError as error:
                return error
            except Exception as error:  # noqa: BLE001 - a copier's boundary: logged and recorded
                _log.exception("the data set of run %s could not be copied", run.run_id)
                return DatasetError(
                    f"the data set could not be copied: {error!r}", "See the server's log."
                )
            current = self.store.get(run.run_id)
            if current is None or current.state is not RunState.PENDING:
                return None

    async def _take_snapshot(self, run: Run) -> Snapshot:
        arguments = (
            run.dataset_ref,
            self._data.run(run.run_id),
            self._settings.dataset_roots,
            self._stopping,
        )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._copiers, snapshot_once, *arguments)

    # What goes on beside

    def _prune_job_of(self, run: Run) -> None:
        self._background(self._pruner.sweep_job(run.job_id), "prune")

    def _background(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._logged(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 - nobody waits for it
            _log.exception("a task beside the queue broke")


def _open(data: DataDirectory) -> tuple[DirectoryLock, Database]:
    """Raises:
    ServerError: the data directory cannot be used.
    """
    try:
        return _open_once(data)
    except (OSError, sqlite3.OperationalError):
        # On a full disk not even a lock could be written; the ballast is for that, too.
        Ballast(data.ballast).drop()
    try:
        return _open_once(data)
    except (OSError, sqlite3.OperationalError) as error:
        raise ServerError(
            f"the data directory {data.path} cannot be used: {error}",
            "Make it writable, with room on its disk, or choose another --data-dir.",
        ) from error
    except sqlite3.DatabaseError as error:
        raise ServerError(
            f"the database {data.database} is damaged: {error}",
            "Put a copy of it back, or move it away to start with an empty one.",
        ) from error


def _open_once(data: DataDirectory) -> tuple[DirectoryLock, Database]:
    data.create()
    lock = DirectoryLock(data.path)
    try:
        return lock, Database(data.database)
    except BaseException:
        lock.release()
        raise
