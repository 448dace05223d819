"""Clears away what killed processes have left in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ltx_runtime.files import amount, delete_abandoned
from ltx_runtime.replacing.exchange import finish_exchanges


def tidy(folder: Path, note: Callable[[str], None]) -> None:
    """Finishes what killed processes have begun in a folder, deletes what they have left, and notes what it did."""
    for finished in finish_exchanges(folder):
        note(f"{finished} is the new one: an interrupted run was about to give it this name")
    if freed := delete_abandoned(folder):
        note(f"an interrupted run had left {amount(freed)} in {folder}, which are free again")


def tidy_below(folder: Path, note: Callable[[str], None]) -> None:
    """Tidies a folder and the folders in it; see `tidy`."""
    tidy(folder, note)
    for inner in folder.glob("[!.]*/"):
        # Before Python 3.11, the pattern finds files too. A link may lead out of the folder.
        if inner.is_dir() and not inner.is_symlink():
            tidy(inner, note)
