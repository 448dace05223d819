"""Writes a version folder as a hidden folder beside it, which takes its name at the end: all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ltx_runtime.errors import LtxError
from ltx_runtime.files import partial_folder
from ltx_runtime.folder.manifest import MANIFEST
from ltx_runtime.replacing.exchange import exchanged, finish_exchanges, writing
from ltx_runtime.trust.made_here import still_known


def refuse_foreign(folder: Path) -> None:
    """Raises LtxError if an export would replace something other than a version folder or an empty folder."""
    if folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir())):
        return
    if folder.exists() or folder.is_symlink():
        raise LtxError(
            f"{folder} exists and was not written by an export, which would replace it",
            "move it away, or choose another root with --engines",
        )


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder that replaces `folder` if the block succeeds, and is removed if it fails.

    Whatever happens, `folder` leads to the whole previous folder or to the whole new one. Whoever reads the previous
    one keeps it until it is released. If `folder` is a symbolic link, its target is replaced.

    Raises:
        LtxError: another export writes the same folder.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    finish_exchanges(folder.parent)
    with writing(folder), ExitStack() as deleting, partial_folder(folder.parent) as partial:
        staging = partial / folder.name
        staging.mkdir()
        yield staging
        put_in_place(staging, folder, deleting)


def put_in_place(staging: Path, folder: Path, deleting: ExitStack) -> None:
    """Gives a whole folder its name, in exchange for an earlier one if there is one.

    Args:
        staging: the whole folder.
        folder: the name.
        deleting: is closed once the earlier folder is deleted, by which files with names in both lose one.
    """
    if folder.exists():
        exchanged(staging, folder)
        deleting.enter_context(still_known(folder))
    else:
        staging.replace(folder)
