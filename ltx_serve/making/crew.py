"""The crew: takes jobs from the queue, has the makers make them, and records and tells what becomes of each."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_serve.jobs import job as jobs
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.job import CANCELLED, OUT_OF_MEMORY, TIMED_OUT, WORKER_LOST, Failure, Job
from ltx_serve.jobs.store import Store, StoreError
from ltx_serve.making import events
from ltx_serve.making.events import CancelledError, Event, Maker, MakerLostError
from ltx_serve.making.failures import making_error_of
from ltx_serve.making.figures import Figures
from ltx_serve.making.listeners import Listeners
from ltx_serve.settings import Settings

_log = logging.getLogger("ltx_serve")
_TICK_S = 0.25  # how soon time limits are noticed, and cancelling is tried again
_RETRY_S = 2.0  # until the queue's file, such as on a full disk, is tried again
_RETENTION_PERIOD_S = 60.0
_WHOLE = 100.0
_CANCEL = Failure(CANCELLED, "the video was cancelled")


@dataclass
class _Running:
    """A job under way: who makes it, since when, and whether it is to end early; `failure` says why if it failed."""

    job: Job
    maker: Maker
    since: float = field(default_factory=time.monotonic)
    is_unwanted: bool = False
    failure: Failure | None = None


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
        self._running: dict[str, _Running] = {}
        self._changed = threading.Condition()  # guards _running and _is_stopping, and wakes those who wait for a job
        self._is_stopping = False
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Queues again what a crash has interrupted, removes folders without a job, and begins to work.

        Raises:
            StoreError: the queue's file cannot be read or written.
        """
        for job in self._store.under_way():
            self._store.requeue(job.id, counted=False)  # a job cannot end the server, only a worker
            _log.info("recovered", extra={"job": job.id})
        for id in self._folders.remove_all_but(self._store.ids()):
            _log.info("abandoned folder removed", extra={"job": id})
        self._threads = [
            threading.Thread(target=self._work, args=(maker,), name=maker.name, daemon=True) for maker in self._makers
        ]
        for thread in (*self._threads, self._watcher):
            thread.start()
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
        for thread in self._threads:
            thread.join()
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for maker in self._makers:
            maker.close()

    def notify(self) -> None:
        """Says that a job was added to the queue."""
        with self._changed:
            self._changed.notify()

    @property
    def busy(self) -> dict[str, str | None]:
        """The job that each maker is making, by the maker's name; None for one that waits."""
        with self._changed:
            making = {running.maker.name: id for id, running in self._running.items()}
        return {maker.name: making.get(maker.name) for maker in self._makers}

    @property
    def is_working(self) -> bool:
        """Whether jobs are taken from the queue."""
        return not self._is_stopping and any(thread.is_alive() for thread in self._threads)

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

    def latest_preview(self, id: str) -> bytes | None:
        """Returns the latest preview of a job under way, as PNG; None if there is none."""
        event = self._listeners.latest(id)
        return None if event is None else event.preview

    def _present(self, id: str) -> Event:
        job = self._store.get(id)
        if job is None:
            return Event(events.DELETED, id)
        if job.status == jobs.COMPLETED:
            return Event(events.COMPLETED, id, job.progress)
        if job.failure is not None:
            return _ended_event(id, job.failure)
        if job.status == jobs.IN_PROGRESS:
            return Event(events.STARTED, id, job.progress)
        return Event(events.QUEUED, id, data={"position": self._store.position(id)})

    def _end(self, id: str) -> bool:
        """Ends the making of a job that nobody wants any more; returns False if it is not under way."""
        with self._changed:
            running = self._running.get(id)
            if running is None:
                return False
            running.is_unwanted, running.failure = True, _CANCEL
        running.maker.cancel(id)
        return True

    def _watch(self) -> None:
        """Ends what takes too long or is not wanted, and removes what is kept for long enough."""
        checked_at = -_RETENTION_PERIOD_S
        while not self._ended.wait(_TICK_S):
            now = time.monotonic()
            with self._changed:
                running = [*self._running.values()]
            for one in running:
                if not one.is_unwanted and now - one.since > self._settings.max_job_s:
                    self._end_late(one)
                if one.is_unwanted:  # again, since the maker may not have begun when it was told first
                    one.maker.cancel(one.job.id)
            if now - checked_at > _RETENTION_PERIOD_S:
                checked_at = now
                self._remove_old()

    def _end_late(self, running: _Running) -> None:
        limit = f"it took longer than the {self._settings.max_job_s:g} seconds that this server allows"
        failure = Failure(TIMED_OUT, f"{limit} - ask for a smaller size, fewer frames or fewer steps")
        with self._changed:
            running.is_unwanted, running.failure = True, failure
        try:
            self._fail(running.job, failure)
        except StoreError as error:  # recorded when the maker has stopped
            _log.error("cannot record", extra={"job": running.job.id, "reason": str(error)})

    def _remove_old(self) -> None:
        try:
            removed = self._folders.keep_within(self._store, self._settings.keep_days, self._settings.keep_bytes)
        except (StoreError, OSError) as error:
            _log.error("cannot remove what is old", extra={"reason": str(error)})
            return
        for id in removed:
            _log.info("expired", extra={"job": id})
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
                self._ended.wait(_RETRY_S)

    def _next(self, maker: Maker) -> _Running | None:
        """Waits for a job and takes it; returns None if the crew stops."""
        with self._changed:
            while not self._is_stopping:
                try:
                    job = self._store.claim()
                except StoreError as error:
                    _log.error("cannot take a job", extra={"reason": str(error)})
                    self._changed.wait(_RETRY_S)
                    continue
                if job is not None:
                    running = self._running[job.id] = _Running(job, maker)
                    return running
                self._changed.wait()
        return None

    def _make(self, running: _Running) -> None:
        """Has a job made, and records what became of it."""
        job, maker = running.job, running.maker
        _log.info("started", extra={"job": job.id, "model": job.model, "maker": maker.name, "attempt": job.attempts})
        self._listeners.tell(Event(events.STARTED, job.id))
        try:
            folder = self._folders.made(job.id)
            result = maker.make(job, folder, lambda event: self._told(running, event))
        except CancelledError:
            self._stopped(running)
        except MakerLostError as error:
            self._lost(running, error)
        except Exception as error:
            if not isinstance(error, (LtxError, MemoryError)):
                _log.exception("bug", extra={"job": job.id, "maker": maker.name})
            self._recorded(job, partial(self._fail, job, self._failure_of(job, error)))
        else:
            self._recorded(job, partial(self._finish, running, result))
        finally:
            self._release(running)

    def _told(self, running: _Running, event: Event) -> None:
        with self._changed:  # a step after the end would be the present state of those who listen later, for ever
            if running.failure is None:
                self._store.set_progress(event.job, event.progress)
                self._listeners.tell(event)

    def _finish(self, running: _Running, result: dict[str, Any]) -> bool:
        job = running.job
        if not self._store.finish(job.id, result):
            return False  # cancelled or deleted meanwhile
        self.figures.completed(result.get("stages", {}))
        seconds = round(time.monotonic() - running.since, 3)
        _log.info("completed", extra={"job": job.id, "maker": running.maker.name, "seconds": seconds, **result})
        self._listeners.tell(Event(events.COMPLETED, job.id, _WHOLE))
        return True

    def _fail(self, job: Job, failure: Failure) -> bool:
        if not self._store.fail(job.id, failure):
            return False
        self.figures.failed(failure.code)
        _log.warning("failed", extra={"job": job.id, "code": failure.code, "reason": failure.message})
        self._listeners.tell(_ended_event(job.id, failure))
        return True

    def _stopped(self, running: _Running) -> None:
        """Records a job whose making was cancelled; one that nobody cancelled is made after the server's next start."""
        job, failure = running.job, running.failure
        if failure is None:
            self._recorded(job, partial(self._requeue, job, "the server stops", counted=False))
        else:
            self._recorded(job, partial(self._fail, job, failure))

    def _lost(self, running: _Running, error: MakerLostError) -> None:
        """Records a job whose maker is gone: it is queued again, unless that has happened too often."""
        job, failure = running.job, running.failure
        if running.is_unwanted:
            self._stopped(running)
            return
        self.figures.lost()
        if error.out_of_memory:
            message = "the system ran out of memory and ended it - ask for a smaller size or fewer frames"
            failure = Failure(OUT_OF_MEMORY, message)
        elif job.attempts >= self._settings.max_attempts:
            message = f"it was begun {job.attempts} times, and every time the worker was lost: {error.reason}"
            failure = Failure(WORKER_LOST, f"{message} - try another size")
        if failure is None:
            self._recorded(job, partial(self._requeue, job, error.reason, counted=True))
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
        sentence = str(LtxError(making.problem, making.advice))
        for folder in (self._folders.of(job.id), self._folders.root):
            sentence = sentence.replace(f"{folder}{os.sep}", "")
        return Failure(making.code, sentence)

    def _release(self, running: _Running) -> None:
        """Takes a job from those under way, and removes what is left of its making."""
        job = running.job
        with self._changed:
            if self._running.get(job.id) is running:  # another maker may have begun it again, and even made it
                del self._running[job.id]
                self._listeners.forget(job.id)
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
