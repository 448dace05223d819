"""The watch over the jobs: ends those that take too long, and removes those that ended long ago."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.job import TIMED_OUT, Failure, Job
from ltx_serve.jobs.store import Store, StoreError
from ltx_serve.making.events import Maker
from ltx_serve.settings import Settings

_log = logging.getLogger("ltx_serve")
_TICK_S = 0.25  # how soon time limits are noticed, and cancelling is tried again
_RETENTION_PERIOD_S = 60.0


@dataclass
class Running:
    """A job under way: who makes it, since when, and whether it is to end early; `failure` says why if it failed."""

    job: Job
    maker: Maker
    since: float = field(default_factory=time.monotonic)
    is_unwanted: bool = False
    failure: Failure | None = None

    def cancel(self) -> None:
        """Ends the making of the job."""
        try:
            self.maker.cancel(self.job.id)
        except Exception:  # the maker's trouble; the watcher tries again
            _log.exception("bug", extra={"job": self.job.id, "maker": self.maker.name})


class Watched(Protocol):
    """The part of a crew that a watcher needs."""

    def under_way(self) -> list[Running]:
        """Returns the jobs under way."""
        ...

    def time_out(self, running: Running, failure: Failure) -> None:
        """Fails a job under way."""
        ...

    def tell_deleted(self, id: str) -> None:
        """Tells those who listen that a job is gone."""
        ...


class Watcher:
    """A thread that ends what takes too long or is not wanted, and removes what was kept for long enough.

    Args:
        crew: what makes the videos.
        store: all jobs.
        folders: their files.
        settings: the limits of time and retention.
    """

    def __init__(self, crew: Watched, store: Store, folders: Folders, settings: Settings) -> None:
        self._crew, self._store, self._folders, self._settings = crew, store, folders, settings
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, if it has begun."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        cleaned_at = -_RETENTION_PERIOD_S
        while not self._ended.wait(_TICK_S):
            for running in self._crew.under_way():
                _attempted(self._check, running)
            if time.monotonic() - cleaned_at > _RETENTION_PERIOD_S:
                cleaned_at = time.monotonic()
                _attempted(self._remove_old)

    def _check(self, running: Running) -> None:
        limit_s = self._settings.max_job_s
        if not running.is_unwanted and time.monotonic() - running.since > limit_s:
            reason = f"it took longer than the {limit_s:g} seconds that this server allows"
            failure = Failure(TIMED_OUT, f"{reason} - ask for a smaller size, fewer frames or fewer steps")
            try:
                self._crew.time_out(running, failure)
            except StoreError as error:  # recorded when the maker has stopped
                _log.error("cannot record", extra={"job": running.job.id, "reason": str(error)})
        if running.is_unwanted:  # again, since the maker may not have begun when it was told first
            running.cancel()

    def _remove_old(self) -> None:
        try:
            removed = self._folders.keep_within(self._store, self._settings.keep_days, self._settings.keep_bytes)
        except (StoreError, OSError) as error:
            _log.error("cannot remove what is old", extra={"reason": str(error)})
            return
        for id in removed:
            _log.info("expired", extra={"job": id})
            self._crew.tell_deleted(id)


def _attempted(chore: Callable[..., None], *arguments: object) -> None:
    """Does a chore; whatever it raises, the watcher lives."""
    try:
        chore(*arguments)
    except Exception:
        _log.exception("bug")
