"""Keeps what lies in a folder that is replaced and that its replacement does not bring."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

_TEMPORARY = ".ltx-"


def keep_rest(folder: Path, new: Path, is_dropped: Callable[[str], bool] = lambda name: False) -> None:
    """Places everything else of a folder in the one that replaces it: files as hard links, or copies where need be.

    A symbolic link stays the link that it is, wherever it leads, and is not followed: a stranger may have made it.
    Temporary files and locks are left out, and so is what is neither a file nor a folder.

    Args:
        folder: the folder that is replaced.
        new: the folder that replaces it; what is there already stays.
        is_dropped: says of a name in the folder whether it goes with the old one.

    Raises:
        OSError: a file cannot be read, or the disk is full.
    """
    for path in folder.iterdir():
        if path.name.startswith(_TEMPORARY) or is_dropped(path.name):
            continue
        place, is_link = new / path.name, path.is_symlink()
        if path.is_dir() and not is_link:
            if not os.path.lexists(place):
                place.mkdir()
            if place.is_dir() and not place.is_symlink():
                keep_rest(path, place)
        elif os.path.lexists(place):
            continue
        elif is_link:
            place.symlink_to(os.readlink(path))
        elif path.is_file():
            _place(path, place)


def _place(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except (OSError, NotImplementedError):  # a file system or a system without hard links
        shutil.copy2(file, place)
