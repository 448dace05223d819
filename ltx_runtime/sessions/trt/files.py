"""Files that a session leaves beside an engine to speed up the next session: compiled kernels and a refitted engine.

All of them can be made again, so a folder that cannot be written is no error. This module knows nothing about the
contents of the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltx_runtime.files import acquired_lock, lock_name, written_whole
from ltx_runtime.trust.made_here import record_made

_WAIT_S = 600.0  # refitting a large engine takes less


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock inside the block so that no other process makes the same file, or no lock if none can be had."""
    lock: Any = None
    name = path.with_name(lock_name(path.name))
    with suppress(OSError):  # a read-only folder, or another process holds the lock for too long
        lock = acquired_lock(name, _WAIT_S)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):
                name.unlink()
            lock.release()


def read(path: Path) -> bytes | None:
    """Returns the content of a file; None if the file does not exist or cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def leave(path: Path, data: Any) -> None:
    """Writes bytes to a temporary file, renames it to `path` and records it as made here; does nothing if it cannot."""
    with suppress(OSError):
        with written_whole(path) as temporary, temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        record_made(path)
