"""Writes safetensors files tensor by tensor, so that no whole file is held in memory."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from ltx_runtime.errors import explaining
from ltx_runtime.files import check_space, written_whole
from ltx_runtime.progress import Progress, silent
from ltx_runtime.weights.checkpoint import ITEM_BYTES, StoredTensor

Chunk = bytes | memoryview
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """A tensor to be written; `dtype` is a safetensors name such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_safetensors(
    path: Path,
    groups: Iterable[tuple[tuple[Entry, ...], Callable[[], Iterable[Chunk]] | None]],
    metadata: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> dict[str, StoredTensor]:
    """Writes a safetensors file under a temporary name and renames it.

    Args:
        path: path of the file, in a folder that exists.
        groups: tensors with a function that yields their bytes, one tensor after another in C order; None instead of
            the function leaves a hole of zeros that takes no disk space.
        metadata: metadata for the header.
        progress: receives the number of bytes written.

    Returns:
        The location of each tensor by name.

    Raises:
        LtxError: the disk is or becomes full, or the folder is not writable.
    """
    groups = list(groups)
    entries = [entry for group, _ in groups for entry in group]
    ends = list(accumulate(entry.length for entry in entries))
    raw = _header(entries, ends, metadata)
    bar = progress(path.name, ends[-1] if ends else 0)
    with explaining(f"write {path}"), written_whole(path) as temporary:
        check_space(path.parent, sum(entry.length for group, chunks in groups if chunks for entry in group))
        with temporary.open("wb") as file, bar as advance:
            file.write(raw)
            for group, chunks in groups:
                _write_group(file, group, chunks, advance)
    return {
        entry.name: StoredTensor(path, len(raw) + end - entry.length, entry.length, entry.dtype, entry.shape)
        for entry, end in zip(entries, ends, strict=True)
    }


def _header(entries: Sequence[Entry], ends: Sequence[int], metadata: Mapping[str, str] | None) -> bytes:
    """Returns the bytes before the tensors: the header's length, and the header padded to the alignment."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry, end in zip(entries, ends, strict=True):
        offsets = [end - entry.length, end]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    return struct.pack("<Q", len(raw)) + raw


def _write_group(
    file: BinaryIO, group: Sequence[Entry], chunks: Callable[[], Iterable[Chunk]] | None, advance: Callable[[int], None]
) -> None:
    size = sum(entry.length for entry in group)
    if chunks is None:
        file.truncate(file.seek(size, os.SEEK_CUR))
        return
    written = 0
    for chunk in chunks():
        written += file.write(chunk)
        advance(len(chunk))
    assert written == size, f"{group[0].name}: {written} bytes of {size}"
