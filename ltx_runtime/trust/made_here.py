"""Records what this machine's user has made: engines, what is compiled from them, and links to weights elsewhere.

A version folder is data that may come from a stranger, and whoever gives it away writes what they like into it. So a
record lies outside all version folders, in the user's own data folder: a file whose name is a checksum. It is made by
the program that makes an engine or a link, and is never read for anything but its name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import data_folder

_FOLDER = "made-here"
_PIECE_BYTES = 1 << 20


def record_made(*paths: Path) -> bool:
    """Records files that this program has just made, every byte of them.

    Returns:
        False if the user has no place for records, so that the files will not be known as made here.
    """
    return all([_record(path) for path in paths])


def _record(path: Path) -> bool:
    file = _mark_of_file(path)
    if file is not None and _is_written(file):
        return True
    marks = (_mark_of_bytes(path), _mark_of_size(path), file)
    return all([_write(mark, path) for mark in marks if mark is not None])


def is_made_here(path: Path) -> bool:
    """Returns whether a file is an ordinary one that was recorded, or a copy of one.

    A file that is still the one that was recorded is not read again: engines have up to tens of gigabytes.
    """
    if path.is_symlink() or not path.is_file():
        return False
    file = _mark_of_file(path)
    if file is not None and _is_written(file):
        return True
    if not (_is_written(_mark_of_size(path)) and _is_written(_mark_of_bytes(path))):
        return False
    if file is not None:
        _write(file, path)
    return True


@contextmanager
def still_known(folder: Path) -> Iterator[None]:
    """Has recorded files of a folder be known as before after a block that adds or removes names of them.

    A hard link more or less changes the time of a file's last change, so that all of it would be read once more. What
    the block changes otherwise is not known afterwards.
    """
    before = {}
    for path in _files_in(folder):
        file = _mark_of_file(path)
        if file is not None and _is_written(file):
            before[path] = file, _state(path)
    try:
        yield
    finally:
        for path, (file, state) in before.items():
            with suppress(OSError):
                now = _mark_of_file(path)
                if now is not None and now != file and _state(path) == state and _write(now, path):
                    _remove(file)


def _files_in(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (path for name in names if not (path := Path(place, name)).is_symlink() and path.is_file())


def _state(path: Path) -> tuple[int, ...]:
    """Returns what of a file no name of it changes."""
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


def check_records() -> None:
    """Raises LtxError if the user has no place for records, which is told before an engine is built for an hour."""
    folder = data_folder(_FOLDER)
    try:
        if folder.is_absolute():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_absolute() and os.access(folder, os.W_OK):
            return
        number = errno.EACCES
    except OSError as error:
        number = error.errno or 0
    raise LtxError(
        f"cannot write to {folder}, where it is recorded what you have made: {os.strerror(number).lower()}",
        "set HOME or XDG_DATA_HOME to a folder that you can write, or give --trust-engines, here and to each run",
    )


def record_link(place: Path, size_bytes: int, checksum: str) -> bool:
    """Records a file outside a version folder that the user has made the folder read; see `record_made`.

    Args:
        place: where the file lies, as the manifest names it.
        size_bytes: its size.
        checksum: its checksum in the manifest.
    """
    return _write(_mark_of_link(place, size_bytes, checksum), place)


def is_own_link(place: Path, size_bytes: int, checksum: str) -> bool:
    """Returns whether `record_link` was called for a file; the file is not looked at."""
    return _is_written(_mark_of_link(place, size_bytes, checksum))


def _mark_of_link(place: Path, size_bytes: int, checksum: str) -> str:
    return _mark("link", os.fspath(place), size_bytes, checksum)


def _mark_of_bytes(path: Path) -> str:
    """Returns the mark of a file's content, all of it: an engine is code, of which no byte may be another."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return _mark("bytes", digest.hexdigest())


def _mark_of_size(path: Path) -> str:
    """Returns the mark of a file's size, which spares reading files of a terabyte of holes."""
    return _mark("size", path.stat().st_size)


def _mark_of_file(path: Path) -> str | None:
    """Returns the mark of a file as it is now; None where a file can change and look the same.

    Whoever copies, moves or writes to a file changes the time of its last change, which no program can set.
    """
    if os.name != "posix":  # on Windows this is the time at which it was made
        return None
    status = path.stat()
    return _mark("file", status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _mark(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _place_of(mark: str) -> Path | None:
    folder = data_folder(_FOLDER)
    return folder / mark if folder.is_absolute() else None  # the current folder may be a stranger's


def _is_written(mark: str) -> bool:
    place = _place_of(mark)
    return place is not None and place.is_file()


def _remove(mark: str) -> None:
    place = _place_of(mark)
    if place is not None:
        place.unlink(missing_ok=True)


def _write(mark: str, path: Path) -> bool:
    """Writes a record; its content, the path, is for people who look."""
    place = _place_of(mark)
    if place is None:
        return False
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.write_text(f"{path}\n", "utf-8", "surrogateescape")
    except OSError:
        return False
    return True
