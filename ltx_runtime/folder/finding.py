"""Finds the version folder that is meant, and clears away what killed runs have left around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ltx_runtime.files import cache_folder
from ltx_runtime.folder.manifest import find_folder
from ltx_runtime.replacing.tidying import tidy, tidy_below


def find_tidied(engines: Path, version: str | None, note: Callable[[str], None]) -> Path:
    """Does what `find_folder` does, after clearing away what killed runs have left there and in the caches.

    Args:
        engines: a version folder, or a root of several.
        version: the version; None if there is only one.
        note: is called with what that frees.

    Raises:
        LtxError: there is no such folder, it has another version, or there are several and no version was named.
    """
    for folder in (engines.absolute().parent, engines):
        tidy(folder, note)
    folder = find_folder(engines, version)
    tidy_below(folder, note)
    if (cache := cache_folder()) is not None:
        tidy_below(cache, note)
    return folder
