"""Takes runs in their order, one at a time, and brings each to an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from pydantic import ValidationError

from ollama_trainer.errors import (
    Cancelled,
    DiskFull,
    MachineBusy,
    ServerError,
    StoreUnavailable,
    TrainingFailed,
    WorkerLost,
    is_disk_full,
)
from ollama_trainer.executors import Executor, Worker
from ollama_trainer.queue.publications import PublicationStore
from ollama_trainer.queue.retries import MAX_LOSSES, Tried, given_up, next_try
from ollama_trainer.queue.rows import Attempt, Publication, Run
from ollama_trainer.queue.store import RunStore, StaleAttempt
from ollama_trainer.queue.watch import (
    Casualties,
    Chronicle,
    Patience,
    Watcher,
    error_without_result,
)
from ollama_trainer.records import ErrorInfo, Lease, RunResult, RunState
from ollama_trainer.workspace import DataDirectory, RunDirectory

_log = logging.getLogger(__name__)

#: Seconds before the queue goes on after an error of its own.
_PAUSE_S = 1.0
#: Longest sleep: clocks are stepped.
_SLEEP_S = 30.0
#: Seconds that the end of a worker is waited for on the way out.
_STOP_S = 20.0
#: Seconds that taking back a publication may take.
_WITHDRAW_S = 30.0


class Supervisor:
    """Runs workers, one at a time.

    `wake` it when there may be something to do. `stop` ends the worker and keeps its run, which
    the next start takes up again.

    Args:
        retry_for_s: how long a run waits for what may pass.
        ended: called with each run that has ended.
    """

    def __init__(
        self,
        store: RunStore,
        publications: PublicationStore,
        data: DataDirectory,
        executor: Executor,
        *,
        retry_for_s: float,
        patience: Patience,
        ended: Callable[[Run], None],
    ) -> None:
        self._store = store
        self._publications = publications
        self._data = data
        self._executor = executor
        self._retry_for_s = retry_for_s
        self._patience = patience
        self._ended = ended
        self._awake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: What goes on beside the one worker: runs that waited and are taken back.
        self._beside: dict[str, asyncio.Task[None]] = {}
        #: Whether the last thing done was the retry of a run that waits.
        self._retried = False
        #: The run that is worked on, and what cancels its worker.
        self._current = ""
        self._cancelled = asyncio.Event()

    def start(self) -> None:
        for run in self._store.cancelled_waiting():
            self._take_back_beside(run)
        self._task = asyncio.create_task(self._work(), name="supervisor")

    def wake(self) -> None:
        self._awake.set()

    def cancel(self, run_id: str) -> None:
        """Ends a run whose cancellation is stored: its worker, or its waiting."""
        run = self._store.get(run_id)
        if run is not None and run.not_before is not None:
            self._take_back_beside(run)
        if self._current == run_id:
            self._cancelled.set()
        self.wake()

    async def stop(self) -> None:
        tasks = [*self._beside.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log.error("on the way out: %s", outcome)

    async def _work(self) -> None:
        while True:
            self._awake.clear()
            try:
                if not await self._step():
                    await self._sleep()
            except StaleAttempt as stale:
                _log.warning("a lost attempt was not heard: %s", stale)
            except StoreUnavailable as error:
                # What the worker left stays where it is, and is read again.
                _log.error("the queue waits: %s", error)
                await asyncio.sleep(_PAUSE_S)
            except Exception as error:  # noqa: BLE001 - the queue outlives whatever a run does
                _log.exception("run %s broke the supervisor", self._current)
                await self._after(self._current, error)
                await asyncio.sleep(_PAUSE_S)
            self._current = ""

    async def _sleep(self) -> None:
        due_s = self._store.seconds_to_next()
        with suppress(TimeoutError):
            await asyncio.wait_for(
                self._awake.wait(), _SLEEP_S if due_s is None else min(due_s + 0.01, _SLEEP_S)
            )

    async def _step(self) -> bool:
        """Does what comes next; returns False when there is nothing to do.

        First what an earlier server left and what is due again; then publications, which take
        seconds; then the oldest pending run. One whose data set is still being copied keeps its
        place: the order is the promise. Of two retries in a row the second lets others go first.
        """
        due = self._store.next_running()
        is_retry = due is not None and due.not_before is not None
        others_first = is_retry and self._retried
        self._retried = is_retry and not others_first
        if due is not None and not others_first:
            await self._resume(due)
            return True
        publication = self._publications.next()
        if publication is not None:
            await self._publish(*publication)
            return True
        run = self._store.next_pending()
        if run is not None and run.dataset_sha256 is not None:
            await self._attempt(run)
            return True
        if due is not None:
            await self._resume(due)
        return due is not None

    def _begin(self, run_id: str) -> None:
        self._current = run_id
        self._cancelled = asyncio.Event()

    # Runs

    async def _resume(self, run: Run) -> None:
        self._begin(run.run_id)
        directory = self._data.run(run.run_id)
        left = self._store.open_attempt(run)
        if left is not None:
            await self._end_survivor(left)
            if left.task == "run":
                await Chronicle(self._store, run, directory).store(rest=True)
                lost = WorkerLost(
                    "the worker was lost together with its server",
                    f"See {directory.log}, then train again with a fresh runId.",
                )
                result = _read_result(directory, "run", left.token)
                await self._settle(run, result, ErrorInfo.of(lost))
                return
            await self._store.end_attempt(run.seq, "lost")
        if run.cancel_requested_at is not None:
            await self._take_back(run)
        else:
            _log.info("run %s is taken up again", run.run_id)
            await self._attempt(run)

    async def _attempt(self, run: Run) -> None:
        self._begin(run.run_id)
        run, token = await self._store.claim(run)
        directory = self._data.run(run.run_id)
        casualties = Casualties()
        lease = Lease(task="run", token=token, attempt=run.attempt, halvings=run.halvings)
        try:
            await self._prepare(run, directory, lease)
        except OSError as failure:
            if not is_disk_full(failure):
                raise
            full = DiskFull("The disk is full", "Make room where the data directory lies.")
            await self._settle(run, None, ErrorInfo.of(full))
            return
        chronicle = Chronicle(self._store, run, directory)
        exit_code, why = await self._follow(run, directory, lease, chronicle, self._cancelled)
        result = _read_result(directory, "run", token)
        error = error_without_result(directory.log, exit_code, why, casualties)
        await self._settle(run, result, ErrorInfo.of(error))

    async def _follow(
        self,
        run: Run,
        directory: RunDirectory,
        lease: Lease,
        chronicle: Chronicle | None,
        cancelled: asyncio.Event,
    ) -> tuple[int, str | None]:
        """Starts a worker and follows it to its end; see `Watcher.follow`."""
        worker = await self._executor.start(directory.path)
        _log.info("run %s: %s, worker %d", run.run_id, lease.task, worker.pid)
        watcher = Watcher(
            self._store,
            directory,
            lease.token,
            result=directory.result_of(lease.task),
            patience=self._patience,
            chronicle=chronicle,
            cancelled=cancelled,
        )
        try:
            await self._store.worker_started(lease.token, worker.pid, worker.started)
            return await watcher.follow(worker)
        except BaseException:
            await self._stop(run, worker)
            raise

    async def _stop(self, run: Run, worker: Worker) -> None:
        """On the way out: the attempt does not count as lost."""
        try:
            await asyncio.wait_for(worker.stop(), _STOP_S)
        except TimeoutError:
            _log.error("run %s: worker %d cannot be ended", run.run_id, worker.pid)
        with suppress(StoreUnavailable):
            await self._store.end_attempt(run.seq, "stopped")

    async def _settle(self, run: Run, result: RunResult | None, lost: ErrorInfo) -> None:
        """Stores how an attempt ended. Its result counts, written last; its exit code does not.

        Args:
            lost: the error if there is no result.
        """
        current = self._store.get(run.run_id)
        if current is not None and current.cancel_requested_at is not None:
            await self._store.end_attempt(run.seq, "cancelled")
            await self._take_back(current)
            return
        if result is not None and result.status == "completed" and result.output_model_ref:
            await self._store.complete(run, result)
        else:
            await self._settle_failure(current or run, result, lost)
        _log.info("run %s: attempt %d has ended", run.run_id, run.attempt)
        self._ended(run)

    async def _settle_failure(self, run: Run, result: RunResult | None, lost: ErrorInfo) -> None:
        directory = self._data.run(run.run_id)
        nothing_said = TrainingFailed(
            "the worker said neither a model nor an error",
            f"See {directory.log}, then train again with a fresh runId.",
        )
        error = (result.error or ErrorInfo.of(nothing_said)) if result else lost
        tried = Tried(
            waiting=run.waiting,
            losses=run.losses,
            halvings=run.halvings,
            trained=directory.manifest("train").exists(),
        )
        waiting = next_try(error, tried, self._retry_for_s)
        if waiting is None:
            if directory.publishing.exists():
                await self._store.end_attempt(run.seq, "failed", error)
                await self._withdraw(run, directory)
            await self._store.fail(run, given_up(error, tried), result)
            return
        halvings = run.halvings + (waiting.reason == "memory")
        await self._store.wait(run, waiting, halvings=halvings)
        _log.warning("run %s waits (%s): %s", run.run_id, waiting.reason, error)

    async def _take_back(self, run: Run) -> None:
        """Ends a cancelled run, whatever it had published already taken back."""
        directory = self._data.run(run.run_id)
        error = ErrorInfo.of(Cancelled("The run was cancelled"))
        if directory.publishing.exists():
            remains = await self._withdraw(run, directory)
            if remains is not None:
                error = error.model_copy(
                    update={
                        "cause": f"The run was cancelled, and its model could not be taken back: "
                        f"{remains.cause}",
                        "remedy": f"Remove it if it is there: ollama rm {_name(run)}",
                    }
                )
        await self._store.fail(run, error)
        self._ended(run)

    def _take_back_beside(self, run: Run) -> None:
        """Ends a run that waits, whatever is worked on meanwhile: this needs no device."""
        if run.run_id not in self._beside:
            task = asyncio.create_task(self._take_back_waiting(run), name=f"cancel {run.run_id}")
            self._beside[run.run_id] = task
            task.add_done_callback(lambda _: self._beside.pop(run.run_id, None))

    async def _take_back_waiting(self, run: Run) -> None:
        while True:
            try:
                left = self._store.open_attempt(run)
                if left is not None:
                    await self._end_survivor(left)
                    await self._store.end_attempt(run.seq, "lost")
                await self._take_back(run)
                return
            except StaleAttempt:
                return
            except Exception as error:  # noqa: BLE001 - it is tried again
                _log.error("run %s cannot be cancelled yet: %s", run.run_id, error)
                await asyncio.sleep(_PAUSE_S)

    async def _withdraw(self, run: Run, directory: RunDirectory) -> ErrorInfo | None:
        """Lets a worker take back what was published; returns why it could not."""
        token = await self._store.begin_errand(run.seq, "withdraw", run.attempt)
        lease = Lease(task="withdraw", token=token, attempt=run.attempt)
        try:
            await self._prepare(run, directory, lease)
        except OSError as error:
            remains = ErrorInfo.of(ServerError(f"no worker could be prepared: {error}"))
            await self._store.end_attempt(run.seq, "failed", remains)
            return remains
        late = asyncio.Event()
        timer = asyncio.get_running_loop().call_later(_WITHDRAW_S, late.set)
        try:
            exit_code, why = await self._follow(run, directory, lease, None, late)
        finally:
            timer.cancel()
        result = _read_result(directory, "withdraw", token)
        if result is None:
            lost = error_without_result(directory.log, exit_code, why, Casualties())
            left: ErrorInfo | None = ErrorInfo.of(lost)
        else:
            left = result.error
        await self._store.end_attempt(run.seq, "failed" if left else "completed", left)
        return left

    # Publications

    async def _publish(self, publication: Publication, run_id: str) -> None:
        """Publishes a finished run's model once more; begins anew where a worker was lost."""
        self._begin(run_id)
        run = self._store.get(run_id)
        assert run is not None  # noqa: S101 - it is deleted with its publications
        directory = self._data.run(run_id)
        left = self._store.open_attempt(run)
        if left is not None:
            await self._end_survivor(left)
            result = _read_result(directory, "publish", left.token)
            lost = WorkerLost("the worker was lost together with its server", "Publish again.")
            await self._settle_publication(publication, run, result, ErrorInfo.of(lost))
            return
        await self._publications.started(publication)
        token = await self._store.begin_errand(run.seq, "publish", run.attempt)
        lease = Lease(
            task="publish", token=token, attempt=run.attempt, publisher=publication.publisher
        )
        casualties = Casualties()
        await self._prepare(run, directory, lease)
        exit_code, why = await self._follow(run, directory, lease, None, asyncio.Event())
        result = _read_result(directory, "publish", token)
        error = error_without_result(directory.log, exit_code, why, casualties)
        await self._settle_publication(publication, run, result, ErrorInfo.of(error))

    async def _settle_publication(
        self, publication: Publication, run: Run, result: RunResult | None, lost: ErrorInfo
    ) -> None:
        if result is None and publication.losses + 1 < MAX_LOSSES:
            await self._store.end_attempt(run.seq, "lost", lost)
            await self._publications.lost(publication)
            return
        error = result.error if result else lost
        if error is None and not (result and result.output_model_ref):
            error = lost
        await self._store.end_attempt(run.seq, "failed" if error else "completed", error)
        ref = result.output_model_ref if result else None
        await self._publications.finish(publication, ref, error)
        self._ended(run)

    # Both

    async def _prepare(self, run: Run, directory: RunDirectory, lease: Lease) -> None:
        """Lays out what a worker reads. The lease comes first: it voids all older ones."""
        assert run.spec is not None  # noqa: S101 - only accepted runs ever get so far
        # The data directory may have moved since.
        spec = run.spec.model_copy(update={"cache_dir": self._data.cache})

        def write() -> None:
            directory.write_lease(lease)
            directory.write_spec(spec)
            directory.result_of(lease.task).unlink(missing_ok=True)

        await asyncio.to_thread(write)

    async def _end_survivor(self, left: Attempt) -> None:
        if left.worker_pid is not None and left.worker_started is not None:
            await self._executor.end_survivor(left.worker_pid, left.worker_started)

    async def _after(self, run_id: str, error: Exception) -> None:
        """What becomes of a run that the supervisor stumbled over."""
        try:
            run = self._store.get(run_id)
            lacking = isinstance(error, OSError) and run is not None
            if lacking and run is not None and run.state is RunState.RUNNING:
                busy = MachineBusy(
                    f"the worker could not be started or followed: {error}",
                    "See what keeps the machine busy.",
                )
                await self._settle(run, None, ErrorInfo.of(busy))
            else:
                await self._give_up(run_id, error)
        except Exception:  # noqa: BLE001 - the store may be what is broken; it is tried again
            _log.exception("run %s is left as it is for now", run_id)

    async def _give_up(self, run_id: str, error: Exception) -> None:
        """Ends a run that cannot be supervised."""
        reason = ErrorInfo.of(
            ServerError(
                f"the run could not be started or followed: {error or type(error).__name__}",
                "See the server's log; then train again with a fresh runId.",
            )
        )
        run = self._store.get(run_id)
        if run is not None and not run.state.terminal:
            await self._store.fail(run, reason)
            self._ended(run)
        elif run is not None and (publication := self._publications.next()) is not None:
            await self._store.end_attempt(run.seq, "failed", reason)
            await self._publications.finish(publication[0], None, reason)


def _read_result(directory: RunDirectory, task: str, token: int) -> RunResult | None:
    """The result of the worker that had this token; another's does not count."""
    try:
        result = directory.read_result(task)
    except (OSError, ValidationError):
        _log.exception("an unreadable result in %s", directory.path)
        return None
    return result if result is not None and result.token == token else None


def _name(run: Run) -> str:
    return run.spec.model_name if run.spec else ""
