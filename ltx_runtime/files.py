"""Atomic writes, lock files, free disk space, the folders of caches and engines, and sizes formatted for people."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WAIT_S = 0.2
_SMALL_BYTES = 100_000_000
_CACHE_VARIABLE = "LTX_CACHE"
_PARTIAL = ".ltx-{}.partial"
_ABANDONED_S = 86_400.0
_PROGRAM, _ENGINES = "ltx-engines", "engines"
# Where a bundle puts its version folder, in the environment that it installs: the system's place for a program's data.
INSTALLED_ENGINES = Path("share") / _PROGRAM / _ENGINES
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)
_POINTER_START, _POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024  # a pointer is smaller


@contextmanager
def written_whole(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields a temporary path, which is renamed to `path` if the block succeeds and deleted if not.

    Args:
        path: the file, or the folder, to write.
        replace: whether a file of that name is replaced.

    Raises:
        FileExistsError: the name is taken, and `replace` is false.
    """
    with partial_folder(path.parent) as folder:
        temporary = folder / path.name
        yield temporary
        if replace:
            temporary.replace(path)
        else:
            place_new(temporary, path)


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """Yields a new hidden folder in `parent` under a name of its own, which is deleted with its contents at the end.

    Folders of this kind that killed processes have left in `parent` are deleted first.
    """
    _delete_abandoned(parent)
    lock: Lock | None = None
    while lock is None:  # another process may take the folder for abandoned before it is locked
        folder = parent / _PARTIAL.format(secrets.token_hex(4))
        with suppress(FileExistsError):
            folder.mkdir()
            lock = lock_of(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _delete_abandoned(parent: Path) -> None:
    """Deletes temporary folders whose process has ended; where that cannot be seen, those unused for a day."""
    for folder in parent.glob(_PARTIAL.format("*")):
        with suppress(OSError):
            lock = lock_of(folder)
            if lock is not None:
                if lock.keeps_out or time.time() - folder.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(folder, ignore_errors=True)
                lock.release()


class Lock:
    """A lock on a file or folder, until it is released or forgotten, or the process ends.

    Attributes:
        keeps_out: whether others are kept out; where files cannot be locked, nobody is.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor, self.keeps_out = descriptor, descriptor is not None

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    __del__ = release


def lock_of(path: Path) -> Lock | None:
    """Locks an existing file or folder.

    Returns:
        The lock; None if another process holds it or has removed the file.
    """
    if fcntl is None:
        return Lock(None)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return Lock(descriptor)
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks
        os.close(descriptor)
        return Lock(None)
    os.close(descriptor)
    return None


def place_new(temporary: Path, path: Path) -> None:
    """Renames a file or a folder to a name that is free; an empty folder counts as free for a folder.

    Raises:
        FileExistsError: the name is taken, perhaps since a moment ago.
    """
    taken = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if temporary.is_dir():
        try:
            temporary.rename(path)  # never replaces anything but an empty folder
        except OSError as error:
            if os.path.lexists(path):
                raise taken from error
            raise
        return
    try:
        os.link(temporary, path)  # unlike a rename, fails if the name is taken
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb"):  # a file system without hard links
            pass
        temporary.replace(path)


def placed(temporary: Path, path: Path) -> Path:
    """Renames a file or a folder to a name, or if that is taken to the next free one after it; returns the name."""
    for name in itertools.chain([path], numbered(path)):
        try:
            place_new(temporary, name)
            return name
        except FileExistsError:
            continue
    raise AssertionError("there is always a free number")


def numbered(path: Path) -> Iterator[Path]:
    """Yields `fox-2.mp4`, `fox-3.mp4` and so on for `fox.mp4`."""
    return (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))


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
    except NotImplementedError:  # raised by filelock on network file systems without locks, where the file must do
        return SoftFileLock(lock, timeout=wait_s).acquire().lock


def _remove(lock: Path) -> None:
    with suppress(OSError):  # Windows does not delete an open file; the next run locks the remaining file again
        lock.unlink()


def refuse_pointer(path: Path) -> None:
    """Raises LtxError if a file is a Git LFS pointer, which a clone without Git LFS has in place of the file."""
    with suppress(OSError):  # whoever reads the file tells why it cannot be read
        if path.is_file() and path.stat().st_size < _POINTER_BYTES:
            with path.open("rb") as file:
                start = file.read(len(_POINTER_START))
            if start == _POINTER_START:
                raise LtxError(f"{path} is a Git LFS pointer, not the file", command="git lfs pull")


def cache_folder() -> Path | None:
    """Returns the folder of caches: LTX_CACHE, or else the system's usual place; None if LTX_CACHE is empty."""
    import platformdirs  # noqa: PLC0415  (importing the runtime loads no library)

    named = os.environ.get(_CACHE_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    place = platformdirs.user_cache_path(_PROGRAM, appauthor=False)
    return place if place.is_absolute() else None  # a user without a home, as in some containers


def prune(folder: Path, most_bytes: int) -> None:
    """Removes .safetensors files of a cache, those unused for longest first, until it has at most so many bytes."""
    files = []
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):  # another process has removed it
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    excess = sum(size for _, size, _ in files) - most_bytes
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with suppress(OSError):
            path.unlink()
        excess -= size


def engines_folder(given: Path | None) -> Path:
    """Returns the folder of version folders.

    It is the given one, else ./engines if there is one, else that which a bundle installed together with this program,
    else the user's own.
    """
    here, installed = Path(_ENGINES), Path(sys.prefix) / INSTALLED_ENGINES
    if given is not None or here.exists():
        return given or here
    return installed if installed.is_dir() else data_folder(_ENGINES)


def data_folder(name: str) -> Path:
    """Returns the folder of this name among the user's own data; in the current folder for a user without a home."""
    import platformdirs  # noqa: PLC0415

    place = platformdirs.user_data_path(_PROGRAM, appauthor=False)
    return place / name if place.is_absolute() else Path(name)


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
