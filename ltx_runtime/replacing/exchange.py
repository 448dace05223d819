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
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import lock_name, lock_of, locked, partial_folder

_WHOLE = ".ltx-{}.new"
_HERE = -100  # AT_FDCWD of Linux: paths begin in the working directory
_RENAME_EXCHANGE = _RENAME_SWAP = 2  # of Linux's renameat2, and of renamex_np on macOS
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


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
        OSError: the system refuses a name; then everything is as it was.
    """
    if _exchanged_at_once(new, old):
        return
    whole, lock = (
        whole_beside(old),
        lock_of(new),
    )  # the lock goes with the folder, and says that nobody is to finish this
    new.replace(whole)
    try:
        old.replace(new)
    except OSError:
        whole.replace(new)
        raise
    whole.replace(old)
    if lock is not None:
        lock.release()


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
    """Returns the name beside a folder of one that is whole and will replace it."""
    return folder.with_name(_WHOLE.format(folder.name))


def folder_of(whole: Path) -> Path:
    """Returns the folder that a whole one will replace."""
    before, after = _WHOLE.split("{}")
    return whole.with_name(whole.name.removeprefix(before).removesuffix(after))


def standing(folder: Path) -> Path:
    """Returns a folder; if its name leads nowhere, the whole one that a killed process was about to give this name.

    It gets this name now if this user may write.
    """
    finish_exchanges(folder.parent)
    if not folder.exists() and (whole := whole_beside(folder)).is_dir():
        return whole
    return folder


def standing_in(parent: Path) -> Iterator[Path]:
    """Yields the names of folders in `parent` that lead nowhere, and that a killed process was about to give."""
    return (name for whole in parent.glob(_WHOLE.format("*")) if not (name := folder_of(whole)).exists())


def finish_exchanges(parent: Path) -> None:
    """Finishes what a killed process has begun in `parent`; does nothing where this user may not write."""
    for whole in parent.glob(_WHOLE.format("*")):
        if whole.is_symlink():  # of somebody else
            continue
        lock, folder = lock_of(whole), folder_of(whole)
        if lock is None:  # its process is alive, or somebody reads it
            continue
        # Where folders cannot be locked, the lock file tells, if there is what it takes to read it.
        guard = nullcontext() if lock.keeps_out else writing(folder)
        with suppress(LtxError, OSError, ImportError), guard, partial_folder(parent) as retired:
            if folder.exists():
                folder.replace(retired / folder.name)
            whole.replace(folder)
        lock.release()
