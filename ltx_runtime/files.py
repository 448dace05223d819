"""Atomic writes, lock files, free disk space, the folders of caches and engines, and sizes formatted for people."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import platform
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from ltx_runtime.errors import LtxError, uninterrupted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WAIT_S = 0.2
_SMALL_BYTES = 100_000_000
_CACHE_VARIABLE = "LTX_CACHE"
_PARTIAL, WHOLE, LOCK_SUFFIX = ".ltx-{}.partial", ".ltx-{}.new", ".lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ABANDONED_S = 86_400.0
_PROGRAM, _ENGINES = "ltx-engines", "engines"
# Where a bundle puts its version folder, in the environment that it installs: the system's place for a program's data.
INSTALLED_ENGINES = Path("share") / _PROGRAM / _ENGINES
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)


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


def partial_folder(parent: Path) -> AbstractContextManager[Path]:
    """Yields a new hidden folder in `parent` under a name of its own, which is deleted with its contents at the end.

    What killed processes have left in `parent` is deleted first, see `delete_abandoned`. If someone reads a folder in
    the yielded one at the end, both stay, and whoever comes next deletes them.
    """
    return _partial(parent, "", Path.mkdir)


def partial_file(parent: Path, suffix: str) -> AbstractContextManager[Path]:
    """Yields a new hidden file in `parent` that ends in `suffix`, which is deleted at the end; see `partial_folder`."""
    return _partial(parent, suffix, partial(Path.touch, exist_ok=False))


@contextmanager
def _partial(parent: Path, suffix: str, create: Callable[[Path], None]) -> Iterator[Path]:
    delete_abandoned(parent)
    lock, path = None, _new_name(parent, suffix)
    try:  # from before it is there, since Ctrl-C may come at once
        while lock is None:  # another process may take it for abandoned before it is locked
            with suppress(FileExistsError):
                create(path)
                lock = lock_of(path)
            if lock is None:
                path = _new_name(parent, suffix)
        yield path
    finally:
        with uninterrupted(), suppress(OSError):
            _delete(path)
        if lock is not None:
            lock.release()


def _new_name(parent: Path, suffix: str = "") -> Path:
    """Returns a name for a temporary file or folder, which says under which system its process runs."""
    return parent / (_PARTIAL.format(f"{_system()}-{secrets.token_hex(4)}") + suffix)


@cache
def _system() -> str:
    """Names the running system, to whose processes its locks are known for certain: a kernel, until it is restarted."""
    try:
        name = _BOOT_ID.read_text()
    except OSError:
        name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def delete_abandoned(parent: Path) -> int:
    """Deletes what killed processes have left in a folder: temporary folders and files, and lock files.

    The locks on them tell whether their process has ended, if it ran under this system. On other machines it may hold
    locks that are not seen here: what comes from there, and all where there are no locks, is deleted if it was not used
    for a day. What a living process writes or reads stays, and so does a download that can be resumed.

    Returns:
        The size in bytes of what was deleted; lock files have none.
    """
    for whole in wholes_in(parent):
        with suppress(OSError):
            # Its process was killed before the old folder gave up its name, so that one stays.
            if os.path.lexists(folder_of(whole)) and (lock := _lock_of_left(whole)) is not None:
                whole.rename(_new_name(parent))  # in one step, so that no half of it gets a name
                lock.release()
    freed = 0
    for path in [*partial_in(parent), *parent.glob(lock_name("*"))]:
        with suppress(OSError):
            lock = _lock_of_left(path)
            if lock is not None:
                freed += _delete(path)
                lock.release()
    return freed


def _lock_of_left(path: Path) -> Lock | None:
    """Locks what a killed process has left, and returns the lock; None if its process may be alive."""
    if path.is_symlink():  # of somebody else, and perhaps to where nothing is to be deleted
        return None
    is_partial = fnmatch(path.name, _PARTIAL.format("*") + "*")
    lock = lock_of(path)
    if lock is None or (lock.keeps_out and (_system() in path.name or not is_partial)):
        return lock
    return lock if path.suffix != LOCK_SUFFIX and time.time() - _used_at(path) > _ABANDONED_S else None


def partial_in(parent: Path) -> Iterator[Path]:
    """Yields the temporary folders and files in a folder, of living and of killed processes."""
    return parent.glob(_PARTIAL.format("*") + "*")


def folder_of(whole: Path) -> Path:
    """Returns the folder whose place a whole one takes."""
    before, after = WHOLE.split("{}")
    return whole.with_name(whole.name.removeprefix(before).removesuffix(after))


def wholes_in(parent: Path) -> Iterator[Path]:
    """Yields the whole folders in a folder that take the place of others, of living and of killed processes."""
    for path in parent.glob(WHOLE.format("?*")):
        named = path.name not in map(WHOLE.format, (".", ".."))
        if named and os.path.isdir(path) and not path.is_symlink():
            yield path


def lock_name(name: str) -> str:
    """Returns the name of the lock file for a file or folder, which lies beside it."""
    return f".ltx-{name}{LOCK_SUFFIX}"


def _used_at(path: Path) -> float:
    """Returns when a file, or anything in a folder, was changed last."""
    return max(used.stat().st_mtime for used in (path, *path.rglob("*")))


def _delete(path: Path) -> int:
    """Deletes a file, or a folder unless someone reads a folder in it; returns how many bytes that frees."""
    if not path.is_dir():
        freed = _own_bytes(path)
        with suppress(OSError):  # Windows does not delete an open file
            path.unlink()
        return freed
    locks = [lock_of(held) for held in path.iterdir() if held.is_dir() and not held.is_symlink()]
    freed = sum(map(_own_bytes, path.rglob("*")))
    try:
        if None in locks:
            return 0
        shutil.rmtree(path, ignore_errors=True)
        return 0 if path.exists() else freed  # this user may not delete it
    finally:
        for lock in filter(None, locks):
            lock.release()


def _own_bytes(path: Path) -> int:
    """Returns the size of a file that has no other name; 0 for anything else."""
    status = path.lstat()
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0


class Lock:
    """A lock on a file or folder, until it is released or forgotten, or the process ends.

    It belongs to one process and one object: a copy, such as the one that another process gets, locks nothing.

    Attributes:
        keeps_out: whether others are kept out; where files cannot be locked, nobody is.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor, self.keeps_out = descriptor, descriptor is not None

    def release(self) -> None:
        # Forgotten first: if Ctrl-C comes in between, the number may soon be that of another file.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __reduce__(self) -> tuple[type[Lock], tuple[None]]:
        return Lock, (None,)

    __del__ = release


def lock_of(path: Path, *, shared: bool = False) -> Lock | None:
    """Locks an existing file or folder.

    Args:
        path: the file or folder.
        shared: whether others may have a shared lock on it at the same time.

    Returns:
        The lock; None if another process holds it or has removed the file.
    """
    if fcntl is None:
        return Lock(None)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for whoever writes to it
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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
        with uninterrupted():
            with suppress(OSError):  # Windows does not delete an open file; the next run locks it again
                lock.unlink()
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


def cache_folder() -> Path | None:
    """Returns the folder of caches: LTX_CACHE, or else the system's usual place; None if LTX_CACHE is empty."""
    named = os.environ.get(_CACHE_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    return _place_of_user("user_cache_path")


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
    place = _place_of_user("user_data_path")
    return Path(name) if place is None else place / name


def _place_of_user(kind: Literal["user_cache_path", "user_data_path"]) -> Path | None:
    """Returns the system's place for what this user keeps; None for a user without a home, as in some containers."""
    import platformdirs  # noqa: PLC0415  (importing the runtime loads no library)

    try:
        place: Path = getattr(platformdirs, kind)(_PROGRAM, appauthor=False)
    except RuntimeError:  # HOME is not set, and the system knows no user of this number
        return None
    return place if place.is_absolute() else None  # releases of platformdirs before 4.5 return ~/.cache then


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
