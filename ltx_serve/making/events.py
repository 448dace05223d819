"""The events of a job while it is made, the contract of those who make it, and those who listen."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ltx_serve.jobs.job import Job

QUEUED, STARTED, STEP, DECODING = "queued", "started", "step", "decoding"
COMPLETED, FAILED, DELETED = "completed", "failed", "deleted"
LAST_KINDS = (COMPLETED, FAILED, DELETED)  # nothing is told of a job after one of these
_MOST_EVENTS = 64  # that wait for one listener; the oldest make room


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Attributes:
        kind: queued, started, step, decoding, completed, failed or deleted.
        job: id of the job.
        progress: how much of the work is done, 0 to 100.
        data: of a step: step, steps, pass and passes, counted from 1; of decoding: frame and frames; of a failure: its
            code and message.
        preview: what the video looks like at this step: a PNG with a pixel for every 32x32 of the video, which is to be
            shown larger; None if there is none.
    """

    kind: str
    job: str
    progress: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)
    preview: bytes | None = field(default=None, repr=False)

    @property
    def is_last(self) -> bool:
        """Whether nothing is told of the job after this."""
        return self.kind in LAST_KINDS


Tell = Callable[[Event], None]


class CancelledError(Exception):
    """The making of a video was cancelled by `Maker.cancel`."""


class MakerLostError(Exception):
    """The maker of a video is gone: it crashed, was killed or cannot be reached. The video may be made by another.

    Attributes:
        reason: what is known of it, for people.
        out_of_memory: whether the system has killed it for want of memory, as far as can be seen.
        before_work: whether it was gone before it had begun, or could not begin, so that the job is not the cause.
    """

    def __init__(self, reason: str, *, out_of_memory: bool = False, before_work: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.out_of_memory, self.before_work = reason, out_of_memory, before_work


class Maker(Protocol):
    """Makes one video at a time: a process of this machine, or a replica on another."""

    @property
    def name(self) -> str:
        """The name of the maker in logs and metrics."""
        ...

    def make(self, job: Job, folder: Path, tell: Tell) -> dict[str, Any]:
        """Makes the video of a job in its folder, and returns the result of the job once the video is whole.

        Args:
            job: what to make.
            folder: the folder of the job, which exists.
            tell: is called with events of the kinds step and decoding.

        Raises:
            LtxError: the video cannot be made.
            MemoryError: there is too little memory.
            CancelledError: `cancel` was called.
            MakerLostError: the maker is gone or cannot work, and the next call of `make` starts another.
        """
        ...

    def cancel(self, id: str) -> None:
        """Ends the call of `make` for a job, from another thread: it raises CancelledError within a few seconds.

        Does nothing unless it is this job that is being made.
        """
        ...

    def close(self) -> None:
        """Frees what the maker holds, such as its process, at the latest after a few seconds."""
        ...


class Listeners:
    """The listeners of all jobs. The latest step of a job under way is kept, for those who come late."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_jobs: dict[str, list[queue.Queue[Event]]] = {}
        self._latest_steps: dict[str, Event] = {}

    def tell(self, event: Event) -> None:
        """Passes an event on to everyone who listens to its job."""
        with self._lock:
            if event.kind in (STEP, DECODING):
                self._latest_steps[event.job] = event
            else:
                self._latest_steps.pop(event.job, None)
            for events in self._of_jobs.get(event.job, ()):
                _offer(events, event)

    @contextmanager
    def listening(self, job: str, present: Callable[[], Event]) -> Iterator[queue.Queue[Event]]:
        """Yields a queue of the events of a job. A listener that is too slow for it loses the oldest, never the last.

        Args:
            job: id of the job.
            present: returns the state of the job now, from which the queue begins: the last event if the job has
                ended, else what is told first.
        """
        events: queue.Queue[Event] = queue.Queue(_MOST_EVENTS)
        with self._lock:
            self._of_jobs.setdefault(job, []).append(events)
        try:
            state = present()  # without the lock, since it reads the disk; what is told meanwhile is newer
            with self._lock:
                if state.kind == STARTED:
                    state = self._latest_steps.get(job, state)
                if state.is_last or events.empty():
                    _offer(events, state)
            yield events
        finally:
            with self._lock:
                self._of_jobs[job].remove(events)
                if not self._of_jobs[job]:
                    del self._of_jobs[job]

    def forget(self, job: str) -> None:
        """Forgets the latest step of a job that is under way no more."""
        with self._lock:
            self._latest_steps.pop(job, None)


def _offer(events: queue.Queue[Event], event: Event) -> None:
    while True:
        try:
            events.put_nowait(event)
            return
        except queue.Full:
            with suppress(queue.Empty):
                events.get_nowait()
