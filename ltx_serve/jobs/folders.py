"""The folder of each job: what was uploaded for it, its video, and the first frame of that."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from ltx_runtime.errors import LtxError, explaining
from ltx_serve.jobs.job import DAY_S, is_id
from ltx_serve.jobs.store import Store

VIDEO, THUMBNAIL = "video.mp4", "thumbnail.webp"
INPUT = "input-"  # with which the names of uploaded files begin


class Folders:
    """The folders of all jobs, each named by the id of its job.

    Args:
        root: the folder that holds them; it is made if need be.

    Raises:
        LtxError: it cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        with explaining(f"write {root}"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def of(self, id: str) -> Path:
        """Returns the folder of a job, which need not exist. Raises LtxError if the id has not the form of one."""
        if not is_id(id):
            raise LtxError(
                "no video has an id of that form", "use the id that was answered when the video was asked for"
            )
        return self.root / id

    def make(self, id: str) -> Path:
        """Makes the folder of a job if need be, and returns it. Raises LtxError if it cannot be made."""
        folder = self.of(id)
        with explaining(f"write {folder}"):
            folder.mkdir(exist_ok=True)
        return folder

    def sync(self, id: str) -> None:
        """Waits until what was uploaded for a job is on the disk, so that not even a power failure takes it away."""
        folder = self.of(id)
        if sync_folder(folder):
            sync_names(self.root)

    def video(self, id: str) -> Path:
        """Returns the file of a job's video, which exists when it is whole."""
        return self.of(id) / VIDEO

    def thumbnail(self, id: str) -> Path:
        """Returns the file of the first frame of a job's video, in WebP."""
        return self.of(id) / THUMBNAIL

    def remove(self, id: str) -> None:
        """Removes the folder of a job, if there is one, as far as the disk permits."""
        shutil.rmtree(self.of(id), ignore_errors=True)

    def tidy(self, id: str, *, keep_video: bool) -> None:
        """Removes what the making of a video has left in the folder of its job, as far as the disk permits.

        Args:
            id: the job.
            keep_video: whether the video and its first frame stay, or only what was uploaded.
        """
        kept = (VIDEO, THUMBNAIL) if keep_video else ()
        for path in _entries(self.of(id)):
            if path.name in kept or path.name.startswith(INPUT):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()

    def remove_all_but(self, ids: set[str]) -> list[str]:
        """Removes the folders of jobs that are not among these, and returns their ids.

        What is in the folder but has not the name of a job is left alone.
        """
        abandoned = [path.name for path in self.root.iterdir() if is_id(path.name) and path.name not in ids]
        for id in abandoned:
            self.remove(id)
        return abandoned

    def keep_within(self, store: Store, days: float | None, size_bytes: int | None) -> list[str]:
        """Removes jobs that ended too long ago, then the oldest until the folders are small enough.

        Jobs that wait or are under way are never removed.

        Args:
            store: all jobs.
            days: most days since the end of a job; None for any.
            size_bytes: most bytes of all folders together; None for any.

        Returns:
            The ids of the jobs that were removed.
        """
        if days is None and size_bytes is None:
            return []
        ends = store.ends()
        last = float("-inf") if days is None else time.time() - days * DAY_S
        expired = [id for id, ended_at in ends if ended_at < last]
        sizes = {} if size_bytes is None else {path.name: _size(path) for path in self.root.iterdir()}
        excess = sum(sizes.values()) - sum(sizes.get(id, 0) for id in expired) - (size_bytes or 0)
        for id, _ in ends[len(expired) :]:
            if size_bytes is None or excess <= 0:
                break
            expired.append(id)
            excess -= sizes.get(id, 0)
        for id in expired:
            store.delete(id)
            self.remove(id)
        return expired


def sync_folder(folder: Path) -> bool:
    """Waits until the files of a folder and their names are on the disk; returns False if there are none."""
    files = [path for path in folder.iterdir() if path.is_file()]
    for path in files:
        with path.open("r+b") as file:  # Windows syncs only what can be written
            os.fsync(file.fileno())
    if files:
        sync_names(folder)
    return bool(files)


def sync_names(folder: Path) -> None:
    """Waits until the names of the files in a folder are on the disk."""
    if os.name == "posix":  # Windows cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _size(folder: Path) -> int:
    """Returns the bytes of all files in a folder; one that disappears meanwhile counts as empty."""
    return sum(_bytes_of(Path(inside, name)) for inside, _, names in os.walk(folder) for name in names)


def _entries(folder: Path) -> list[Path]:
    """Returns what is in a folder; nothing if there is no such folder."""
    try:
        return [*folder.iterdir()]
    except OSError:
        return []


def _bytes_of(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0
