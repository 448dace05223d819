"""Rewrites weights whose stored bytes no graph can use into a new file, in one pass, tensor by tensor.

fp8 is cast, and multiplied by its scale if it has one, LoRAs are merged, floats are converted if another dtype is
requested, and quantized matrices become integers with block scales. Knows nothing of graphs: `graphs/attach_blocks.py`
puts those integers into one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_export.checkpoints.blocks import BLOCK_FORMATS, Q8, BlockFormat, Blocks, pack_int4, quantized, split_blocks
from ltx_export.checkpoints.values import float32_of, is_quantized, row_scales, rows_of
from ltx_export.weights.streaming import COPY_BYTES
from ltx_runtime.progress import Progress, silent
from ltx_runtime.weights.checkpoint import StoredTensor
from ltx_runtime.weights.floats import FLOAT_DTYPES, stored_as
from ltx_runtime.weights.lora import Lora, merge
from ltx_runtime.weights.writing import Chunk, Entry, write_safetensors

_MIN_CODE = -128
_SMALLEST_BLOCK = 16  # smallest block that runtimes fuse with a product
# Replaces a scale of zero. Any positive value would do, because the codes of such a block are set to mean zero.
_ANY_SCALE = np.float32(2.0**-14)


@dataclass(frozen=True)
class BlockWeight:
    """A matrix (N, K) as integers with block scales along K: value = (code + offset) * scale + minimum.

    Attributes:
        codes: (K, N) int8, or two int4 per byte (dtype U8); for an embedding table, (N, K) float16.
        scales: (K / block, N) float32; for a table, (N, K / block).
        minimums: same shape and dtype as the scales; None if the format has no minimums.
        format: bits, block and offset of the codes as they are stored.
        shape: shape of the matrix, (N, K).
        is_table: whether the matrix is an embedding table, whose rows are looked up.
    """

    codes: StoredTensor
    scales: StoredTensor
    minimums: StoredTensor | None
    format: BlockFormat
    shape: tuple[int, ...]
    is_table: bool


Weight = StoredTensor | BlockWeight


def must_be_rewritten(tensors: Mapping[str, StoredTensor], store: str | None, loras: Sequence[Lora]) -> bool:
    """Returns whether any tensor's bytes cannot stay as they are."""
    return any(
        tensor.dtype != (store or tensor.dtype)
        or tensor.dtype not in FLOAT_DTYPES
        or tensor.scale is not None
        or _is_changed(name, loras)
        for name, tensor in tensors.items()
    )


def rewrite(
    tensors: Mapping[str, StoredTensor],
    path: Path,
    *,
    tables: AbstractSet[str] = frozenset(),
    store: str | None = None,
    loras: Sequence[Lora] = (),
    to_q8: AbstractSet[str] = frozenset(),
    progress: Progress = silent,
) -> dict[str, Weight]:
    """Writes a network's tensors into a file of their own.

    Args:
        tensors: tensors by name; F32, F16 and BF16 bytes are kept unless `store` or a LoRA changes them.
        path: path of the safetensors file.
        tables: names of the embedding tables.
        store: F32, F16 or BF16 for all weights, quantized ones included; None keeps the dtypes that can be kept.
        loras: merged in float32, then rounded to the stored dtype.
        to_q8: names of the float matrices that are quantized to Q8; their columns are a multiple of its block.
        progress: receives the number of bytes written.

    Returns:
        The stored weights by name.

    Raises:
        LtxError: the disk is full, a dtype is not supported, or a value exceeds the range of fp16.
    """
    layouts = {
        name: Q8 if name in to_q8 else _layout(tensor, name in tables)
        for name, tensor in tensors.items()
        if name in to_q8 or (_is_matrix(name, tensor) and store is None and not _is_changed(name, loras))
    }
    groups = [
        _block_group(name, tensor, layouts[name], name in tables)
        if name in layouts
        else _float_group(name, tensor, store, loras)
        for name, tensor in tensors.items()
    ]
    stored = write_safetensors(path, groups, progress=progress)
    return {
        name: _block_weight(stored, name, tensor.shape, layouts[name], name in tables)
        if name in layouts
        else stored[name]
        for name, tensor in tensors.items()
    }


def _is_matrix(name: str, tensor: StoredTensor) -> bool:
    """Returns whether a tensor is quantized and the weight of a linear layer or a table; only those stay integers."""
    return (
        is_quantized(tensor) and len(tensor.shape) == 2 and name.endswith(".weight") and _format_of(tensor) is not None
    )


def _format_of(tensor: StoredTensor) -> BlockFormat | None:
    """Returns the form of a quantized matrix's codes; None if its columns are no whole number of blocks."""
    if tensor.dtype in BLOCK_FORMATS:
        return BLOCK_FORMATS[tensor.dtype]
    block = math.gcd(tensor.shape[1] // row_scales(tensor, 0, 1).shape[1], Q8.block)
    return replace(Q8, block=block) if block >= _SMALLEST_BLOCK else None


def _is_changed(name: str, loras: Sequence[Lora]) -> bool:
    return any(lora.changes(name) for lora in loras)


def _float_group(
    name: str, tensor: StoredTensor, store: str | None, loras: Sequence[Lora]
) -> tuple[tuple[Entry, ...], Callable[[], Iterator[Chunk]]]:
    dtype = store or _default_dtype(tensor, _is_changed(name, loras))
    entry = Entry(name, dtype, tensor.shape)
    if _is_changed(name, loras):
        return (entry,), lambda: _merged(name, tensor, dtype, loras)
    if dtype == tensor.dtype and tensor.scale is None:
        return (entry,), lambda: _copied(tensor)
    return (entry,), lambda: _cast(name, tensor, dtype)


def _default_dtype(tensor: StoredTensor, is_changed: bool) -> str:
    """Returns the dtype in which a tensor is stored if none is requested.

    BF16 for fp8, which is a cast of bf16 weights; the product with a scale is rounded, sixteen times finer than fp8 is.
    F32 for quantized tensors, which it holds exactly, but BF16 for those that a LoRA changes.
    """
    if tensor.dtype in FLOAT_DTYPES:
        return tensor.dtype
    return "F32" if is_quantized(tensor) and not is_changed else "BF16"


def _copied(tensor: StoredTensor) -> Iterator[Chunk]:
    for start in range(0, tensor.length, COPY_BYTES):
        yield tensor.read(start, min(start + COPY_BYTES, tensor.length)).data


def _cast(name: str, tensor: StoredTensor, dtype: str) -> Iterator[Chunk]:
    for start, stop in _row_slices(tensor):
        yield stored_as(float32_of(tensor, start, stop), dtype, name).data


def _merged(name: str, tensor: StoredTensor, dtype: str, loras: Sequence[Lora]) -> Iterator[Chunk]:
    weight = np.array(float32_of(tensor))  # a writable copy
    merge(weight, name, loras)
    for start, stop in _row_slices(tensor):
        yield stored_as(weight[start:stop], dtype, name).data


def _row_slices(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    rows = rows_of(tensor)
    step = max(1, COPY_BYTES * rows // max(1, 4 * int(np.prod(tensor.shape))))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _layout(tensor: StoredTensor, is_table: bool) -> BlockFormat:
    """Returns the format in which the codes are stored.

    A table's codes become float16, which every runtime can look up. With an odd number of rows, 4-bit codes become
    8-bit, because only pairs can be packed.
    """
    source_format = _format_of(tensor)
    assert source_format is not None  # as _is_matrix has checked
    if is_table:
        return replace(source_format, bits=16, offset=0)
    return replace(source_format, bits=8) if tensor.shape[0] % 2 else source_format


def _block_group(
    name: str, tensor: StoredTensor, layout: BlockFormat, is_table: bool
) -> tuple[tuple[Entry, ...], Callable[[], Iterator[Chunk]]]:
    rows, columns = tensor.shape
    blocks = columns // layout.block
    scales = (rows, blocks) if is_table else (blocks, rows)
    if is_table:
        codes = Entry(name, "F16", (rows, columns))
    elif layout.bits == 4:
        codes = Entry(name, "U8", (columns, rows // 2))
    else:
        codes = Entry(name, "I8", (columns, rows))
    entries: tuple[Entry, ...] = (codes, Entry(f"{name}.scales", "F32", scales))
    if layout.has_minimums:
        entries += (Entry(f"{name}.minimums", "F32", scales),)
    return entries, lambda: _table(tensor) if is_table else _transposed(tensor, layout)


def _blocks_of(tensor: StoredTensor) -> Iterator[tuple[slice, Blocks]]:
    rows, columns = tensor.shape
    row_bytes = tensor.length // rows
    for start, stop in _row_slices(tensor):
        if not is_quantized(tensor):
            yield slice(start, stop), quantized(float32_of(tensor, start, stop).reshape(-1, columns))
            continue
        raw = tensor.read(start * row_bytes, stop * row_bytes).reshape(stop - start, row_bytes)
        if tensor.dtype in BLOCK_FORMATS:
            yield slice(start, stop), split_blocks(raw, tensor.dtype)
        else:
            yield slice(start, stop), _scaled_integers(tensor, raw, start, stop)


def _scaled_integers(tensor: StoredTensor, raw: NDArray[np.uint8], start: int, stop: int) -> Blocks:
    """Returns rows of integers with a scale for a whole row or more as blocks, each with that scale."""
    block_format = _format_of(tensor)
    assert block_format is not None
    scales = row_scales(tensor, start, stop)
    repeats = raw.shape[1] // block_format.block // scales.shape[1]
    return Blocks(raw.view(np.int8).copy(), scales.repeat(repeats, axis=1), None, block_format)


def _table(tensor: StoredTensor) -> Iterator[Chunk]:
    scales_and_minimums = []
    for _, blocks in _blocks_of(tensor):
        yield _bytes_of((blocks.codes + np.int8(blocks.format.offset)).astype("<f2"))
        scales_and_minimums.append((blocks.scales, blocks.minimums))
    for parts in zip(*scales_and_minimums, strict=True):
        yield from (_bytes_of(part) for part in parts if part is not None)


def _transposed(tensor: StoredTensor, layout: BlockFormat) -> Iterator[Chunk]:
    """Yields codes, scales and minimums transposed: with the summed axis first, runtimes fuse them into the product."""
    rows, columns = tensor.shape
    codes = np.empty((columns, rows), np.int8)
    scales = np.empty((columns // layout.block, rows), np.float32)
    minimums = np.empty_like(scales) if layout.has_minimums else None
    for row_slice, blocks in _blocks_of(tensor):
        if layout.bits == 8:
            _make_positive(blocks)
        codes[:, row_slice], scales[:, row_slice] = blocks.codes.T, blocks.scales.T
        if minimums is not None and blocks.minimums is not None:
            minimums[:, row_slice] = blocks.minimums.T
    yield _bytes_of(pack_int4(codes) if layout.bits == 4 else codes)
    yield _bytes_of(scales)
    if minimums is not None:
        yield _bytes_of(minimums)


def _make_positive(blocks: Blocks) -> None:
    """Makes scales positive in place by negating codes, as TensorRT accepts only positive scales for 8-bit codes.

    A block with the code -128, which int8 cannot negate, keeps its negative scale.
    """
    codes = blocks.codes.reshape(*blocks.scales.shape, blocks.format.block)
    empty = blocks.scales == 0
    codes[empty] = -blocks.format.offset
    blocks.scales[empty] = _ANY_SCALE
    negated = blocks.scales < 0
    if not negated.any():
        return
    negated &= codes.min(-1) > _MIN_CODE
    codes[negated] = -codes[negated] - np.int8(2 * blocks.format.offset)
    blocks.scales[negated] *= -1


def _bytes_of(array: NDArray[Any]) -> Chunk:
    return array.reshape(-1).view(np.uint8).data


def _block_weight(
    stored: Mapping[str, StoredTensor], name: str, shape: tuple[int, ...], layout: BlockFormat, is_table: bool
) -> BlockWeight:
    minimums = stored.get(f"{name}.minimums")
    return BlockWeight(stored[name], stored[f"{name}.scales"], minimums, layout, shape, is_table)
