"""A job: one video that was asked for, from its acceptance to its end."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

QUEUED, IN_PROGRESS, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
STATUSES = (QUEUED, IN_PROGRESS, COMPLETED, FAILED)
CANCELLED, TIMED_OUT, WORKER_LOST, OUT_OF_MEMORY, NO_SPACE, REFUSED = (
    *("cancelled", "timed_out", "worker_lost", "out_of_memory", "no_space", "failed"),
)
WHOLE = 100.0  # the progress of a video that is made
DAY_S = 86_400.0
_ID = re.compile(r"video_[0-9a-f]{32}")
_ID_BYTES = 16


@dataclass(frozen=True)
class Failure:
    """The reason why a job failed.

    Attributes:
        code: cancelled, timed_out, worker_lost, out_of_memory, no_space, or failed for any other problem.
        message: one sentence for people: what was wrong, and what to do.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """A video that was asked for.

    Attributes:
        id: "video_" and 32 hexadecimal digits, drawn by the server.
        model: name of the version.
        fields: fields of Request by name as plain data, all that matter filled in when the job was accepted; media are
            names of files in the job's folder.
        status: one of STATUSES.
        progress: how much of the work is done, 0 to 100.
        created_at, started_at, completed_at: seconds since 1970; the last is also set for a job that failed.
        expires_at: when the job is removed, in seconds since 1970; None if it is kept, or not finished.
        attempts: how often the job was begun.
        interruptions: how often the server was ended, not by its own stopping, while the job was under way.
        failure: why it failed; None if it did not.
        remixed_from: id of the job that this one varies.
        result: what came of it: "stages" (seconds by name), "backends" (by network), "remarks" (what is odd about it),
            and "bytes" of the video.
    """

    id: str
    model: str
    fields: dict[str, Any]
    status: str = QUEUED
    progress: float = 0.0
    created_at: int = field(default_factory=lambda: int(time.time()))
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    attempts: int = 0
    failure: Failure | None = None
    remixed_from: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    interruptions: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, well or not."""
        return self.status in (COMPLETED, FAILED)


def new_id() -> str:
    """Returns the id of a new job, which nobody can guess."""
    return f"video_{secrets.token_hex(_ID_BYTES)}"


def is_id(text: str) -> bool:
    """Returns whether a text has the form of an id, and so can be the name of a folder."""
    return _ID.fullmatch(text) is not None
