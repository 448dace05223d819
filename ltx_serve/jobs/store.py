"""The queue and the history of all jobs: an SQLite file that outlives crashes, for one server at a time."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import Lock, lock_of
from ltx_serve.jobs.job import COMPLETED, DAY_S, FAILED, IN_PROGRESS, QUEUED, STATUSES, WHOLE, Failure, Job

_LAYOUT = 2  # of the tables, kept as SQLite's user_version
_TABLES = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    fields TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    completed_at INTEGER,
    attempts INTEGER NOT NULL,
    interruptions INTEGER NOT NULL,
    failure TEXT,
    remixed_from TEXT,
    result TEXT NOT NULL
);
CREATE INDEX jobs_by_status ON jobs (status, number);
"""
_COLUMNS = (
    *("id", "model", "fields", "status", "created_at", "started_at", "completed_at", "attempts", "failure"),
    *("remixed_from", "result", "interruptions"),
)
_OF_JOB = ", ".join(_COLUMNS)
_BUSY_S = 10.0  # for somebody who looks into the file with another program
# A job that was under way when the server was ended keeps its place once, and then goes back by so many every time: if
# it is what ends the server, the others are made first.
_PLACES_BACK = 100
_TURN = f"(number + {_PLACES_BACK} * max(interruptions - 1, 0))"

Row = tuple[Any, ...]
Rows = list[Row]
Ends = list[tuple[str, int]]
Jobs = list[Job]  # a name of its own, since Store has a method `list`


class StoreError(LtxError):
    """The file of the queue cannot be read or written, such as on a full disk. Nothing of the change was made."""


class QueueFullError(LtxError):
    """As many jobs are waiting as may wait."""


class Store:
    """All jobs, in the order of their acceptance. Can be used from any thread; what it has accepted outlives a crash.

    Progress is kept in memory only, since a job that is interrupted tells it anew.

    Args:
        path: the file; it and its folder are made if need be.
        max_queue: most jobs that may wait at a time.
        keep_days: days after which a finished job expires, which its `expires_at` tells; None for never.

    Raises:
        LtxError: another server has opened the file, or it cannot be used.
    """

    def __init__(self, path: Path, max_queue: int, keep_days: float | None = None) -> None:
        self._path, self._max_queue, self._keep_days = path, max_queue, keep_days
        with explaining(f"write {path}"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _sole_lock(path)
        try:
            # Readers see the last change that is whole, and do not wait for the one that is being written.
            self._writer, self._reader = _opened(path), _opened(path)
        except BaseException:
            self._lock.release()
            raise
        self._writing_lock, self._reading_lock = threading.Lock(), threading.Lock()
        self._progress: dict[str, float] = {}

    def close(self) -> None:
        """Closes the file; another server may open it."""
        with self._writing_lock, self._reading_lock:
            self._reader.close()
            self._writer.close()
            self._lock.release()

    def add(self, job: Job) -> Job:
        """Accepts a job, which from then on is not lost whatever ends the server, and returns it.

        Raises:
            QueueFullError: as many jobs are waiting as may wait.
            StoreError: the file cannot be written.
        """
        with self._writing() as writer:
            (waiting,) = writer.execute("SELECT count(*) FROM jobs WHERE status = ?", (QUEUED,)).fetchone()
            if waiting >= self._max_queue:
                raise QueueFullError(
                    f"{waiting} videos are waiting, which is the most that may wait", "try again later"
                )
            marks = ", ".join("?" * len(_COLUMNS))
            writer.execute(f"INSERT INTO jobs ({_OF_JOB}) VALUES ({marks})", _row_of(job))
        return job

    def get(self, id: str) -> Job | None:
        """Returns a job; None if there is none of this id."""
        rows = self._read(f"SELECT {_OF_JOB} FROM jobs WHERE id = ?", (id,))
        return self._job(rows[0]) if rows else None

    def list(
        self, *, after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc"
    ) -> tuple[Jobs, bool]:
        """Returns a page of all jobs, and whether there are more after it.

        Args:
            after: the id of the last job of the page before; None for the first page.
            limit: most jobs to return.
            order: desc for the newest first, asc for the oldest first.

        Raises:
            LtxError: there is no job `after`.
        """
        where, values = "", []
        if after is not None:
            rows = self._read("SELECT number FROM jobs WHERE id = ?", (after,))
            if not rows:
                raise LtxError(f"there is no video {after}", "start again at the first page")
            where, values = f"WHERE number {'<' if order == 'desc' else '>'} ?", [rows[0][0]]
        query = f"SELECT {_OF_JOB} FROM jobs {where} ORDER BY number {order} LIMIT ?"
        rows = self._read(query, (*values, limit + 1))
        return [self._job(row) for row in rows[:limit]], len(rows) > limit

    def position(self, id: str) -> int | None:
        """Returns the place of a job in the queue, from 1; None if it is not waiting."""
        query = (
            f"WITH waiting AS (SELECT id, row_number() OVER (ORDER BY {_TURN}, number) AS place FROM jobs "
            "WHERE status = :queued) SELECT place FROM waiting WHERE id = :id"
        )
        rows = self._read(query, {"queued": QUEUED, "id": id})
        return int(rows[0][0]) if rows else None

    def claim(self, besides: Collection[str] = ()) -> Job | None:
        """Takes the job whose turn it is out of the queue, for one caller only; None if none is waiting.

        Args:
            besides: ids of jobs that are left where they are.

        Raises:
            StoreError: the file cannot be written.
        """
        marks = ", ".join("?" * len(besides))
        query = (
            "UPDATE jobs SET status = ?, attempts = attempts + 1, started_at = ? WHERE number = (SELECT number "
            f"FROM jobs WHERE status = ? AND id NOT IN ({marks}) ORDER BY {_TURN}, number LIMIT 1) RETURNING {_OF_JOB}"
        )
        with self._writing() as writer:
            rows = writer.execute(query, (IN_PROGRESS, _now(), QUEUED, *besides)).fetchall()
        return self._job(rows[0]) if rows else None

    def set_progress(self, id: str, percent: float) -> None:
        """Sets the progress of a job under way, 0 to 100."""
        self._progress[id] = min(max(percent, 0.0), WHOLE)

    def forget_progress(self, id: str) -> None:
        """Forgets the progress of a job that is under way no more."""
        self._progress.pop(id, None)

    def finish(self, id: str, result: dict[str, Any]) -> bool:
        """Completes a job under way; returns False if it is not, such as when it was deleted meanwhile."""
        return self._end(id, (IN_PROGRESS,), COMPLETED, result=json.dumps(result))

    def fail(self, id: str, failure: Failure) -> bool:
        """Ends a job that waits or is under way without a video; returns False if it does neither."""
        return self._end(id, (QUEUED, IN_PROGRESS), FAILED, failure=json.dumps(asdict(failure)))

    def _end(self, id: str, before: tuple[str, ...], status: str, **more: str) -> bool:
        return self._change(id, before, status=status, completed_at=_now(), **more)

    def requeue(self, id: str, *, counted: bool = True) -> bool:
        """Puts a job under way back to its place in the queue; returns False if it is not under way.

        Args:
            id: the job.
            counted: whether the attempt counts as one; not if the server itself was stopped.
        """
        job = self.get(id)
        attempts = {} if counted or job is None else {"attempts": max(job.attempts - 1, 0)}
        return self._change(id, (IN_PROGRESS,), status=QUEUED, **attempts)

    def recover(self) -> Jobs:
        """Queues all jobs in progress again, right after the start: those that a crash of the server has interrupted.

        The attempt does not count, the interruption does. Returns the jobs.
        """
        query = (
            "UPDATE jobs SET status = ?, attempts = max(attempts - 1, 0), interruptions = interruptions + 1 "
            f"WHERE status = ? RETURNING {_OF_JOB}"
        )
        with self._writing() as writer:
            rows = writer.execute(query, (QUEUED, IN_PROGRESS)).fetchall()
        return [self._job(row) for row in rows]

    def _change(self, id: str, before: tuple[str, ...], **values: Any) -> bool:
        """Sets columns of a job that has one of these statuses; returns whether it had."""
        columns, marks = ", ".join(f"{name} = ?" for name in values), ", ".join("?" * len(before))
        with self._writing() as writer:
            query = f"UPDATE jobs SET {columns} WHERE id = ? AND status IN ({marks})"
            changed = writer.execute(query, (*values.values(), id, *before)).rowcount > 0
        if changed:
            self._progress.pop(id, None)
        return changed

    def delete(self, id: str) -> Job | None:
        """Removes a job, whatever its status, and returns it; None if there is none of this id."""
        with self._writing() as writer:
            rows = writer.execute(f"DELETE FROM jobs WHERE id = ? RETURNING {_OF_JOB}", (id,)).fetchall()
        self._progress.pop(id, None)
        return self._job(rows[0]) if rows else None

    def counts(self) -> dict[str, int]:
        """Returns the number of jobs of every status."""
        rows = self._read("SELECT status, count(*) FROM jobs GROUP BY status")
        return dict.fromkeys(STATUSES, 0) | {str(status): int(count) for status, count in rows}

    def ends(self) -> Ends:
        """Returns the id of every job that has ended, and when, in seconds since 1970; the earliest end comes first."""
        query = "SELECT id, completed_at FROM jobs WHERE status IN (?, ?) ORDER BY completed_at, number"
        return [(str(id), int(ended_at)) for id, ended_at in self._read(query, (COMPLETED, FAILED))]

    def ids(self) -> set[str]:
        """Returns the ids of all jobs."""
        return {str(id) for (id,) in self._read("SELECT id FROM jobs")}

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Makes what the block changes in one piece, or nothing of it."""
        with self._writing_lock, _explained(self._path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _read(self, query: str, values: tuple[Any, ...] | dict[str, Any] = ()) -> Rows:
        with self._reading_lock, _explained(self._path):
            return self._reader.execute(query, values).fetchall()

    def _job(self, row: Row) -> Job:
        job = _job_of(row)
        if job.status == IN_PROGRESS:
            return replace(job, progress=self._progress.get(job.id, 0.0))
        if self._keep_days is None or job.completed_at is None:
            return job
        return replace(job, expires_at=round(job.completed_at + self._keep_days * DAY_S))


def _sole_lock(path: Path) -> Lock:
    """Returns the lock that one server at a time has; it is on a file of its own, beside that which SQLite locks.

    Raises:
        LtxError: another server has it.
    """
    beside = path.with_name(path.name + ".lock")
    beside.touch()
    lock = lock_of(beside)
    if lock is None:
        raise LtxError(f"another server uses {path.parent}", "stop it, or choose another folder for the data")
    return lock


def _opened(path: Path) -> sqlite3.Connection:
    with _explained(path):
        # Transactions are begun and ended by hand; a lock of this program serializes the threads.
        connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            (layout,) = connection.execute("PRAGMA user_version").fetchone()
            if layout == 0:
                connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_LAYOUT}; COMMIT;")
            elif layout != _LAYOUT:
                raise StoreError(
                    f"{path} was written by another release of this program", "use that release, or another folder"
                )
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Converts errors of SQLite that the disk or the file causes to a StoreError."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise
    except sqlite3.DatabaseError as error:
        raise StoreError(f"cannot use {path}: {error}", "check the disk, its free space and the permissions") from error


def _row_of(job: Job) -> Row:
    values: dict[str, Any] = {name: getattr(job, name) for name in _COLUMNS}
    values["fields"], values["result"] = json.dumps(job.fields), json.dumps(job.result)
    values["failure"] = None if job.failure is None else json.dumps(asdict(job.failure))
    return tuple(values.values())


def _job_of(row: Row) -> Job:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["fields"], values["result"] = json.loads(values["fields"]), json.loads(values["result"])
    failure = values["failure"]
    values["failure"] = None if failure is None else Failure(**json.loads(failure))
    return Job(**values, progress=WHOLE if values["status"] == COMPLETED else 0.0)


def _now() -> int:
    return int(time.time())
