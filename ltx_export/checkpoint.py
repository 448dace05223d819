"""A safetensors file -> named tensors by offset. Reads the header only; bytes are read when asked for.

Knows nothing of models: names, shapes and dtypes are the file's own.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "U8": 1, "F64": 8, "BOOL": 1}
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie: `length` bytes at `offset` of `file`, dtype in safetensors' words."""

    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]

    def mapped(self) -> NDArray[np.uint8]:
        """The tensor's bytes (length,), C order, little-endian; mapped, and copied where written to."""
        return np.memmap(self.file, np.uint8, mode="c", offset=self.offset, shape=(self.length,))


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the configuration the header carries (empty if none)."""

    file: Path
    tensors: dict[str, StoredTensor]
    config: dict[str, Any] = field(default_factory=dict)


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads the header of a safetensors file.

    Raises:
        LtxError: the file is missing, no safetensors, truncated, or its offsets contradict its shapes.
    """
    with explaining(f"read {path}"), path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size - 8):
            raise LtxError(f"{path} is not a whole safetensors file - download it again")
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _stored(path, 8 + header_bytes, entry) for name, entry in header.items()}
        config = json.loads(metadata.get("config", "{}"))
        if not all(isinstance(part, dict) for part in (config, *_networks(config))):
            raise ValueError("its config is not an object of objects")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LtxError(f"{path} has a damaged safetensors header ({error}) - download it again") from None
    end = max((tensor.offset + tensor.length for tensor in tensors.values()), default=0)
    if end > size:
        raise LtxError(f"{path} is truncated: {size} bytes of {end} - download it again")
    return Checkpoint(path, tensors, config)


def _networks(config: Any) -> list[Any]:
    return [config[name] for name in ("transformer", "vae") if name in config]


def _stored(path: Path, data_start: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    possible = 0 <= begin <= end and min(shape, default=0) >= 0 and entry["dtype"] in ITEM_BYTES
    if not possible or end - begin != math.prod(shape) * ITEM_BYTES[entry["dtype"]]:
        raise ValueError(f"dtype {entry['dtype']}, shape {shape}, {end - begin} bytes")
    return StoredTensor(path, data_start + begin, end - begin, entry["dtype"], shape)
