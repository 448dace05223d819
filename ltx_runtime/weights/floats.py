"""The float dtypes in which graphs use weights <-> float32; uses numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import StoredTensor

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

FLOAT_DTYPES = ("F32", "F16", "BF16")
_HALF_MAX = 65504.0


def widened(raw: Bytes, dtype: str) -> Floats:
    """Returns the values of stored bytes, whose dtype is one of FLOAT_DTYPES, as float32 (elements,); exact."""
    if dtype == "F32":
        return raw.view("<f4")
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    assert dtype == "BF16"
    bits: NDArray[np.uint32] = raw.view("<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def read_floats(tensor: StoredTensor) -> Floats:
    """Reads a copy of a tensor, whose dtype is one of FLOAT_DTYPES, as float32 in its shape; exact.

    Raises:
        LtxError: the file has become shorter since its header was read.
    """
    return widened(tensor.read(0, tensor.length), tensor.dtype).reshape(tensor.shape)


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
            float16 = values.astype("<f2")
        if not np.array_equal(np.isinf(float16), np.isinf(values)):
            raise LtxError(f"{name} has values beyond fp16's {_HALF_MAX:.0f}", "store the weights as bf16")
        return float16.reshape(-1).view(np.uint8)
    assert dtype == "BF16"
    bits = values.reshape(-1).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.where(np.isnan(values.reshape(-1)), bits | np.uint32(0x400000), rounded)
    halves: NDArray[np.uint16] = (rounded >> np.uint32(16)).astype("<u2")
    return halves.view(np.uint8)
