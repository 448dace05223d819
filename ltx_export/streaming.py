"""A safetensors file written tensor after tensor, so that memory holds a few megabytes of any checkpoint."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_export.checkpoint import ITEM_BYTES, StoredTensor
from ltx_runtime.errors import explaining

Chunk = bytes | memoryview
# Opens a stage that goes through so many bytes; what it yields is told how many more have been done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
_ALIGNMENT = 8
COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Entry:
    """A tensor to be written, dtype in safetensors' words."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@contextmanager
def silent(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    yield lambda done: None


def write_safetensors(
    path: Path,
    groups: Iterable[tuple[tuple[Entry, ...], Callable[[], Iterable[Chunk]] | None]],
    metadata: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> dict[str, StoredTensor]:
    """Writes a file under a temporary name and renames it.

    Args:
        path: of the file, in a folder that exists.
        groups: tensors with the source of their bytes, one tensor after another in C order; None leaves a hole of
            zeros that takes no space.
        metadata: of the header.
        progress: is told the bytes written.

    Returns:
        Where each tensor lies.

    Raises:
        LtxError: the disk is full or the folder cannot be written.
    """
    groups = list(groups)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in (entry for entries, _ in groups for entry in entries):
        begin, end = end, end + entry.length
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with explaining(f"write {path}"), temporary.open("wb") as file, progress(path.name, end) as done:
            file.write(struct.pack("<Q", len(raw)) + raw)
            for entries, chunks in groups:
                due = sum(entry.length for entry in entries)
                if chunks is None:
                    file.truncate(file.seek(due, 1))
                    continue
                written = 0
                for chunk in chunks():
                    written += file.write(chunk)
                    done(len(chunk))
                assert written == due, f"{entries[0].name}: {written} bytes of {due}"
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return {
        name: StoredTensor(path, 8 + len(raw) + row["data_offsets"][0], entry.length, entry.dtype, entry.shape)
        for entries, _ in groups
        for entry in entries
        for name, row in ((entry.name, header[entry.name]),)
    }


def copy_file(source: Path, target: Path, progress: Progress = silent) -> None:
    """Copies a file piece by piece; holes become zeros.

    Raises:
        LtxError: the disk is full.
    """
    size = source.stat().st_size
    with explaining(f"write {target}"), source.open("rb") as read, target.open("wb") as write:
        with progress(target.name, size) as done:
            while chunk := read.read(COPY_BYTES):
                write.write(chunk)
                done(len(chunk))
