"""The crew: takes jobs from the queue, has the makers make them, and records and tells what becomes of each."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_serve.jobs.failures import making_error_of, without_folders
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.job import (
    CANCELLED,
    COMPLETED,
    IN_PROGRESS,
    OUT_OF_MEMORY,
    WHOLE,
    WORKER_LOST,
    Failure,
    Job,
)
from ltx_serve.jobs.store import Store, StoreError
from ltx_serve.making import events
from ltx_serve.making.events import CancelledError, Event, Listeners, Maker, MakerLostError
from ltx_serve.making.figures import Figures
from ltx_serve.making.health import Health
from ltx_serve.making.watch import Running, Watcher
from ltx_serve.settings import Settings

_log = logging.getLogger("ltx_serve")
_RETRY_S = 2.0  # until the queue's file, such as on a full disk, is tried again
_LOOK_S = 1.0  # how often a maker looks whether a job that it leaves to others is still there
_STOP_S = 15.0  # for makers to let go of their jobs when the crew stops
_MOST_INTERRUPTIONS = 20
_CANCEL = Failure(CANCELLED, "the video was cancelled")


class Crew:
    """Has the jobs of a queue made, one by each maker at a time.

    Args:
        store: the queue.
        folders: the folders of the jobs.
        settings: limits of time, attempts and retention.
        makers: who makes the videos; they are closed by `stop`.
    """

    def __init__(self, store: Store, folders: Folders, settings: Settings, makers: Sequence[Maker]) -> None:
        self._store, self._folders, self._settings, self._makers = store, folders, settings, makers
        self.figures = Figures()
        self._listeners = Listeners()
        # Guards what follows, and wakes those who wait for a job. Nobody who holds it waits for the disk.
        self._changed = threading.Condition()
        self._running: dict[str, Running] = {}
        self._healths = {maker.name: Health() for maker in makers}
        self._additions = 0  # to the queue
        self._is_stopping = False
        self._threads: list[threading.Thread] = []
        self._watcher = Watcher(self, store, folders, settings)

    def start(self) -> None:
        """Queues again what a crash has interrupted, removes folders without a job, and begins to work.

        Raises:
            StoreError: the queue's file cannot be read or written.
        """
        for job in self._store.recover():
            _log.info("recovered", extra={"job": job.id, "interruptions": job.interruptions})
            if job.interruptions >= _MOST_INTERRUPTIONS:
                message = f"the server was ended {job.interruptions} times while it was made - try another size"
                self._fail(job, Failure(WORKER_LOST, message))
                self._folders.tidy(job.id, keep_video=False)
        for id in self._folders.remove_all_but(self._store.ids()):
            _log.info("abandoned folder removed", extra={"job": id})
        self._threads = [
            threading.Thread(target=self._work, args=(maker,), name=maker.name, daemon=True) for maker in self._makers
        ]
        for thread in self._threads:
            thread.start()
        self._watcher.start()
        _log.info("working", extra={"makers": len(self._makers), **self._store.counts()})

    def stop(self, grace_s: float) -> None:
        """Takes no more jobs, and gives those under way some time to finish; after it, they are queued again.

        Args:
            grace_s: the time in seconds.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running, grace_s)
            for running in self._running.values():
                running.is_unwanted = True
        self._join(_STOP_S)  # the watcher cancels what is unwanted
        self._watcher.stop()
        for maker in self._makers:
            maker.close()  # which ends what could not be cancelled
        self._join(_STOP_S)

    def _join(self, patience_s: float) -> None:
        """Waits for the end of the makers' threads, at most for so many seconds."""
        until = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def notify(self) -> None:
        """Says that a job was added to the queue."""
        with self._changed:
            self._additions += 1
            self._changed.notify_all()

    @property
    def busy(self) -> dict[str, str | None]:
        """The job that each maker is making, by the maker's name; None for one that waits."""
        with self._changed:
            making = {running.maker.name: id for id, running in self._running.items()}
        return {maker.name: making.get(maker.name) for maker in self._makers}

    @property
    def is_working(self) -> bool:
        """Whether there is a maker for the next job: one that was lost is none until it has rested."""
        with self._changed:
            tried = {running.maker.name for running in self._running.values()}
            can_work = (
                self._healths[name].is_well or (name not in tried and not self._healths[name].rest_s)
                for name in (thread.name for thread in self._threads if thread.is_alive())
            )
            return not self._is_stopping and any(can_work)

    def cancel(self, id: str) -> bool:
        """Ends a job that waits or is under way, which has failed at once; returns False if it does neither.

        Raises:
            StoreError: the queue's file cannot be written.
        """
        if not self._store.fail(id, _CANCEL):
            return False
        self.figures.failed(CANCELLED)
        _log.info("cancelled", extra={"job": id})
        is_under_way = self._end(id)
        self._listeners.tell(_ended_event(id, _CANCEL))
        if not is_under_way:
            self._folders.tidy(id, keep_video=False)
        return True

    def delete(self, id: str) -> bool:
        """Removes a job and its folder, and ends its making; returns False if there is no such job.

        Raises:
            StoreError: the queue's file cannot be written.
        """
        if self._store.delete(id) is None:
            return False
        _log.info("deleted", extra={"job": id})
        is_under_way = self._end(id)
        self._listeners.tell(Event(events.DELETED, id))
        if not is_under_way:
            self._folders.remove(id)
        return True

    def subscribe(self, id: str) -> AbstractContextManager[queue.Queue[Event]]:
        """Returns a context with a queue of the events of a job, of which the first is its present state."""
        return self._listeners.listening(id, lambda: self._present(id))

    def _present(self, id: str) -> Event:
        job = self._store.get(id)
        if job is None:
            return Event(events.DELETED, id)
        if job.status == COMPLETED:
            return Event(events.COMPLETED, id, job.progress)
        if job.failure is not None:
            return _ended_event(id, job.failure)
        if job.status == IN_PROGRESS:
            return Event(events.STARTED, id, job.progress)
        return Event(events.QUEUED, id, data={"position": self._store.position(id)})

    def _end(self, id: str) -> bool:
        """Ends the making of a job that nobody wants any more; returns False if it is not under way."""
        with self._changed:
            running = self._running.get(id)
            if running is None:
                return False
            running.is_unwanted, running.failure = True, _CANCEL
        running.cancel()
        return True

    def under_way(self) -> list[Running]:
        """Returns the jobs under way, see Watched."""
        with self._changed:
            return [*self._running.values()]

    def time_out(self, running: Running, failure: Failure) -> None:
        """Fails a job under way, see Watched."""
        with self._changed:
            running.is_unwanted, running.failure = True, failure
        self._fail(running.job, failure)

    def tell_deleted(self, id: str) -> None:
        """Tells those who listen that a job is gone, see Watched."""
        self._listeners.tell(Event(events.DELETED, id))

    def _work(self, maker: Maker) -> None:
        """Makes one job after another until the crew stops."""
        while True:
            try:
                running = self._next(maker)
                if running is None:
                    return
                self._make(running)
            except Exception:  # whatever it is, the server lives
                _log.exception("bug", extra={"maker": maker.name})
                self._pause(_RETRY_S)

    def _pause(self, seconds: float | None, additions: int | None = None) -> bool:
        """Waits until the crew stops, more jobs than these were added, or so many seconds have passed.

        Returns whether the crew stops.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or additions not in (None, self._additions), seconds)
            return self._is_stopping

    def _next(self, maker: Maker) -> Running | None:
        """Waits for a job and takes it; returns None if the crew stops."""
        health = self._healths[maker.name]
        while not self._pause(health.rest_s):
            with self._changed:
                additions, avoided = self._additions, health.avoided
                is_alone = not any(other.is_well for other in self._healths.values() if other is not health)
            try:  # without the lock, since the disk may be slow
                job = self._store.claim(avoided)
                if job is None and avoided and is_alone:
                    job = self._store.claim()
            except StoreError as error:
                _log.error("cannot take a job", extra={"reason": str(error)})
                self._pause(_RETRY_S)
                continue
            if job is not None:
                return self._begun(job, maker)
            self._pause(_LOOK_S if avoided else None, additions)
        return None

    def _begun(self, job: Job, maker: Maker) -> Running | None:
        """Notes that a job is under way; if the crew stops, puts it back and returns None."""
        running = Running(job, maker)
        with self._changed:
            if not self._is_stopping:
                self._running[job.id] = running
                return running
        self._recorded(job, partial(self._requeue, job, "the server stops", counted=False))
        return None

    def _make(self, running: Running) -> None:
        """Has a job made, and records what became of it."""
        job, maker = running.job, running.maker
        try:
            if self._is_over(job):
                return
            _log.info(
                "started", extra={"job": job.id, "model": job.model, "maker": maker.name, "attempt": job.attempts}
            )
            self._listeners.tell(Event(events.STARTED, job.id))
            folder = self._folders.make(job.id)
            result = maker.make(job, folder, lambda event: self._pass_on(running, event))
        except CancelledError:
            self._stopped(running)
        except MakerLostError as error:
            self._lost(running, error)
        except Exception as error:
            if not isinstance(error, (LtxError, MemoryError)):
                _log.exception("bug", extra={"job": job.id, "maker": maker.name})
            self._recovered(maker)
            self._recorded(job, partial(self._fail, job, self._failure_of(job, error)))
        else:
            self._recovered(maker)
            self._recorded(job, partial(self._finish, running, result))
        finally:
            self._release(running)

    def _is_over(self, job: Job) -> bool:
        """Whether a job was cancelled or deleted after it was taken and before it was noted as under way."""
        try:
            present = self._store.get(job.id)
        except StoreError:  # then its end is not recorded, whichever it is
            return False
        return present is None or present.is_over

    def _recovered(self, maker: Maker) -> None:
        with self._changed:
            self._healths[maker.name].recovered()

    def _pass_on(self, running: Running, event: Event) -> None:
        with self._changed:  # a step after the end would be the present state of those who listen later, for ever
            if running.failure is None:
                self._store.set_progress(event.job, event.progress)
                self._listeners.tell(event)

    def _finish(self, running: Running, result: dict[str, Any]) -> bool:
        job = running.job
        if not self._store.finish(job.id, result):
            return False  # cancelled or deleted meanwhile
        self.figures.completed(result.get("stages", {}))
        seconds = round(time.monotonic() - running.since, 3)
        _log.info("completed", extra={"job": job.id, "maker": running.maker.name, "seconds": seconds, **result})
        self._listeners.tell(Event(events.COMPLETED, job.id, WHOLE))
        return True

    def _fail(self, job: Job, failure: Failure) -> bool:
        if not self._store.fail(job.id, failure):
            return False
        self.figures.failed(failure.code)
        _log.warning("failed", extra={"job": job.id, "code": failure.code, "reason": failure.message})
        self._listeners.tell(_ended_event(job.id, failure))
        return True

    def _stopped(self, running: Running) -> None:
        """Records a job whose making was cancelled; one that nobody cancelled is made after the server's next start."""
        job, failure = running.job, running.failure
        if failure is None:
            self._recorded(job, partial(self._requeue, job, "the server stops", counted=False))
        else:
            self._recorded(job, partial(self._fail, job, failure))

    def _lost(self, running: Running, error: MakerLostError) -> None:
        """Records a job whose maker is gone: it is queued again, unless that was its doing too often."""
        job, failure = running.job, running.failure
        if running.is_unwanted:
            self._stopped(running)
            return
        self.figures.lost()
        if not error.out_of_memory:
            with self._changed:
                self._healths[running.maker.name].lost(job.id)
        if error.out_of_memory:
            message = "the system ran out of memory and ended it - ask for a smaller size or fewer frames"
            failure = Failure(OUT_OF_MEMORY, message)
        elif not error.before_work and job.attempts >= self._settings.max_attempts:
            message = f"it was begun {job.attempts} times, and every time the worker was lost: {error.reason}"
            failure = Failure(WORKER_LOST, f"{message} - try another size")
        if failure is None:
            self._recorded(job, partial(self._requeue, job, error.reason, counted=not error.before_work))
        else:
            self._recorded(job, partial(self._fail, job, failure))

    def _requeue(self, job: Job, reason: str, *, counted: bool) -> bool:
        if not self._store.requeue(job.id, counted=counted):
            return False
        _log.warning("queued again", extra={"job": job.id, "attempt": job.attempts, "reason": reason})
        self._listeners.tell(Event(events.QUEUED, job.id, data={"position": self._store.position(job.id)}))
        self.notify()
        return True

    def _recorded(self, job: Job, record: Callable[[], bool]) -> None:
        """Records what became of a job, as soon as the queue's file can be written."""
        while True:
            try:
                record()
                return
            except StoreError as error:
                _log.error("cannot record", extra={"job": job.id, "reason": str(error)})
            if self._is_stopping:
                return
            time.sleep(_RETRY_S)

    def _failure_of(self, job: Job, error: Exception) -> Failure:
        """Returns the failure for a client, who does not read of the server's folders and commands."""
        making = making_error_of(error)
        places = (self._folders.of(job.id), self._folders.root, self._settings.engines.absolute())
        return Failure(making.code, without_folders(str(LtxError(making.problem, making.advice)), *places))

    def _release(self, running: Running) -> None:
        """Takes a job from those under way, and removes what is left of its making."""
        job = running.job
        with self._changed:
            if self._running.get(job.id) is running:  # another maker may have begun it again, and even made it
                del self._running[job.id]
            if job.id not in self._running:
                self._listeners.forget(job.id)
                self._store.forget_progress(job.id)
            self._changed.notify_all()
        try:
            left = self._store.get(job.id)
        except StoreError:  # the next start removes it
            return
        if left is None:
            self._folders.remove(job.id)
        elif left.is_over:
            self._folders.tidy(job.id, keep_video=left.failure is None)


def _ended_event(id: str, failure: Failure) -> Event:
    return Event(events.FAILED, id, data={"code": failure.code, "message": failure.message})
