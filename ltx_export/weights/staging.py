"""Writes a version folder as a hidden folder beside it, which takes its name at the end: all or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import locked
from ltx_runtime.folder.manifest import MANIFEST


def refuse_foreign(folder: Path) -> None:
    """Raises LtxError if an export would replace something other than a version folder or an empty folder."""
    if folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir())):
        return
    if folder.exists() or folder.is_symlink():
        raise LtxError(
            f"{folder} exists and was not written by an export, which would replace it",
            "move it away, or choose another root with --engines",
        )


def writing(folder: Path) -> AbstractContextManager[None]:
    """Holds the lock of a version folder, so that only one process writes it.

    Raises:
        LtxError: another process holds it.
    """
    folder = folder.resolve()
    return locked(folder.with_name(f".{folder.name}.lock"), f"process is writing {folder}")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder that replaces `folder` if the block succeeds, and is removed if it fails.

    Whatever happens, even between the two renames, the previous folder is kept or restored. If `folder` is a symbolic
    link, its target is replaced.

    Raises:
        LtxError: another export writes the same folder.
    """
    folder = folder.resolve()
    staging = folder.with_name(f".{folder.name}.partial")
    retired = folder.with_name(f".{folder.name}.old")

    def bring_back() -> None:
        if retired.exists() and not folder.exists():
            retired.replace(folder)
        for leftover in (staging, retired):
            shutil.rmtree(leftover, ignore_errors=True)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        bring_back()
        staging.mkdir()
        try:
            yield staging
            if folder.exists():
                folder.replace(retired)
            staging.replace(folder)
        finally:
            bring_back()
