"""Checks what a manifest lists: plain names of ordinary files inside the version folder, or the user's own links.

A version folder is data that may come from a stranger. Nothing that it names elsewhere is opened, and nothing is opened
whose opening does something, such as a pipe or a device.
"""

from __future__ import annotations

import os
import shlex
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from ltx_runtime.errors import LtxError, explaining, shown
from ltx_runtime.trust.made_here import is_own_link

# Bounds that every export keeps by far: a release has about 30 files, and a manifest of some tens of kilobytes.
MOST_FILES, MOST_MANIFEST_BYTES, MOST_SIDECAR_BYTES = 1000, 4 << 20, 64 << 20
MOST_WHOLE_BYTES = 128 << 20  # of a graph without its weights, a tokenizer or recorded inputs
_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 1000  # of a part of a name, as file systems have it, and of all parts
# What Windows takes for something else than a name in the folder; each device with any suffix.
_FOR_WINDOWS = frozenset('\\:*?"<>|')
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_DEVICES |= {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}
_NOT_YOURS = "give --trust-engines (in Python: trust_engines=True) if you trust whoever made the folder"


def check_names(manifest: str, files: Iterable[str], linked: Mapping[str, str]) -> None:
    """Checks the names that a manifest lists, and those that it says are links to other folders.

    Args:
        manifest: name of the manifest itself, which no file can have.
        files: all names.
        linked: the folder of each file that is outside the version folder.

    Raises:
        ValueError: a name is not a plain one, two are the same on some systems, or there are too many.
    """
    names = [*files]
    if len(names) > MOST_FILES:
        raise ValueError(f"it lists {len(names)} files, and {MOST_FILES} are the most")
    taken = {_folded(manifest): manifest}
    for name in names:
        if name in linked:
            _check_linked(name, linked[name])
            continue
        if reason := _fault_of(name):
            raise ValueError(f"{shown(name)} {reason}")
        if (other := taken.setdefault(_folded(name), name)) != name or name == manifest:
            raise ValueError(f"{shown(name)} is the same name as {shown(other)} on some systems")
    if unlisted := linked.keys() - {*names}:
        raise ValueError(f"it links to {shown(min(unlisted))}, which it does not list")


def _fault_of(name: str) -> str:
    """Returns why a name is not a plain path in the folder, the same on every system; empty if it is one."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return "is outside the folder"
    if not name.isprintable() or _FOR_WINDOWS & {*name} or name != "/".join(path.parts):
        return "is not a plain name"
    if len(name.encode()) > _MOST_PATH_BYTES or any(len(part.encode()) > _MOST_NAME_BYTES for part in path.parts):
        return "is too long for a name"
    for part in path.parts:
        if part.startswith("."):
            return "is a hidden name"
        if part.endswith((".", " ")) or part.partition(".")[0].rstrip().upper() in _DEVICES:
            return "is no name for a file on Windows"
    return ""


def _check_linked(name: str, folder: str) -> None:
    """Raises ValueError unless a link names a file below a folder; whether the user has made it shows later."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name + folder:
        raise ValueError(f"{shown(name)} is outside the folder that it is linked to")
    if not Path(folder).is_absolute():
        raise ValueError(f"{shown(name)} is linked to {shown(folder)}, which is not a whole path")


def _folded(name: str) -> str:
    """Returns a name as file systems compare it that do not distinguish case, or ways to write an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def check_link(folder: Path, place: Path, size_bytes: int, checksum: str) -> None:
    """Raises LtxError unless the user has made a version folder read this file elsewhere; the file is not looked at."""
    if not is_own_link(place, size_bytes, checksum):
        raise LtxError(f"{folder} reads {place}, a link that you have not made on this machine", _NOT_YOURS)


def check_inside(folder: Path, path: Path) -> None:
    """Raises LtxError if a path below a version folder leads out of it by a symbolic link.

    Not even those who trust the folder can use it: the libraries that run graphs follow no such link to weights.
    """
    if not path.is_symlink() and path.parent == folder:
        return
    real = os.path.realpath(path)
    if Path(real).is_relative_to(os.path.realpath(folder)):
        return
    repository = _repository_of(folder)
    if repository:
        problem = f"{folder} is a snapshot in Hugging Face's cache, which is nothing but links"
        raise LtxError(problem, command=f"ltx-run --fetch {shlex.quote(repository)}")
    raise LtxError(f"{path} is a link out of its folder, to {real}", "copy the file there")


def _repository_of(folder: Path) -> str:
    """Returns OWNER/NAME of a snapshot in Hugging Face's cache, models--OWNER--NAME/snapshots/COMMIT; else nothing."""
    snapshots = folder.absolute().parent
    kind, *names = snapshots.parent.name.split("--")
    return "/".join(names) if snapshots.name == "snapshots" and kind == "models" and len(names) == 2 else ""


def ordinary_size(path: Path) -> int | None:
    """Returns the size of an ordinary file in bytes, without opening it; None if there is none.

    Raises:
        LtxError: it is something else, which might wait forever when it is opened, or have no end.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a link to itself, or a folder that may not be entered
        raise LtxError(f"{path} cannot be used: {os.strerror(error.errno or 0).lower()}", "check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise LtxError(f"{path} is no ordinary file", "do not use this folder")
    return status.st_size


def read_small(path: Path, most_bytes: int) -> bytes | None:
    """Returns the content of an ordinary file of at most so many bytes; None if there is none.

    Raises:
        LtxError: it is something else or larger, or cannot be read.
    """
    with explaining(f"read {path}"):
        size = ordinary_size(path)
        if size is None:
            return None
        if size > most_bytes:
            raise LtxError(f"{path} has {size} bytes, and {most_bytes} are the most", "do not use this folder")
        return path.read_bytes()
