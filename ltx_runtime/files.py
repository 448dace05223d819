"""Atomic writes, lock files, free disk space, the folders of caches and engines, and sizes formatted for people."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError

_WAIT_S = 0.2
_SMALL_BYTES = 100_000_000
_CACHE_VARIABLE = "LTX_CACHE"
_PROGRAM, _ENGINES = "ltx-engines", "engines"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` if the block succeeds and deleted if not.

    A temporary file left by an interrupted run is deleted first.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(lock: Path, writer: str) -> Iterator[None]:
    """Holds a lock file inside the block, and removes it at the end.

    Args:
        lock: path of the lock file; its folder must exist.
        writer: the command that holds the lock and its purpose, as in "export is writing engines/0.9.5".

    Raises:
        LtxError: another process holds the lock.
    """
    try:
        held = acquired_lock(lock, _WAIT_S)
    except TimeoutError:
        raise LtxError(f"another {writer} (it holds {lock})", "wait until it has ended") from None
    try:
        yield
    finally:
        _remove(lock)
        held.release()


def acquired_lock(lock: Path, wait_s: float) -> Any:
    """Acquires a lock file and returns it, to be released; its folder must exist.

    Raises:
        TimeoutError: another process holds the lock for longer than `wait_s`.
        OSError: the folder cannot be written to.
    """
    from filelock import FileLock, SoftFileLock  # noqa: PLC0415  (installed with the extras that write engines)

    try:
        return FileLock(lock, timeout=wait_s).acquire().lock
    except NotImplementedError:  # filelock's word for a network file system without locks; the file itself must do
        return SoftFileLock(lock, timeout=wait_s).acquire().lock


def _remove(lock: Path) -> None:
    with suppress(OSError):  # Windows does not delete an open file; the next run locks the remaining file again
        lock.unlink()


def cache_folder() -> Path | None:
    """Returns the folder of caches: LTX_CACHE, or else the system's usual place; None if LTX_CACHE is empty."""
    import platformdirs  # noqa: PLC0415  (importing the runtime loads no library)

    named = os.environ.get(_CACHE_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    place = platformdirs.user_cache_path(_PROGRAM, appauthor=False)
    return place if place.is_absolute() else None  # a user without a home, as in some containers


def engines_folder(given: Path | None) -> Path:
    """Returns the folder of version folders: the given one, else ./engines if there is one, else the user's own."""
    import platformdirs  # noqa: PLC0415

    here = Path(_ENGINES)
    if given is not None or here.exists():
        return given or here
    place = platformdirs.user_data_path(_PROGRAM, appauthor=False)
    return place / _ENGINES if place.is_absolute() else here


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raises LtxError if fewer than `needed_bytes` are free on the disk of `folder`, which must exist."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise LtxError(
            f"{folder} needs {amount(needed_bytes)} more, but only {amount(free)} are free",
            "free some space or choose another disk",
        )


def amount(size_bytes: float, digits: int = 2) -> str:
    """Formats a size for people: in GB, or in MB below 0.1 GB."""
    if size_bytes >= _SMALL_BYTES:
        return f"{size_bytes / 1e9:.{digits}f} GB"
    return f"{size_bytes / 1e6:.{digits}f} MB"
