"""A safetensors file, or the shards that an index names -> named tensors by offset.

Opening reads headers only; the bytes of a tensor are read on demand. This module knows nothing of models: names, shapes
and dtypes are those of the file. A header is untrusted input: every offset is checked against the file's size.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError, explaining, first_line
from ltx_runtime.tensors import MOST_HEADER_BYTES, header_of
from ltx_runtime.trust.pointers import refuse_pointer

# Bytes per element of the safetensors dtypes whose elements are whole bytes.
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}
INDEX_SUFFIX = ".safetensors.index"
_PARTS = ("transformer", "vae", "scheduler")  # parts of a configuration that are read
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class StoredTensor:
    """Place of a tensor's bytes: `length` bytes at `offset` in `file`.

    Attributes:
        dtype: safetensors' name, or a GGUF block type.
        scale: tensor by which the stored values are multiplied, as in scaled fp8; None if they are the weights.
    """

    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]
    scale: StoredTensor | None = None

    def mapped(self) -> NDArray[np.uint8]:
        """Returns the tensor's bytes, (length,) in C order and little-endian, memory-mapped as copy-on-write."""
        return np.memmap(self.file, np.uint8, mode="c", offset=self.offset, shape=(self.length,))

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Reads a copy of the bytes from `start` to `stop`, both relative to the tensor.

        Raises:
            LtxError: the file has become shorter since its header was read.
        """
        with explaining(f"read {self.file}"), self.file.open("rb") as file:
            file.seek(self.offset + start)
            data = file.read(stop - start)
        if len(data) != stop - start:
            raise LtxError(f"{self.file} became shorter while it was read", "download it again")
        return np.frombuffer(data, np.uint8)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and metadata of an opened checkpoint.

    Attributes:
        path: the file, or the index of the shards.
        tensors: tensors by state dict key.
        metadata: other entries of the header.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Configuration of the networks: the JSON object under `config`, empty if there is none.

        Other programs write a `config` too: null, an empty text or the name of a file says nothing of the networks. A
        part that is null is left out.

        Raises:
            LtxError: the object is damaged, or its `transformer`, `vae` or `scheduler` is not an object.
        """
        config = self.metadata.get("config")
        if isinstance(config, str):
            if not config.lstrip().startswith("{"):
                return {}
            try:
                config = json.loads(config)
            except (ValueError, RecursionError) as error:
                raise _damaged(self.path, first_line(error)) from None
        if not isinstance(config, dict):
            return {}
        config = {name: value for name, value in config.items() if name not in _PARTS or value is not None}
        if not all(isinstance(config[name], dict) for name in _PARTS if name in config):
            raise _damaged(self.path, "its config is not an object of objects")
        return config


def open_safetensors(path: Path) -> Checkpoint:
    """Reads the header of a safetensors file.

    Raises:
        LtxError: the file is missing, not a safetensors file, truncated, or its header is too large or contradicts
            itself.
    """
    refuse_pointer(path)
    with explaining(f"read {path}"), path.open("rb") as file:
        size = path.stat().st_size
        raw = header_of(path, file)
    if not raw:
        raise LtxError(f"{path} is not a complete safetensors file", "download it again")
    try:
        header = json.loads(raw, object_pairs_hook=_with_unique_keys)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is not a JSON object")
        tensors = {name: _stored_tensor(path, 8 + len(raw), entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, first_line(error)) from None
    _check_places(path, tensors, size)
    return Checkpoint(path, tensors, metadata)


def _damaged(path: Path, what: str) -> LtxError:
    return LtxError(f"{path} has a damaged header ({what})", "download it again")


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key appears twice")
    return entries


def _stored_tensor(path: Path, data_start: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = (_size_or_offset(offset) for offset in entry["data_offsets"])
    shape = tuple(_size_or_offset(size) for size in entry["shape"])
    if len(shape) > _MAX_DIMENSIONS:  # a malicious shape of a million sizes would take forever to multiply
        raise ValueError(f"{len(shape)} dimensions")
    dtype = entry["dtype"]
    if dtype not in ITEM_BYTES or begin > end or end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"dtype {dtype}, shape {list(shape)}, {end - begin} bytes")
    return StoredTensor(path, data_start + begin, end - begin, dtype, shape)


def _size_or_offset(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is not a valid size or offset")
    return value


def _check_places(path: Path, tensors: dict[str, StoredTensor], size: int) -> None:
    """Raises LtxError if tensors overlap or extend beyond the end of the file."""
    end, previous = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].length)):
        if tensor.offset < end:
            raise _damaged(path, f"{previous} and {name} overlap")
        end, previous = tensor.offset + tensor.length, name
    if end > size:
        raise LtxError(f"{path} is truncated: {size} bytes of {end}", "download it again")


def open_shards(index: Path) -> Checkpoint:
    """Reads the headers of all shards that a `*.safetensors.index.json` names.

    Raises:
        LtxError: the index is damaged, a shard is missing or damaged, or its tensors are not those that the index
            lists for it.
    """
    refuse_pointer(index)
    with explaining(f"read {index}"), index.open("rb") as stream:
        raw = stream.read(MOST_HEADER_BYTES + 1)
    if len(raw) > MOST_HEADER_BYTES:
        raise LtxError(f"{index} is too large for an index of shards", "download it again")
    try:
        places = {str(name): _file_name(file) for name, file in json.loads(raw)["weight_map"].items()}
        if not places:
            raise ValueError("it names no tensors")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LtxError(f"{index} is not an index of shards ({first_line(error)})", "download it again") from None
    missing = sorted({file for file in places.values() if not (index.parent / file).is_file()})
    if missing:
        raise LtxError(f"{index} names {', '.join(missing[:4])}, not found beside it", "download the missing shards")
    shards = {file: open_safetensors(index.parent / file) for file in sorted(set(places.values()))}
    tensors: dict[str, StoredTensor] = {}
    for file, shard in shards.items():
        names = {name for name, place in places.items() if place == file}
        if names != shard.tensors.keys():
            differences = sorted(names ^ shard.tensors.keys())
            raise LtxError(
                f"{shard.path} and {index.name} disagree about {', '.join(differences[:4])}", "download both again"
            )
        tensors |= shard.tensors
    return Checkpoint(index, tensors)


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name:
        raise ValueError(f"{name!r} is not a file name")
    return name
