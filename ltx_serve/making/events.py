"""What is told of a job while it is made, and the contract of those who make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ltx_serve.jobs.job import Job

QUEUED, STARTED, STEP, DECODING = "queued", "started", "step", "decoding"
COMPLETED, FAILED, DELETED = "completed", "failed", "deleted"
LAST_KINDS = (COMPLETED, FAILED, DELETED)  # nothing is told of a job after one of these


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
    """What made the video is gone: it crashed, was killed or cannot be reached. The video may be made by another.

    Attributes:
        reason: what is known of it, for people.
        out_of_memory: whether the system has killed it for want of memory, as far as can be seen.
    """

    def __init__(self, reason: str, *, out_of_memory: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.out_of_memory = reason, out_of_memory


class Maker(Protocol):
    """Makes one video at a time: a process of this machine, or a replica on another."""

    @property
    def name(self) -> str:
        """The name of the maker in logs and metrics."""
        ...

    def make(self, job: Job, folder: Path, told: Tell) -> dict[str, Any]:
        """Makes the video of a job in its folder, and returns the result of the job once the video is whole.

        Args:
            job: what to make.
            folder: the folder of the job, which exists.
            told: is called with events of the kinds step and decoding.

        Raises:
            LtxError: the video cannot be made.
            MemoryError: there is too little memory.
            CancelledError: `cancel` was called.
            MakerLostError: the maker is gone, and the next call of `make` starts another.
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
