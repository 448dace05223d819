"""A maker of the crew whose videos are made by whichever replica of the cluster is free."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltx_runtime.errors import explaining
from ltx_runtime.files import written_whole
from ltx_runtime.outputs.unfinished import SUFFIX
from ltx_serve.cluster.replica import DONE, EVENT, FAILED, FILE, LOST, OUTPUTS, STOPPED, Item
from ltx_serve.jobs.failures import MakingError
from ltx_serve.jobs.folders import VIDEO, sync_names
from ltx_serve.jobs.job import Job
from ltx_serve.making.events import CancelledError, MakerLostError, Tell


class ReplicaMaker:
    """Has videos made one at a time by the replicas of a deployment; a replica that is lost is Ray's to replace.

    Args:
        name: its name in logs and metrics.
        handle: Ray's handle of the deployment.
    """

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle.options(stream=True)
        self._lock = threading.Lock()
        self._job: str | None = None  # under way
        self._stream: Any = None
        self._is_cancelled = False

    def make(self, job: Job, folder: Path, tell: Tell) -> dict[str, Any]:
        """Makes the video of a job, see Maker; one that is whole, of an earlier attempt, is not made again."""
        if all((folder / name).exists() for name in OUTPUTS):
            return {"stages": {}, "backends": {}, "remarks": {}, "notes": [], "bytes": (folder / VIDEO).stat().st_size}
        with explaining():
            inputs = {path.name: path.read_bytes() for path in _inputs(folder)}
        stream = self._handle.make.remote(job, inputs)
        with self._lock:
            self._job, self._stream, self._is_cancelled = job.id, stream, False
        try:
            for kind, data in self._items(stream, job):
                if kind == EVENT:
                    tell(data)
                elif kind == FILE:
                    with explaining():
                        _write(folder / data[0], data[1])
                else:
                    return _result(kind, data, job)
        finally:
            with self._lock:
                self._job = self._stream = None
        raise MakerLostError("its replica stopped without a result")

    def _items(self, stream: Any, job: Job) -> Iterator[Item]:
        """Yields what a replica tells; whatever else ends the stream is the end of the replica, or was asked for."""
        has_begun = False
        while True:
            try:
                item = next(stream)
            except StopIteration:
                return
            except Exception as error:
                with self._lock:
                    is_cancelled = self._is_cancelled
                if is_cancelled:
                    raise CancelledError(job.id) from None
                reason = f"its replica is lost ({type(error).__name__})"
                raise MakerLostError(reason, before_work=not has_begun) from None
            has_begun = True
            yield item

    def cancel(self, id: str) -> None:
        """Ends the making of a job, see Maker."""
        with self._lock:
            if self._job != id or self._is_cancelled:
                return
            self._is_cancelled, stream = True, self._stream
        stream.cancel()

    def close(self) -> None:
        """Ends the video under way; the replicas end with their deployment."""
        job = self._job
        if job is not None:
            self.cancel(job)


def _write(path: Path, content: bytes) -> None:
    """Writes a file, which has its name once it is on the disk: after that the job is completed for good."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_names(path.parent)


def _inputs(folder: Path) -> list[Path]:
    """Returns the files of a job that its video is made from."""
    others = (*OUTPUTS, *(f"{name}{SUFFIX}" for name in OUTPUTS))
    return [path for path in folder.iterdir() if path.is_file() and path.name not in others and path.name[0] != "."]


def _result(kind: str, data: Any, job: Job) -> dict[str, Any]:
    """Returns the result of a job, or raises why there is none."""
    if kind == STOPPED:
        raise CancelledError(job.id)
    if kind == LOST:
        reason, out_of_memory, before_work = data
        raise MakerLostError(reason, out_of_memory=out_of_memory, before_work=before_work)
    if kind == FAILED:
        raise MakingError(*data)
    assert kind == DONE
    result: dict[str, Any] = data
    return result
