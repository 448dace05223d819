"""Those who listen to jobs: each gets the present state of a job, and then its events, without ever holding it up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ltx_serve.making.events import Event

_MOST_EVENTS = 64  # that wait for one listener; the oldest make room


class Listeners:
    """The listeners of all jobs. The latest event of a job under way is kept, for those who come late."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_jobs: dict[str, list[queue.Queue[Event]]] = {}
        self._latest: dict[str, Event] = {}

    def tell(self, event: Event) -> None:
        """Passes an event on to everyone who listens to its job."""
        with self._lock:
            self._latest[event.job] = event
            if event.is_last:
                del self._latest[event.job]
            for events in self._of_jobs.get(event.job, ()):
                _offer(events, event)

    @contextmanager
    def listening(self, job: str, present: Callable[[], Event]) -> Iterator[queue.Queue[Event]]:
        """Yields a queue of the events of a job. A listener that is too slow for it loses the oldest, never the last.

        Args:
            job: id of the job.
            present: returns the first event, the state of the job now, where none is kept.
        """
        events: queue.Queue[Event] = queue.Queue(_MOST_EVENTS)
        with self._lock:
            events.put_nowait(self._latest.get(job) or present())
            self._of_jobs.setdefault(job, []).append(events)
        try:
            yield events
        finally:
            with self._lock:
                self._of_jobs[job].remove(events)
                if not self._of_jobs[job]:
                    del self._of_jobs[job]

    def forget(self, job: str) -> None:
        """Forgets the latest event of a job that is under way no more."""
        with self._lock:
            self._latest.pop(job, None)

    def latest(self, job: str) -> Event | None:
        """Returns the latest event of a job that has not ended; None if nothing was told of it."""
        with self._lock:
            return self._latest.get(job)


def _offer(events: queue.Queue[Event], event: Event) -> None:
    while True:
        try:
            events.put_nowait(event)
            return
        except queue.Full:
            with suppress(queue.Empty):
                events.get_nowait()
