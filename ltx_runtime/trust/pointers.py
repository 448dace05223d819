"""Pointers of Git LFS, which a clone without Git LFS has in place of large files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ltx_runtime.errors import LtxError

_POINTER_START, _POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024  # a pointer is smaller


def refuse_pointer(path: Path) -> None:
    """Raises LtxError if a file is a Git LFS pointer, which a clone without Git LFS has in place of the file."""
    with suppress(OSError):  # whoever reads the file tells why it cannot be read
        if path.is_file() and path.stat().st_size < _POINTER_BYTES:
            with path.open("rb") as file:
                start = file.read(len(_POINTER_START))
            if start == _POINTER_START:
                raise LtxError(f"{path} is a Git LFS pointer, not the file", command="git lfs pull")
