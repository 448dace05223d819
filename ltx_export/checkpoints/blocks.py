"""Quantization blocks of GGUF -> integer codes and block scales, the form in which ONNX stores low-bit weights.

The conversion is exact. It is used between a GGUF file's bytes and a graph's initializers, and knows nothing of files,
names or graphs. The layouts are those of the reference implementation in Python (`gguf/quants.py` of the package gguf,
0.19).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import QUANTIZED_BLOCK

_HALF = "<f2"
_IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class BlockFormat:
    """Form of the codes of a GGUF type.

    Attributes:
        bits: bits per code, which is signed.
        block: number of consecutive elements of a row that share a scale.
        offset: constant that has to be added to every code.
        has_minimums: whether every block has a minimum that is added to its elements.
    """

    bits: int
    block: int
    offset: int = 0
    has_minimums: bool = False


@dataclass(frozen=True)
class Blocks:
    """A quantized weight matrix: value = code * scale + offset * scale + minimum, rounded once to float32 at the end.

    Attributes:
        codes: (rows, columns) int8, within the signed range of `format.bits`.
        scales: (rows, columns / block) float32.
        minimums: (rows, columns / block) float32, signed so that they are added; None if the format has none.
        format: bits, block size and offset of the codes.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    minimums: NDArray[np.float32] | None
    format: BlockFormat


# Form into which float matrices are quantized here. Blocks of 32 had 0.8 times the error, but took 1.4 times as long.
Q8 = BlockFormat(bits=8, block=QUANTIZED_BLOCK)
_LARGEST_CODE = 127


def quantized(values: NDArray[np.float32]) -> Blocks:
    """Quantizes rows (rows, columns) float32 of a matrix to Q8: a block's largest magnitude becomes the code 127."""
    blocks = values.reshape(len(values), -1, Q8.block)
    scales = np.abs(blocks).max(-1) / np.float32(_LARGEST_CODE)
    codes = np.rint(blocks / np.where(scales == 0, np.float32(1), scales)[..., None]).astype(np.int8)
    return Blocks(codes.reshape(values.shape), scales, None, Q8)


_Integers = NDArray[np.uint8] | NDArray[np.int8]
_Factors = tuple[_Integers, _Integers | None]


@dataclass(frozen=True)
class _Layout:
    """Storage of one block: a code is `low`, with `high` (if any) as the bits above it, minus `centre`.

    Attributes:
        format: form of the unpacked codes.
        fields: byte fields of a block; d is the scale, m the minimum.
        low, high: arguments (bits, width) of `_planes` for the byte fields of the same name.
        centre: number subtracted from every code.
        values: lookup table that the stored codes are indices into, if not empty.
        factors: reads the integers by which d and m are multiplied, for types that store scales of scales.
    """

    format: BlockFormat
    fields: np.dtype[np.void]
    low: tuple[int, int]
    high: tuple[int, int] | None = None
    centre: int = 0
    values: tuple[int, ...] = ()
    factors: Callable[[NDArray[np.void]], _Factors] | None = None

    @property
    def elements(self) -> int:
        return self.fields["low"].itemsize * 8 // self.low[0]


def _planes(packed: NDArray[np.uint8], bits: int, width: int) -> NDArray[np.uint8]:
    """Unpacks small integers: first the lowest `bits` bits of each of `width` bytes, then their next bits, and so on.

    Args:
        packed: (..., bytes) uint8.
        bits: 1, 2, 4 or 8.
        width: number of bytes that are unpacked together, a divisor of the number of bytes.

    Returns:
        (..., bytes * 8 / bits) uint8, a new array.
    """
    *outer, count = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
    planes = packed.reshape(*outer, count // width, 1, width) >> shifts
    planes &= np.uint8(2**bits - 1)
    return planes.reshape(*outer, count * 8 // bits)


def _nibbles(blocks: NDArray[np.void]) -> _Factors:
    """Reads the factors of Q2_K: sixteen bytes, with the scale in the low nibble and the minimum in the high one."""
    return blocks["factors"] & np.uint8(15), blocks["factors"] >> np.uint8(4)


def _six_bits_centred(blocks: NDArray[np.void]) -> _Factors:
    """Reads the factors of Q3_K: sixteen 6-bit scales minus 32; low nibbles in eight bytes, upper bits in four."""
    scales = _planes(blocks["factors"][..., :8], 4, 8) | _planes(blocks["factors"][..., 8:], 2, 4) << np.uint8(4)
    return scales.view(np.int8) - np.int8(32), None


def _six_bits(blocks: NDArray[np.void]) -> _Factors:
    """Reads the factors of Q4_K and Q5_K: eight scales and eight minimums of 6 bits in twelve bytes.

    The first four of each are in the low six bits of bytes 0-3 (scales) and 4-7 (minimums). The last four have their
    low nibbles in bytes 8-11 (scale low, minimum high), and their upper two bits in the upper two bits of bytes 0-7.
    """
    scales, minimums, rest = (blocks["factors"][..., start : start + 4] for start in (0, 4, 8))
    low, top = np.uint8(63), np.uint8(48)
    late_scales = (rest & np.uint8(15)) | ((scales >> np.uint8(2)) & top)
    late_minimums = (rest >> np.uint8(4)) | ((minimums >> np.uint8(2)) & top)
    return np.concatenate([scales & low, late_scales], -1), np.concatenate([minimums & low, late_minimums], -1)


def _signed_bytes(blocks: NDArray[np.void]) -> _Factors:
    """Reads the factors of Q6_K: sixteen signed bytes."""
    return blocks["factors"].view(np.int8), None


def _fields(*fields: tuple[str, int] | str) -> np.dtype[np.void]:
    """Returns the dtype of a block from its fields in order: fp16 by name, byte fields by name and length."""
    return np.dtype([(field, _HALF) if isinstance(field, str) else (field[0], "u1", (field[1],)) for field in fields])


_INT8, _INT4 = BlockFormat(8, 32), BlockFormat(4, 32)
# For types with minimums, codes are centred about zero and the offset compensates: codes of 0..15 then fit four signed
# bits, and a matrix product with the codes is not a small difference of large sums.
_INT8_MINIMUMS = BlockFormat(8, 32, offset=16, has_minimums=True)
_INT4_MINIMUMS = BlockFormat(4, 32, offset=8, has_minimums=True)
_LAYOUTS = {
    "Q8_0": _Layout(_INT8, _fields("d", ("low", 32)), (8, 32)),
    "Q4_0": _Layout(_INT4, _fields("d", ("low", 16)), (4, 16), centre=8),
    "Q4_1": _Layout(_INT4_MINIMUMS, _fields("d", "m", ("low", 16)), (4, 16), centre=8),
    "Q5_0": _Layout(_INT8, _fields("d", ("high", 4), ("low", 16)), (4, 16), (1, 1), centre=16),
    "Q5_1": _Layout(_INT8_MINIMUMS, _fields("d", "m", ("high", 4), ("low", 16)), (4, 16), (1, 1), centre=16),
    "Q2_K": _Layout(
        BlockFormat(4, 16, offset=2, has_minimums=True),
        _fields(("factors", 16), ("low", 64), "d", "m"),
        (2, 32),
        centre=2,
        factors=_nibbles,
    ),
    # The reference subtracts 4 if the high bit is not set. Here the high bit is a third bit of the code, minus 4.
    "Q3_K": _Layout(
        BlockFormat(4, 16),
        _fields(("high", 32), ("low", 64), ("factors", 12), "d"),
        (2, 32),
        (1, 32),
        centre=4,
        factors=_six_bits_centred,
    ),
    "Q4_K": _Layout(
        _INT4_MINIMUMS, _fields("d", "m", ("factors", 12), ("low", 128)), (4, 32), centre=8, factors=_six_bits
    ),
    "Q5_K": _Layout(
        _INT8_MINIMUMS,
        _fields("d", "m", ("factors", 12), ("high", 32), ("low", 128)),
        (4, 32),
        (1, 32),
        centre=16,
        factors=_six_bits,
    ),
    "Q6_K": _Layout(
        BlockFormat(8, 16),
        _fields(("low", 128), ("high", 64), ("factors", 16), "d"),
        (4, 64),
        (2, 32),
        centre=32,
        factors=_signed_bytes,
    ),
    "IQ4_NL": _Layout(_INT8, _fields("d", ("low", 16)), (4, 16), values=_IQ4_NL_VALUES),
}

BLOCK_FORMATS: dict[str, BlockFormat] = {name: layout.format for name, layout in _LAYOUTS.items()}
# Elements per stored block, and its size in bytes.
BLOCK_TYPES: dict[str, tuple[int, int]] = {
    name: (layout.elements, layout.fields.itemsize) for name, layout in _LAYOUTS.items()
}


def split_blocks(raw: NDArray[np.uint8], dtype: str) -> Blocks:
    """Splits rows of quantization blocks into codes, scales and minimums.

    Args:
        raw: (rows, bytes per row) uint8, each row contiguous and made of whole blocks; is not written to.
        dtype: name of the type, a key of BLOCK_FORMATS.

    Returns:
        Codes, scales and minimums in new arrays; scales of scales are multiplied, which is exact in float32 (11 bits
        by at most 8).

    Raises:
        LtxError: a scale or minimum is infinite or NaN.
        ValueError: a row is not a whole number of blocks.
    """
    layout = _LAYOUTS[dtype]
    blocks = np.asarray(raw).view(layout.fields)  # (rows, stored blocks)
    rows = len(blocks)
    scales, minimums = _scales(blocks, layout, dtype)
    return Blocks(
        _codes(blocks, layout).reshape(rows, blocks.shape[1] * layout.elements),
        scales,
        minimums,
        layout.format,
    )


def _codes(blocks: NDArray[np.void], layout: _Layout) -> NDArray[np.int8]:
    """Unpacks codes to (rows, stored blocks, elements) int8, in place: only one temporary of their size is needed."""
    codes = _planes(blocks["low"], *layout.low)
    if layout.high is not None:
        high = _planes(blocks["high"], *layout.high)
        high <<= np.uint8(layout.low[0])
        codes |= high
    signed = codes.view(np.int8)
    if layout.values:
        values = np.array(layout.values, np.int8)
        # Row by row, because numpy converts every index to eight bytes.
        for indices, row in zip(codes, signed, strict=True):
            row[...] = values[indices]
    signed -= np.int8(layout.centre)
    return signed


def _scales(
    blocks: NDArray[np.void], layout: _Layout, dtype: str
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Returns scales and minimums, each (rows, columns / block) float32."""
    scales = _finite(blocks["d"], dtype)
    minimums = _finite(blocks["m"], dtype) if layout.format.has_minimums else None
    if layout.factors is None:
        return scales, minimums
    shape = len(blocks), blocks.shape[1] * layout.elements // layout.format.block
    scale_factors, minimum_factors = layout.factors(blocks)
    scales = (scales[..., None] * scale_factors).reshape(shape)
    if minimums is not None and minimum_factors is not None:
        # Types with scales of scales store the minimum to be subtracted, the others to be added.
        minimums = (-minimums[..., None] * minimum_factors).reshape(shape)
    return scales, minimums


def _finite(halves: NDArray[np.float16], dtype: str) -> NDArray[np.float32]:
    """Converts fp16 scales or minimums to float32.

    Raises:
        LtxError: a value is not finite, which would silently turn whole blocks of the weights into NaN or infinity.
    """
    if not np.isfinite(halves).all():
        bad = halves[~np.isfinite(halves)][0]
        raise LtxError(f"the weights hold a {dtype} block whose scale or minimum is {bad}", "download the file again")
    return halves.astype(np.float32)


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Packs pairs along the last axis into bytes, the first of a pair in the low nibble, as ONNX stores INT4.

    Args:
        codes: (..., columns) int8 in -8..7; bits above the lowest four are dropped.

    Returns:
        (..., columns / 2) uint8.

    Raises:
        ValueError: the number of columns is odd.
    """
    *outer, count = codes.shape
    pairs = codes.view(np.uint8).reshape(*outer, count // 2, 2)
    packed = pairs[..., 1] << np.uint8(4)
    packed |= pairs[..., 0] & np.uint8(15)
    return packed
