"""Takes runs in their order, one at a time, and brings each to an end."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from ollama_trainer.errors import ServerError, TrainingFailed, WorkerLost
from ollama_trainer.executors import Executor, Worker
from ollama_trainer.queue.rows import Run
from ollama_trainer.queue.store import RunStore, StaleAttempt
from ollama_trainer.queue.tail import EventTail, last_lines
from ollama_trainer.records import ErrorInfo, RunResult, RunState
from ollama_trainer.workspace import DataDirectory, RunDirectory

_log = logging.getLogger(__name__)

#: A run is given up when its worker was lost together with its server so often.
MAX_LOSSES = 3
#: Seconds between two looks at a worker's events.
_POLL_S = 0.25
#: A worker whose result is written has so many seconds to end by itself.
_FAREWELL_S = 60.0
#: Seconds before the queue goes on after an error of its own.
_PAUSE_S = 1.0
_SIGKILL = 9
_SAID_CHARACTERS = 600


class Supervisor:
    """Runs workers, one at a time.

    `wake` it when there may be something to do. `stop` ends the worker and keeps its run, which
    the next start takes up again.
    """

    def __init__(self, store: RunStore, data: DataDirectory, executor: Executor) -> None:
        self._store = store
        self._data = data
        self._executor = executor
        self._awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._work(), name="supervisor")

    def wake(self) -> None:
        self._awake.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        while True:
            self._awake.clear()
            run = self._next()
            if run is None:
                await self._awake.wait()
                continue
            try:
                await self._take(run)
            except StaleAttempt as stale:
                _log.warning("a lost attempt was not heard: %s", stale)
            except Exception as error:  # noqa: BLE001 - the queue outlives whatever a run does
                _log.exception("run %s broke the supervisor", run.run_id)
                await self._give_up(run.run_id, error)
                await asyncio.sleep(_PAUSE_S)

    def _next(self) -> Run | None:
        """The run that an earlier server left behind, else the oldest pending one.

        A run whose data set is still being copied keeps its place: the order is the promise.
        """
        run = self._store.next_unfinished()
        return run if run is not None and run.dataset_sha256 is not None else None

    async def _take(self, run: Run) -> None:
        if run.state is RunState.RUNNING:
            left = await self._reconcile(run)
            if left is None:
                return
            run = left
        await self._attempt(await self._store.claim(run))

    async def _reconcile(self, run: Run) -> Run | None:
        """Settles what an earlier server left: None when the run has thereby ended."""
        directory = self._data.run(run.run_id)
        if run.worker_pid is not None:
            if run.worker_started is not None:
                await self._executor.end_survivor(run.worker_pid, run.worker_started)
            run = await self._store.worker_lost(run)
        if _read_result(directory) is not None:
            await self._settle(run, directory, exit_code=0)
            return None
        if run.losses >= MAX_LOSSES:
            error = WorkerLost(
                f"the worker was lost together with its server {run.losses} times",
                f"See {directory.log}, then train again with a fresh runId.",
            )
            await self._store.fail(run, ErrorInfo.of(error))
            return None
        _log.info("run %s is taken up again", run.run_id)
        return run

    async def _attempt(self, run: Run) -> None:
        directory = self._data.run(run.run_id)
        assert run.spec is not None  # noqa: S101 - only accepted runs are ever pending
        await asyncio.to_thread(directory.write_spec, run.spec)
        directory.result.unlink(missing_ok=True)
        tail = EventTail(directory.events)
        worker = await self._executor.start(directory.path)
        _log.info("run %s: attempt %d, worker %d", run.run_id, run.attempt, worker.pid)
        try:
            await self._store.worker_started(run, worker.pid, worker.started)
            exit_code = await self._watch(run, directory, worker, tail)
        except BaseException:
            await worker.stop()
            await self._store.worker_stopped(run)
            raise
        await self._settle(run, directory, exit_code)

    async def _watch(
        self, run: Run, directory: RunDirectory, worker: Worker, tail: EventTail
    ) -> int:
        """Passes progress on until the worker has ended; returns its exit code."""
        ended = asyncio.create_task(worker.wait())
        patience_s = _FAREWELL_S
        while not ended.done():
            await asyncio.wait({ended}, timeout=_POLL_S)
            await self._report(run, tail)
            if directory.result.exists():
                patience_s -= _POLL_S
            if patience_s < 0:
                await worker.stop()
        await self._report(run, tail)
        return ended.result()

    async def _report(self, run: Run, tail: EventTail) -> None:
        events = await asyncio.to_thread(tail.read)
        progress = next((e.progress for e in reversed(events) if e.progress is not None), None)
        if progress is not None:
            await self._store.progress(run, progress)

    async def _settle(self, run: Run, directory: RunDirectory, exit_code: int) -> None:
        """Stores how the worker ended. Its result counts, written last; its exit code does not."""
        result = _read_result(directory)
        if result is None:
            await self._store.fail(run, ErrorInfo.of(_lost(directory, exit_code)))
        elif result.status == "completed" and result.output_model_ref:
            await self._store.complete(run, result)
        else:
            error = result.error or ErrorInfo.of(
                TrainingFailed("the worker said neither a model nor an error", _see(directory.log))
            )
            await self._store.fail(run, error, result)
        _log.info("run %s has ended", run.run_id)

    async def _give_up(self, run_id: str, error: Exception) -> None:
        """Ends a run that cannot be supervised, if the store still can be written."""
        run = self._store.get(run_id)
        if run is None or run.state.terminal:
            return
        reason = ServerError(
            f"the run could not be started or followed: {error or type(error).__name__}",
            "See the server's log; then train again with a fresh runId.",
        )
        try:
            await self._store.fail(run, ErrorInfo.of(reason))
        except Exception:  # noqa: BLE001 - the store may be what is broken; it is tried again
            _log.exception("run %s: not even its failure can be stored", run_id)


def _read_result(directory: RunDirectory) -> RunResult | None:
    try:
        return directory.read_result()
    except (OSError, ValidationError):
        _log.exception("an unreadable result in %s", directory.path)
        return None


def _lost(directory: RunDirectory, exit_code: int) -> WorkerLost:
    how = f"ended with exit code {exit_code}"
    if exit_code < 0:
        how = f"was ended by {_signal_name(-exit_code)}"
    if exit_code == -_SIGKILL:
        how += " (by hand, or by the system because memory ran out)"
    said = " | ".join(last_lines(directory.log))[-_SAID_CHARACTERS:]
    words = f"; its last words: {said.rstrip('. ')}" if said else ""
    return WorkerLost(f"the worker process {how} and left no result{words}", _see(directory.log))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _see(log: Path) -> str:
    return f"See {log}, then train again with a fresh runId."
