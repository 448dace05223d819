"""Quantized blocks -> integer codes with block scales, the form in which ONNX keeps low-bit weights. Exact: no bit of a
weight is lost or invented.

Stands between a GGUF file's bytes and a graph's initializers. Knows nothing of files, names or graphs. The layouts are
those of the reference implementation in Python (`gguf/quants.py` of the package gguf, 0.19).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError

_HALF = "<f2"
_IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class BlockFormat:
    """What the codes of a type look like: `block` consecutive elements of a row share a scale."""

    bits: int
    block: int
    offset: int = 0
    has_minimums: bool = False


@dataclass(frozen=True)
class Blocks:
    """A weight matrix: value = codes * scale + offset * scale + minimum, exactly, then rounded once to float32.

    codes: (rows, columns) int8, within the signed range of `format.bits`. scales: (rows, columns / block) float32.
    minimums: as scales, and already signed: they are added; None where the format has none.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    minimums: NDArray[np.float32] | None
    format: BlockFormat


_Integers = NDArray[np.uint8] | NDArray[np.int8]
_Factors = tuple[_Integers, _Integers | None]


@dataclass(frozen=True)
class _Layout:
    """How one block is stored. A code is `low`, with `high` (if any) as the bits above it, less `centre`.

    low, high: (bits, width) of the byte fields of the same name, see `_planes`. values: what codes are indices into.
    factors: field of integers by which d and m are multiplied, for types that store scales of scales.
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
    """Unpacks small integers: of every `width` bytes the lowest `bits` bits come first, then the next ones, and so on.

    Args:
        packed: (..., bytes) uint8.
        bits: 1, 2, 4 or 8.
        width: how many bytes are gone through before their next bits follow.

    Returns:
        (..., bytes * 8 / bits) uint8 in its own memory.
    """
    *outer, count = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
    planes = packed.reshape(*outer, count // width, 1, width) >> shifts
    planes &= np.uint8(2**bits - 1)
    return planes.reshape(*outer, count * 8 // bits)


def _nibbles(blocks: NDArray[np.void]) -> _Factors:
    """Q2_K: sixteen bytes, the scale in the low nibble, the minimum in the high one."""
    return blocks["factors"] & np.uint8(15), blocks["factors"] >> np.uint8(4)


def _six_bits_centred(blocks: NDArray[np.void]) -> _Factors:
    """Q3_K: sixteen scales of 6 bits less 32; low nibbles in eight bytes, then the upper pairs of bits in four."""
    scales = _planes(blocks["factors"][..., :8], 4, 8) | _planes(blocks["factors"][..., 8:], 2, 4) << np.uint8(4)
    return scales.view(np.int8) - np.int8(32), None


def _six_bits(blocks: NDArray[np.void]) -> _Factors:
    """Q4_K, Q5_K: eight scales and eight minimums of 6 bits in twelve bytes.

    The first four of each are whole, in the low bits of bytes 0-3 (scales) and 4-7 (minimums). The last four have their
    low nibbles in bytes 8-11 (scale below, minimum above), and their upper two bits on top of the first four.
    """
    scales, minimums, rest = (blocks["factors"][..., at : at + 4] for at in (0, 4, 8))
    low, top = np.uint8(63), np.uint8(48)
    late_scales = (rest & np.uint8(15)) | ((scales >> np.uint8(2)) & top)
    late_minimums = (rest >> np.uint8(4)) | ((minimums >> np.uint8(2)) & top)
    return np.concatenate([scales & low, late_scales], -1), np.concatenate([minimums & low, late_minimums], -1)


def _signed_bytes(blocks: NDArray[np.void]) -> _Factors:
    """Q6_K: sixteen signed bytes."""
    return blocks["factors"].view(np.int8), None


def _fields(*fields: tuple[str, int] | str) -> np.dtype[np.void]:
    """The bytes of a block in order: halves by name, byte fields by name and length."""
    return np.dtype([(field, _HALF) if isinstance(field, str) else (field[0], "u1", (field[1],)) for field in fields])


_EIGHT, _FOUR = BlockFormat(8, 32), BlockFormat(4, 32)
# Where a minimum is added, codes are stored about zero, and the offset gives the difference back: so 0..15 fit four
# signed bits, and a product of codes is not the small difference of large sums.
_EIGHT_MINIMUMS = BlockFormat(8, 32, offset=16, has_minimums=True)
_FOUR_MINIMUMS = BlockFormat(4, 32, offset=8, has_minimums=True)
_LAYOUTS = {
    "Q8_0": _Layout(_EIGHT, _fields("d", ("low", 32)), (8, 32)),
    "Q4_0": _Layout(_FOUR, _fields("d", ("low", 16)), (4, 16), centre=8),
    "Q4_1": _Layout(_FOUR_MINIMUMS, _fields("d", "m", ("low", 16)), (4, 16), centre=8),
    "Q5_0": _Layout(_EIGHT, _fields("d", ("high", 4), ("low", 16)), (4, 16), (1, 1), centre=16),
    "Q5_1": _Layout(_EIGHT_MINIMUMS, _fields("d", "m", ("high", 4), ("low", 16)), (4, 16), (1, 1), centre=16),
    "Q2_K": _Layout(
        BlockFormat(4, 16, offset=2, has_minimums=True),
        _fields(("factors", 16), ("low", 64), "d", "m"),
        (2, 32),
        centre=2,
        factors=_nibbles,
    ),
    # A set high bit means that nothing is subtracted, which is the same as a third bit above, less 4.
    "Q3_K": _Layout(
        BlockFormat(4, 16),
        _fields(("high", 32), ("low", 64), ("factors", 12), "d"),
        (2, 32),
        (1, 32),
        centre=4,
        factors=_six_bits_centred,
    ),
    "Q4_K": _Layout(
        _FOUR_MINIMUMS, _fields("d", "m", ("factors", 12), ("low", 128)), (4, 32), centre=8, factors=_six_bits
    ),
    "Q5_K": _Layout(
        _EIGHT_MINIMUMS,
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
    "IQ4_NL": _Layout(_EIGHT, _fields("d", ("low", 16)), (4, 16), values=_IQ4_NL_VALUES),
}

BLOCK_FORMATS: dict[str, BlockFormat] = {name: layout.format for name, layout in _LAYOUTS.items()}
# Elements per stored block, and the bytes it takes.
BLOCK_TYPES: dict[str, tuple[int, int]] = {
    name: (layout.elements, layout.fields.itemsize) for name, layout in _LAYOUTS.items()
}


def split_blocks(raw: NDArray[np.uint8], dtype: str) -> Blocks:
    """Takes rows of quantized blocks apart.

    Args:
        raw: (rows, bytes per row) uint8, each row contiguous and whole blocks; is not written to.
        dtype: name of the type, a key of BLOCK_FORMATS.

    Returns:
        Codes, scales and minimums in memory of their own; scales of scales are multiplied out, which float32 does
        exactly (11 bits by at most 8).

    Raises:
        LtxError: a scale or minimum is infinite or no number.
        ValueError: rows are no whole blocks.
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
    """(rows, stored blocks, elements) int8. Works in place: beside the codes there is one temporary of their size."""
    codes = _planes(blocks["low"], *layout.low)
    if layout.high is not None:
        high = _planes(blocks["high"], *layout.high)
        high <<= np.uint8(layout.low[0])
        codes |= high
    signed = codes.view(np.int8)
    if layout.values:
        values = np.array(layout.values, np.int8)
        # Row by row, for numpy makes eight bytes of every index.
        for of_row, row in zip(codes, signed, strict=True):
            row[...] = values[of_row]
    signed -= np.int8(layout.centre)
    return signed


def _scales(
    blocks: NDArray[np.void], layout: _Layout, dtype: str
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Scales and minimums, each (rows, columns / block) float32."""
    scales = _finite(blocks["d"], dtype)
    minimums = _finite(blocks["m"], dtype) if layout.format.has_minimums else None
    if layout.factors is None:
        return scales, minimums
    shape = len(blocks), blocks.shape[1] * layout.elements // layout.format.block
    by_scales, by_minimums = layout.factors(blocks)
    scales = (scales[..., None] * by_scales).reshape(shape)
    if minimums is not None and by_minimums is not None:
        # With scales of scales the minimum is stored to be subtracted, without them to be added.
        minimums = (-minimums[..., None] * by_minimums).reshape(shape)
    return scales, minimums


def _finite(halves: NDArray[np.float16], dtype: str) -> NDArray[np.float32]:
    """The halves as float32; what is not finite would turn whole blocks of the weights into NaN without a word."""
    if not np.isfinite(halves).all():
        bad = halves[~np.isfinite(halves)][0]
        raise LtxError(f"the weights hold a {dtype} block whose scale or minimum is {bad}", "download the file again")
    return halves.astype(np.float32)


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Packs pairs along the last axis into bytes, the first of a pair in the low nibble, as ONNX stores INT4.

    Args:
        codes: (..., an even number) int8 of -8..7; bits above the fourth are dropped.

    Returns:
        (..., half of that) uint8.

    Raises:
        ValueError: the last axis is odd.
    """
    *outer, count = codes.shape
    pairs = codes.view(np.uint8).reshape(*outer, count // 2, 2)
    packed = pairs[..., 1] << np.uint8(4)
    packed |= pairs[..., 0] & np.uint8(15)
    return packed
