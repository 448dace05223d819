"""Stored bytes <-> float32, for every dtype that weights are read from; uses numpy only, a few rows at a time.

Values that are stored with a scale, such as scaled fp8, are multiplied by it in float32, which rounds once. Names tell
which tensor is the scale of which; those of ComfyUI (before and after it had `comfy_quant` tensors), transformers,
compressed-tensors, optimum-quanto and torchao are known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_export.checkpoints.blocks import BLOCK_FORMATS, BLOCK_TYPES, split_blocks
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import Checkpoint, StoredTensor
from ltx_runtime.weights.floats import FLOAT_DTYPES, widened

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# All dtypes that weights are read from. Integers are weights only with a scale.
READ_DTYPES = (*FLOAT_DTYPES, "F8_E4M3", "F8_E5M2", *BLOCK_FORMATS)
_SCALED_INTEGERS = "I8"

# Names of a layer's weight and scale, behind the layer's own name; most files call the weight as every other does.
_CODES = re.compile(r"(.+\.)(?:weight\._data|_weight_qdata)")
_SCALE = re.compile(r"(.+\.)(?:scale_weight|weight_scale|weight_scale_inv|weight\._scale|_weight_scale)")
# What else such files have: scales of activations, and which layers are quantized.
_NO_WEIGHT = re.compile(r"(?:.+\.)?(?:scale_input|input_scale|output_scale|comfy_quant|scaled_fp8)")
_FORMAT = re.compile(r"(.+\.)comfy_quant")
_FORMATS_FIELD = "_quantization_metadata"
# Formats of ComfyUI that are values and scales, and the dtype of the values where a file stores them as bytes.
_SCALED_FORMATS = {
    **{"float8_e4m3fn": "F8_E4M3", "float8_e4m3fn_rowwise": "F8_E4M3", "float8_e4m3fn_blockwise": "F8_E4M3"},
    **{"float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8", "int8_blockwise": "I8"},
}
# Tensors that only files in other formats have.
_OTHER_FORMATS = {
    "nvfp4": re.compile(r".+\.weight_scale_2"),
    "w4a8": re.compile(r".+\.weight_(s_rel|s_channel|codebook)"),
    "bitsandbytes": re.compile(r".+\.(SCB|weight\.(absmax|quant_map|quant_state\..+))"),
    "GPTQ, AWQ or SVDQuant": re.compile(r".+\.(qweight|qzeros|wscales|wzeros)"),
    "torchao with zero points": re.compile(r".+\._weight_zero_point"),
}
_READABLE = "give it as bf16, fp16, plain or scaled fp8, or GGUF"


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
        LtxError: the tensor's dtype is not one of READ_DTYPES, or its scale is not finite.
    """
    check_dtype(tensor)
    rows = rows_of(tensor)
    stop = rows if stop is None else stop
    row_bytes = tensor.length // max(rows, 1)
    raw = tensor.read(start * row_bytes, stop * row_bytes)
    shape = tensor.shape if (start, stop) == (0, rows) else (stop - start, *tensor.shape[1:])
    values = _widened(raw, tensor.dtype, tensor.shape[-1] if tensor.shape else 1)
    if tensor.scale is not None:
        scales = row_scales(tensor, start, stop)
        values = values.reshape(*scales.shape, -1) * scales[..., None]
    return values.reshape(shape)


def scale_grid(scale: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Returns into how many groups of rows and of columns a scale divides a tensor; None if it does not fit it.

    A scale is one number, one for each row, or one for each block of rows and columns of equal size.

    Args:
        scale: shape of the scale; axes of one behind the first two do not count.
        shape: shape of the tensor; all axes behind the first are its columns.
    """
    sizes = [*scale]
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    rows, columns = (shape[0] if shape else 1), math.prod(shape[1:])
    groups, column_groups = (*sizes, 1, 1)[:2]
    is_single_axis_odd = len(sizes) == 1 and groups not in (1, rows)
    if len(sizes) > 2 or 0 in (*sizes, rows, columns) or is_single_axis_odd:
        return None
    return None if rows % groups or columns % column_groups else (groups, column_groups)


def row_scales(tensor: StoredTensor, start: int, stop: int) -> Floats:
    """Reads what some rows of a tensor with a scale are multiplied by: (stop - start, groups of columns) float32.

    Raises:
        LtxError: a scale is not finite.
    """
    assert tensor.scale is not None
    grid = scale_grid(tensor.scale.shape, tensor.shape)
    assert grid is not None  # checked when the scale was put with its tensor
    scales = float32_of(tensor.scale).reshape(grid)
    if not np.isfinite(scales).all():
        raise LtxError(f"{tensor.scale.file} has a scale that is not finite", "download it again")
    return scales[np.arange(start, stop) * grid[0] // rows_of(tensor)]


def is_quantized(tensor: StoredTensor) -> bool:
    """Returns whether a tensor holds integers with scales: blocks of GGUF, or 8-bit integers with a scale."""
    return tensor.dtype in BLOCK_FORMATS or tensor.dtype == _SCALED_INTEGERS


def with_scales(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Returns the tensors of a file by name, each with its scale if it has one; scales are no tensors of their own.

    Raises:
        LtxError: weights are quantized in a format that is not read, or a scale has no weight or does not fit it.
    """
    formats = dict(_formats(checkpoint))
    for format_name in formats.values():
        if format_name not in _SCALED_FORMATS:
            raise _unreadable(checkpoint, format_name)
    tensors: dict[str, StoredTensor] = {}
    scales: dict[str, str] = {}
    for name, tensor in checkpoint.tensors.items():
        for other, pattern in _OTHER_FORMATS.items():
            if pattern.fullmatch(name):
                raise _unreadable(checkpoint, other)
        if scale := _SCALE.fullmatch(name):
            scales[f"{scale[1]}weight"] = name
        elif not _NO_WEIGHT.fullmatch(name):
            codes = _CODES.fullmatch(name)
            tensors[f"{codes[1]}weight" if codes else name] = tensor
    for weight, name in scales.items():
        if weight not in tensors:
            raise LtxError(f"{checkpoint.path} has a scale {name} without its weight", "download it again")
        tensors[weight] = _scaled(checkpoint, weight, tensors[weight], name, formats.get(weight))
    return tensors


def _scaled(
    checkpoint: Checkpoint, weight: str, tensor: StoredTensor, name: str, format_name: str | None
) -> StoredTensor:
    scale = checkpoint.tensors[name]
    if scale.dtype not in FLOAT_DTYPES:
        raise _unreadable(checkpoint, "mxfp8" if scale.dtype in ("U8", "F8_E8M0") else f"scales of {scale.dtype}")
    if scale_grid(scale.shape, tensor.shape) is None:
        problem = f"{checkpoint.path} has a scale {name} {list(scale.shape)} for {weight} {list(tensor.shape)}"
        raise LtxError(problem, "give one scale, or one for each row or block of equal size")
    dtype = _SCALED_FORMATS[format_name] if format_name and tensor.dtype == "U8" else tensor.dtype
    return replace(tensor, dtype=dtype, scale=scale)


def _formats(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yields the names of quantized weights and their formats, from the header and from ComfyUI's tensors of JSON."""
    header = checkpoint.metadata.get(_FORMATS_FIELD)
    if header is not None:
        layers = _parsed(checkpoint, _FORMATS_FIELD, header).get("layers")
        for layer, entry in (layers if isinstance(layers, dict) else {}).items():
            yield f"{layer}.weight", _format_name(entry)
    for name, tensor in checkpoint.tensors.items():
        if layer := _FORMAT.fullmatch(name):
            raw = tensor.read(0, tensor.length).tobytes()
            yield f"{layer[1]}weight", _format_name(_parsed(checkpoint, name, raw))


def _parsed(checkpoint: Checkpoint, name: str, raw: Any) -> dict[str, Any]:
    try:
        entry = json.loads(raw)
        if not isinstance(entry, dict):
            raise ValueError("not an object")
    except (ValueError, TypeError, RecursionError):
        raise LtxError(f"{checkpoint.path} has {name}, which is not a JSON object", "download it again") from None
    return entry


def _format_name(entry: Any) -> str:
    """Returns the format in an entry for a layer; rotated weights are a format of their own."""
    name = str(entry.get("format")) if isinstance(entry, dict) else str(entry)
    return f"{name} with convrot" if isinstance(entry, dict) and entry.get("convrot") else name


def _unreadable(checkpoint: Checkpoint, format_name: str) -> LtxError:
    return LtxError(f"{checkpoint.path} has weights quantized as {format_name}, which is not read", _READABLE)


def check_dtype(tensor: StoredTensor) -> None:
    """Raises LtxError if a tensor's dtype is not one of READ_DTYPES, or integers with a scale."""
    if tensor.dtype == _SCALED_INTEGERS and tensor.scale is not None:
        return
    if tensor.dtype not in READ_DTYPES:
        dtypes = ", ".join(dtype for dtype in READ_DTYPES if dtype not in BLOCK_FORMATS)
        raise LtxError(f"{tensor.file} stores weights as {tensor.dtype}", f"use one in {dtypes}, or a GGUF")


def _widened(raw: Bytes, dtype: str, columns: int) -> Floats:
    if dtype in FLOAT_DTYPES:
        return widened(raw, dtype)
    if dtype == "F8_E4M3":
        return np.take(_E4M3, raw)
    if dtype == "F8_E5M2":  # the upper byte of fp16
        return (raw.astype("<u2") << np.uint16(8)).view("<f2").astype(np.float32)
    if dtype == _SCALED_INTEGERS:
        return raw.view(np.int8).astype(np.float32)
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
