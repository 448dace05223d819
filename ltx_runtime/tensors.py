"""Reads and writes small safetensors files as numpy arrays: latents, prompt embeddings, recorded noise.

A file is refused as a whole if any requested number is not finite or does not fit float32 or int64. Checkpoints, which
are large, are read by ltx_export. This module does not know what the tensors mean.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.files import amount, partial_folder, placed
from ltx_runtime.trust.pointers import refuse_pointer

_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
_NAMES_SHOWN, _NAME_SHOWN = 8, 60  # names of tensors in a message, and characters of each
# A checkpoint of 13B has 2,000 tensors and a header of 0.3 MB, a quantized one some times as many. Parsing a header
# takes up to 30 times its size in memory.
MOST_HEADER_BYTES, MOST_TENSORS = 8 << 20, 50_000
_LENGTH_BYTES, _SHORTEST_HEADER = 8, 2  # the length stands before the header, of which `{}` is the shortest
_DIGITS = re.compile(r"[^0-9]")
_MOST_READ_BYTES = 1_000_000_000  # that reading the tensors of a file may take; latents of a minute in 4K take 0.7 GB

Tensors = dict[str, NDArray[Any]]


def read_tensors(path: Path, required: Collection[str], optional: Collection[str] = ()) -> Tensors:
    """Reads the named tensors of a file and ignores all others.

    Args:
        path: a safetensors file.
        required: names of tensors that must be in the file.
        optional: names of tensors that are read if they are in the file.

    Returns:
        Tensors by name, with their stored shapes: F64, F32, F16 and BF16 as float32, integers and booleans as int64.

    Raises:
        LtxError: the file cannot be read or lacks a required tensor, or a requested tensor has another dtype, takes
            more memory than 1 GB with those before it, or holds numbers that are not finite or too large.
    """
    tensors: Tensors = {}
    held = 0
    with _open(path) as file:
        stored = sorted(file.keys())
        missing = [name for name in required if name not in stored]
        if missing:
            raise LtxError(f"{path} has no tensor {listed(missing)}; it holds {listed(stored)}", "check the file")
        for name in (*required, *(name for name in optional if name in stored)):
            stored_tensor = file.get_slice(name)
            dtype = stored_tensor.get_dtype()
            if dtype not in _FLOATS + _INTEGERS:
                raise LtxError(f"{name} of {path} is stored as {dtype}", "save it as float32, float16 or bfloat16")
            shape = stored_tensor.get_shape()
            held += _check_room(math.prod(shape), dtype, held, f"{name} of {path} is of shape {shape}")
            # numpy has no bfloat16, so safetensors cannot return such a tensor.
            tensor = _read_bfloat16(path, name) if dtype == "BF16" else file.get_tensor(name)
            tensors[name] = _converted(tensor, dtype, f"{name} of {path}")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata strings of a file by key. Raises LtxError if the file cannot be read."""
    with _open(path) as file:
        return dict(file.metadata() or {})


def names_in(path: Path) -> list[str]:
    """Returns the sorted names of a file's tensors. Raises LtxError if the file cannot be read."""
    with _open(path) as file:
        return sorted(file.keys())


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None, *, replace: bool = True
) -> Path:
    """Writes a safetensors file under a temporary name, then renames it to `path`.

    Args:
        path: the file to write; its folder must exist.
        tensors: arrays by name, of any shape and with numpy's own dtypes.
        metadata: strings by key, stored in the header.
        replace: whether a file of that name is replaced.

    Returns:
        The file: `path`, or if that is taken and not replaced, the next free name after it.

    Raises:
        LtxError: the path cannot be written or the disk is full; no partial file is left.
    """
    raw = packed(tensors, metadata)
    with explaining(f"write {path}"), partial_folder(path.parent) as folder:
        temporary = folder / path.name
        temporary.write_bytes(raw)
        return temporary.replace(path) if replace else placed(temporary, path)


def packed(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns the bytes of a safetensors file, see `write_tensors`."""
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    return bytes(save(arrays, dict(metadata) if metadata else None))


def _open(path: Path) -> Any:
    """Opens a file with safetensors, which checks its header. Raises LtxError if it cannot be read or is damaged."""
    # The OSErrors that safetensors raises have no errno, from which `explaining` takes its advice.
    refuse_pointer(path)
    with explaining(f"read {path}"), path.open("rb") as file:
        header_of(path, file)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise LtxError(f"{path} is not a complete safetensors file ({reason})", "create it again") from None


def header_of(path: Path, file: BinaryIO) -> bytes:
    """Returns the JSON header of an open safetensors file, not parsed yet; empty if the file has none.

    Raises:
        LtxError: it is longer, or lists more tensors, than any file that this project reads.
    """
    start, size = file.read(_LENGTH_BYTES), path.stat().st_size
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or not _SHORTEST_HEADER <= length <= size - _LENGTH_BYTES:
        return b""
    advice = "check that it is the file that you mean"
    if length > MOST_HEADER_BYTES:
        read = f"more than the {amount(MOST_HEADER_BYTES)} that are read"
        raise LtxError(f"{path} has a header of {amount(length)}, {read}", advice)
    raw = file.read(length)
    if (count := raw.count(b'"data_offsets"')) > MOST_TENSORS:
        raise LtxError(f"{path} lists {count:,} tensors, more than the {MOST_TENSORS:,} that are read", advice)
    return raw


def _check_room(elements: int, dtype: str, held: int, described: str) -> int:
    """Returns the memory that a tensor takes as it is returned; raises LtxError if reading it takes too much."""
    stored = elements * int(_DIGITS.sub("", dtype) or 8) // 8
    converted = elements * (4 if dtype in _FLOATS else 8)
    needed = held + stored + converted + elements  # a flag for each number that is not finite
    if needed > _MOST_READ_BYTES:
        raise LtxError(
            f"{described} and needs about {amount(needed)} of memory, more than {amount(_MOST_READ_BYTES)}",
            "check that it is the file that you mean",
        )
    return converted


def listed(names: Collection[str]) -> str:
    """Returns the first names of tensors as a message lists them, and how many there are more."""
    first = ", ".join(name[:_NAME_SHOWN] for name in list(names)[:_NAMES_SHOWN]) or "nothing"
    return first + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")


def _read_bfloat16(path: Path, name: str) -> NDArray[np.float32]:
    """Reads a bfloat16 tensor as float32; a bfloat16 is the upper half of a float32."""
    with explaining(f"read {path}"), path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_bytes))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + header_bytes + begin)
        halves = np.frombuffer(file.read(end - begin), "<u2")
    bits: NDArray[np.uint32] = halves.astype(np.uint32) << np.uint32(16)
    tensor: NDArray[np.float32] = bits.view(np.float32).reshape(entry["shape"])
    return tensor


def _converted(tensor: NDArray[Any], dtype: str, label: str) -> NDArray[Any]:
    """Converts a tensor to float32 or int64. Raises LtxError if a number does not fit or is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # a float64 may overflow float32, and is refused below
        converted: NDArray[Any] = tensor.astype(np.float32 if dtype in _FLOATS else np.int64, copy=False)
    refused = np.less(converted, 0) if dtype == "U64" else ~np.isfinite(converted)
    if refused.any():
        fault = f"are not finite in {converted.dtype}" if dtype in _FLOATS else "do not fit int64"
        raise LtxError(
            f"{np.count_nonzero(refused)} of {converted.size} numbers in {label} {fault}", "create the file again"
        )
    return converted
