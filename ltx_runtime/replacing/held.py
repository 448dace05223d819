"""Holds a folder that is read: if it is replaced, it stays whole until it is released, and is found again."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ltx_runtime.errors import LtxError
from ltx_runtime.files import Lock, delete_abandoned, folder_of, lock_of, partial_in
from ltx_runtime.replacing.exchange import whole_beside

T = TypeVar("T")

_TRIES, _WAIT_S = 100, 0.02
_Identity = tuple[int, int]


class Held:
    """A folder that was opened to be read: until it is released or forgotten, it stays whole even if it is replaced.

    Where folders cannot be locked, it is known at least that it was replaced.

    Args:
        path: the folder, which need not exist; None for one that nobody replaces.
    """

    def __init__(self, path: Path | None) -> None:
        """Holds the folder that has this name now; one that is just being removed was replaced, and is not taken."""
        self._path, self._has_name = path or Path(), path is not None
        self._real = self._path.resolve() if path else self._path  # the working directory may be gone
        self._identity: _Identity | None = None
        self._lock: Lock | None = None
        for _ in range(_TRIES if path else 0):
            self._identity = _identity(self._path)
            self._lock = self._locked()
            if self._lock is not None and self.stands:
                break
            time.sleep(_WAIT_S)

    def _locked(self) -> Lock | None:
        with suppress(PermissionError):  # a folder whose names this user may not list
            if self._identity is not None:
                return lock_of(self._path, shared=True)
        return Lock(None)

    @property
    def stands(self) -> bool:
        """Whether its name still leads to it; one that is not there yet stands until there is one of its name."""
        return not self._has_name or self._identity == _identity(self._path)

    def check_stands(self) -> None:
        """Raises LtxError if the folder was replaced since it was opened."""
        if not self.stands:
            raise LtxError(f"{self._path} was replaced meanwhile", "run the command again")

    def now(self, path: Path) -> Path:
        """Returns where a file of the folder is now, given the path that it had; other paths are what they are."""
        place = self._place()
        return place / path.relative_to(self._path) if path.is_relative_to(self._path) else path

    def _place(self) -> Path:
        """Returns the path of the folder now.

        Raises:
            LtxError: it was replaced, and is there no more.
        """
        if self.stands:
            return self._path
        parent, name = self._real.parent, folder_of(self._real).name
        for place in (parent / name, whole_beside(parent / name), *(folder / name for folder in partial_in(parent))):
            if _identity(place) == self._identity:
                return place
        raise LtxError(f"{self._path} was replaced while it was read", "run the command again")

    def read(self, read: Callable[[], T]) -> T:
        """Returns what `read` makes of files of the folder; calls it again if the folder is moved meanwhile."""
        while True:
            place = self._place()
            try:
                result = read()
            except (LtxError, OSError):
                if self._place() == place:
                    raise
                continue
            if self._place() == place:
                return result

    def release(self) -> None:
        """Lets the folder go; if it was replaced meanwhile and nobody else reads it, it is deleted."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            if not self.stands:
                delete_abandoned(self._real.parent)


def opened(folder: Path, read: Callable[[Path, Held], T]) -> T:
    """Returns what `read` makes of a folder that is held; opens it again if it is replaced meanwhile."""
    while True:
        held = Held(folder)
        try:
            result = read(folder, held)
        except (LtxError, OSError):
            if held.stands:
                raise
            continue
        if held.stands:
            return result


def _identity(path: Path) -> _Identity | None:
    """Identifies a file or folder whatever its name; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


UNHELD = Held(None)
