"""The queue as the server sees it: submit a run, look at one."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

from ollama_trainer.errors import DatasetError, ServerError, TrainerError
from ollama_trainer.executors import Executor
from ollama_trainer.queue.lock import DirectoryLock
from ollama_trainer.queue.rows import Run, Submission
from ollama_trainer.queue.snapshot import SnapshotStopped, take_snapshot
from ollama_trainer.queue.store import RunStore
from ollama_trainer.queue.supervisor import Supervisor
from ollama_trainer.records import RunState
from ollama_trainer.settings import Settings
from ollama_trainer.workspace import DataDirectory

_log = logging.getLogger(__name__)
#: Data sets copied at once: a small one need not wait for a big one.
_COPIES = 4


class RunQueue:
    """All runs of one data directory, which it locks.

    Raises:
        ServerError: another server holds the directory, or a newer program wrote its database.
    """

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self._settings = settings
        self._data = DataDirectory(settings.data_dir)
        self.lock, self._store = _open(self._data)
        self._supervisor = Supervisor(self._store, self._data, executor)
        self._copiers = ThreadPoolExecutor(_COPIES, thread_name_prefix="dataset-copier")
        self._copies: set[asyncio.Task[None]] = set()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Takes up what an earlier server left, and works from then on."""
        for run in self._store.uncopied():
            self._copy(run)
        self._supervisor.start()

    async def stop(self) -> None:
        """Ends the worker; unfinished runs go on at the next start."""
        await self._supervisor.stop()
        self._stopping.set()
        for copy in self._copies:
            copy.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)
        self._copiers.shutdown(wait=False, cancel_futures=True)
        self._store.close()
        self.lock.release()

    async def submit(self, submission: Submission) -> Run:
        """Stores a run; when this returns it can no longer be lost.

        Raises:
            RunIdTaken: the id stands for another request.
        """
        run, new = await self._store.accept(submission, submission.spec(self._settings))
        if new:
            self._copy(run)
        return run

    async def reject(self, submission: Submission, error: TrainerError) -> None:
        """Stores a refused request as a failed run: a client that only polls learns of it."""
        await self._store.reject(submission, error)

    def get(self, run_id: str) -> Run | None:
        return self._store.get(run_id)

    def position(self, run: Run) -> int:
        """1 for the pending run that starts next."""
        return self._store.queue_position(run)

    def counts(self) -> dict[RunState, int]:
        return self._store.count_unfinished()

    def _copy(self, run: Run) -> None:
        task = asyncio.create_task(self._copy_dataset(run), name=f"copy {run.run_id}")
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _copy_dataset(self, run: Run) -> None:
        """Makes a run ready to start, or fails it at once, wherever it stands in the queue."""
        target = self._data.run(run.run_id).dataset
        arguments = (run.dataset_ref, target, self._settings.dataset_roots, self._stopping)
        loop = asyncio.get_running_loop()
        try:
            snapshot = await loop.run_in_executor(self._copiers, take_snapshot, *arguments)
            await self._store.dataset_copied(run.run_id, snapshot.sha256, snapshot.n_bytes)
        except DatasetError as error:
            await self._store.fail_pending(run.run_id, error)
        except SnapshotStopped:
            return
        except Exception as error:  # noqa: BLE001 - a copier's boundary: logged and recorded
            _log.exception("the data set of run %s could not be copied", run.run_id)
            failure = DatasetError(
                f"the data set could not be copied: {error!r}", "See the server's log."
            )
            await self._store.fail_pending(run.run_id, failure)
        self._supervisor.wake()


def _open(data: DataDirectory) -> tuple[DirectoryLock, RunStore]:
    try:
        data.create()
        lock = DirectoryLock(data.path)
    except OSError as error:
        raise ServerError(
            f"the data directory {data.path} cannot be used: {error.strerror or error}",
            "Make it writable, or choose another --data-dir.",
        ) from error
    try:
        return lock, RunStore(data.database)
    except sqlite3.Error as error:
        lock.release()
        raise ServerError(
            f"the database {data.database} cannot be used: {error}",
            "Move it away to start with an empty one, or choose another --data-dir.",
        ) from error
    except BaseException:
        lock.release()
        raise
