"""Links or copies files, so that no whole file is held in memory."""

from __future__ import annotations

import os
from pathlib import Path

from ltx_runtime.errors import explaining
from ltx_runtime.files import check_space
from ltx_runtime.progress import Progress, silent

COPY_BYTES = 16 << 20


def copy_file(source: Path, target: Path, progress: Progress = silent) -> None:
    """Copies a file in pieces; holes become zeros.

    Raises:
        LtxError: the disk is or becomes full.
    """
    size = source.stat().st_size
    check_space(target.parent, size)
    bar = progress(target.name, size)
    with explaining(f"write {target}"), source.open("rb") as reader, target.open("wb") as writer, bar as advance:
        while chunk := reader.read(COPY_BYTES):
            writer.write(chunk)
            advance(len(chunk))


def place_file(source: Path, target: Path, progress: Progress) -> None:
    """Creates a hard link where the file system allows one, so that nothing is copied, or else a copy.

    Raises:
        FileExistsError: the target exists.
        LtxError: the disk is full.
    """
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        raise  # copying over it could overwrite a checkpoint that it is a hard link to
    except OSError:
        copy_file(source, target, progress)
