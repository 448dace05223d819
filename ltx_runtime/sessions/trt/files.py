"""What a session leaves beside an engine, so that the next one is ready sooner: a cache of kernels, a refitted engine.

All of it can be made again, so a place that cannot be written is no error. Knows nothing of what is in the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_WAIT_S = 600.0  # a large engine is refitted in less


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from making the same file inside the block, where locks can be had."""
    from filelock import FileLock, SoftFileLock  # noqa: PLC0415  (comes with the libraries that need it)

    place = path.with_name(f".{path.name}.lock")
    lock: Any = None
    for kind in (FileLock, SoftFileLock):
        try:
            lock = kind(place, timeout=_WAIT_S)
            lock.acquire()
            break
        except NotImplementedError:  # network file systems without locks
            lock = None
        except OSError:  # the folder cannot be written, or somebody holds the lock for too long
            lock = None
            break
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def read(path: Path) -> bytes | None:
    """What was left there; None if there is nothing that can be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def leave(path: Path, data: Any) -> None:
    """Writes bytes under a temporary name and renames it; does nothing where that cannot be done."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
