"""Finds a file or folder by patterns of its name, and asks the user to choose if several match.

It does not look into the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltx_runtime.errors import LtxError


def matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Returns the paths in a folder that match a pattern, sorted.

    Hidden files are left out: macOS puts some, such as `._t5.gguf`, beside other files on foreign disks.
    """
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if not path.name.startswith(".")})


def only_match(folders: Sequence[Path], patterns: tuple[str, ...], option: str) -> Path | None:
    """Returns the only path in some folders that matches a pattern, or None if nothing matches.

    Raises:
        LtxError: several paths match; the error names them and the option that chooses one.
    """
    return only([path for folder in dict.fromkeys(folders) for path in matching(folder, patterns)], option)


def only(paths: Sequence[Path], option: str) -> Path | None:
    """Returns the only one of some paths, or None if there are none.

    Raises:
        LtxError: there are several; the error names them and the option that chooses one.
    """
    if len(paths) > 1:
        folder = paths[0].parent
        names = ", ".join(path.name if path.parent == folder else str(path) for path in paths)
        raise LtxError(f"{folder} holds {names}", f"choose one with {option}")
    return paths[0] if paths else None
