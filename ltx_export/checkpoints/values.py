"""Stored bytes <-> float32, for every dtype that weights are read from; uses numpy only, a few rows at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx_export.checkpoints.blocks import BLOCK_FORMATS, BLOCK_TYPES, split_blocks
from ltx_export.checkpoints.checkpoint import StoredTensor
from ltx_runtime.errors import LtxError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

FLOAT_DTYPES = ("F32", "F16", "BF16")
# All dtypes that weights are read from.
READ_DTYPES = (*FLOAT_DTYPES, "F8_E4M3", *BLOCK_FORMATS)
_HALF_MAX = 65504.0


def _e4m3() -> Floats:
    """Returns the 256 values of float8_e4m3fn: 4 exponent bits with bias 7, 3 mantissa bits, no infinities."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    normal = (8 + mantissa) * 2.0 ** (exponent - 10.0)
    values = np.where(exponent == 0, mantissa * 2.0**-9, normal)
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _e4m3()


def rows_of(tensor: StoredTensor) -> int:
    """Returns how many rows can be read separately: the size of the first axis; 1 for a scalar or quantized vector."""
    is_single_row = not tensor.shape or (tensor.dtype in BLOCK_FORMATS and len(tensor.shape) == 1)
    return 1 if is_single_row else tensor.shape[0]


def float32_of(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> Floats:
    """Reads rows `start` to `stop`, counted as in `rows_of`, as float32: exactly, or rounded once if quantized.

    Returns:
        float32 in the tensor's shape, with `stop - start` as the first axis if only some rows are read.

    Raises:
        LtxError: the tensor's dtype is not one of READ_DTYPES.
    """
    check_dtype(tensor)
    rows = rows_of(tensor)
    stop = rows if stop is None else stop
    row_bytes = tensor.length // max(rows, 1)
    raw = tensor.read(start * row_bytes, stop * row_bytes)
    shape = tensor.shape if (start, stop) == (0, rows) else (stop - start, *tensor.shape[1:])
    return _widened(raw, tensor.dtype, tensor.shape[-1] if tensor.shape else 1).reshape(shape)


def check_dtype(tensor: StoredTensor) -> None:
    """Raises LtxError if a tensor's dtype is not one of READ_DTYPES."""
    if tensor.dtype not in READ_DTYPES:
        dtypes = ", ".join(dtype for dtype in READ_DTYPES if dtype not in BLOCK_FORMATS)
        raise LtxError(f"{tensor.file} stores weights as {tensor.dtype}", f"use one in {dtypes}, or a GGUF")


def _widened(raw: Bytes, dtype: str, columns: int) -> Floats:
    if dtype == "F32":
        return raw.view("<f4")
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F8_E4M3":
        return np.take(_E4M3, raw)
    return _dequantized(raw, dtype, columns)


def _dequantized(raw: Bytes, dtype: str, columns: int) -> Floats:
    """Dequantizes rows: computes code * scale + offset * scale + minimum exactly, then rounds once to float32."""
    block = BLOCK_FORMATS[dtype]
    parts = split_blocks(raw.reshape(len(raw) // max(1, block_bytes(dtype, columns)), -1), dtype)
    codes = parts.codes.reshape(*parts.scales.shape, block.block)
    if parts.minimums is None:
        return (codes * parts.scales[..., None]).reshape(-1)
    scaled = (codes.astype(np.float64) + block.offset) * parts.scales[..., None]
    return (scaled + parts.minimums[..., None]).astype(np.float32).reshape(-1)


def block_bytes(dtype: str, columns: int) -> int:
    """Returns the size in bytes of a row with `columns` elements."""
    elements, size = BLOCK_TYPES[dtype]
    return columns // elements * size


def stored_as(values: Floats, dtype: str, name: str) -> Bytes:
    """Converts float32 values to the bytes of another float dtype, rounded to nearest even.

    Args:
        values: float32 of any shape.
        dtype: one of FLOAT_DTYPES.
        name: name of the tensor in error messages.

    Raises:
        LtxError: a finite value is beyond the range of fp16.
    """
    values = np.ascontiguousarray(values)
    if dtype == "F32":
        return values.reshape(-1).view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore", invalid="ignore"):
            halves = values.astype("<f2")
        if not np.array_equal(np.isinf(halves), np.isinf(values)):
            raise LtxError(f"{name} has values beyond fp16's {_HALF_MAX:.0f}", "store the weights as bf16")
        return halves.reshape(-1).view(np.uint8)
    assert dtype == "BF16"
    bits = values.reshape(-1).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.where(np.isnan(values.reshape(-1)), bits | np.uint32(0x400000), rounded)
    return (rounded >> np.uint32(16)).astype("<u2").view(np.uint8)
