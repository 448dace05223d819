"""Which file or folder in a folder is meant: found by patterns of its name, and asked for where several could be.

Knows nothing of what is in the files.
"""

from __future__ import annotations

from pathlib import Path

from ltx_runtime.errors import LtxError


def matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """What is called so; not the hidden files that macOS puts beside others on foreign disks, such as `._t5.gguf`."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if not path.name.startswith(".")})


def only_match(folder: Path, patterns: tuple[str, ...], option: str) -> Path | None:
    """The one that is called so, None if there is none.

    Raises:
        LtxError: several are; names them and the option that chooses one.
    """
    found = matching(folder, patterns)
    if len(found) > 1:
        raise LtxError(f"{folder} holds {', '.join(path.name for path in found)}", f"choose one with {option}")
    return found[0] if found else None
