"""Replaces a folder: its name leads to the whole old one or to the whole new one, at every moment.

Where the system can, the two folders exchange their names in one step. Elsewhere the new one first gets a name that
says that it is whole, and then the name of the old one. If a process is killed in between, the next run finishes this,
and a run that may not write reads the new folder under the name that it has.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import WHOLE, folder_of, lock_name, lock_of, locked, wholes_in

_HERE = -100  # AT_FDCWD of Linux: paths begin in the working directory
_RENAME_EXCHANGE = _RENAME_SWAP = 2  # of Linux's renameat2, and of renamex_np on macOS
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EXDEV)
_ELSEWHERE = "delete it first, or choose a place on a volume"


def writing(folder: Path) -> AbstractContextManager[None]:
    """Holds the lock of a folder that is written or replaced as a whole, so that only one process does so.

    Raises:
        LtxError: another process holds it.
    """
    folder = folder.resolve()
    return locked(folder.with_name(lock_name(folder.name)), f"process is writing {folder}")


def exchanged(new: Path, old: Path) -> None:
    """Gives a new folder the name of an old one, and the old folder that of the new one.

    Args:
        new: a whole folder inside a folder of `partial_folder`, on the same disk and with the same name as `old`.
        old: the folder that is replaced, by nobody else at the same time.

    Raises:
        LtxError: the old folder cannot be moved, or something else has the name that this takes.
        OSError: the system refuses a name. In both cases everything is as it was.
    """
    if _exchanged_at_once(new, old):
        return
    lock = lock_of(new)  # goes with the folder, and says that nobody is to delete it
    try:
        _exchanged_by_names(new, whole_beside(old), old)
    finally:
        if lock is not None:
            lock.release()


def _exchanged_by_names(new: Path, whole: Path, old: Path) -> None:
    if os.path.lexists(whole):
        raise LtxError(f"{whole} is in the way of a new {old.name}", "move or delete it")
    new.replace(whole)
    try:
        old.replace(new)
    except OSError as error:
        whole.replace(new)
        if error.errno == errno.EXDEV:
            raise LtxError(f"{old} cannot be moved: it belongs to the image of a container", _ELSEWHERE) from None
        raise
    try:
        whole.replace(old)
    except OSError:
        if old.exists():  # another process has finished it, see `finish_exchanges`
            return
        new.replace(old)
        if whole.exists():
            whole.replace(new)
        raise


def _exchanged_at_once(new: Path, old: Path) -> bool:
    """Exchanges two names in one step; returns False if the system or the file system has no such step."""
    exchange = _exchange_of_system()
    if exchange is None:
        return False
    if exchange(os.fsencode(new), os.fsencode(old)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(old))


@cache
def _exchange_of_system() -> Callable[[bytes, bytes], int] | None:
    """Returns the system's function that exchanges two names, which returns 0 or sets errno; None if it has none."""
    if sys.platform == "win32":
        return None
    system = ctypes.CDLL(None, use_errno=True)
    with suppress(AttributeError):  # another C library, or an old one
        if sys.platform == "darwin":
            rename = system.renamex_np
            return lambda new, old: int(rename(new, old, _RENAME_SWAP))
        renameat2 = system.renameat2
        return lambda new, old: int(renameat2(_HERE, new, _HERE, old, _RENAME_EXCHANGE))
    return None


def whole_beside(folder: Path) -> Path:
    """Returns the name beside a folder of one that is whole and takes its place, where that takes two renames."""
    return folder.with_name(WHOLE.format(folder.name))


def standing(folder: Path) -> Path:
    """Returns a folder; if its name leads nowhere, the whole one that a killed process was about to give this name."""
    if os.path.lexists(folder) or not folder.name:
        return folder
    return next((whole for whole in wholes_in(folder.parent) if whole == whole_beside(folder)), folder)


def standing_in(parent: Path) -> Iterator[Path]:
    """Yields the names of folders in `parent` that lead nowhere, and that a killed process was about to give."""
    return (name for whole in wholes_in(parent) if not os.path.lexists(name := folder_of(whole)))


def finish_exchanges(parent: Path) -> list[Path]:
    """Gives whole folders in `parent` the names that killed processes were about to give; returns these names.

    Nothing that has such a name is touched: its old folder stays, and `delete_abandoned` deletes the whole one. If the
    process is alive after all, it finds its work done. A folder of another user keeps its name, under which it is read.
    """
    finished = []
    for folder in [*standing_in(parent)]:
        with suppress(OSError):  # it may have its name by now, or this user may not write
            if _is_own(whole := whole_beside(folder)):
                whole.rename(folder)
                finished.append(folder)
    return finished


def _is_own(path: Path) -> bool:
    """Returns whether a file or folder belongs to this user; on Windows, everything does."""
    return os.name != "posix" or path.stat().st_uid == os.geteuid()
