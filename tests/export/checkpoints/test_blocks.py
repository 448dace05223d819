"""Splitting of quantization blocks against gguf's dequantized float32 weights; INT4 against onnx and onnx_ir."""

import tracemalloc

import gguf
import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from onnx import numpy_helper

from ltx_export.checkpoints.blocks import BLOCK_FORMATS, BLOCK_TYPES, BlockFormat, Blocks, pack_int4, split_blocks
from ltx_runtime.errors import LtxError

# Byte offsets of a block's fp16 values: the scale, and the minimum or its scale.
HALVES = {
    **{"Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "IQ4_NL": (0,), "Q3_K": (108,), "Q6_K": (208,)},
    **{"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q2_K": (80, 82)},
}
# The smallest and the largest code, before an offset is added.
CODES = {
    **{"Q8_0": (-128, 127), "Q5_0": (-16, 15), "IQ4_NL": (-127, 113), "Q5_1": (-16, 15), "Q5_K": (-16, 15)},
    **{"Q6_K": (-32, 31), "Q4_0": (-8, 7), "Q4_1": (-8, 7), "Q4_K": (-8, 7), "Q3_K": (-4, 3), "Q2_K": (-2, 1)},
}
FORMATS = {
    **dict.fromkeys(("Q8_0", "Q5_0", "IQ4_NL"), BlockFormat(8, 32)),
    **dict.fromkeys(("Q5_1", "Q5_K"), BlockFormat(8, 32, 16, True)),
    "Q6_K": BlockFormat(8, 16),
    "Q4_0": BlockFormat(4, 32),
    **dict.fromkeys(("Q4_1", "Q4_K"), BlockFormat(4, 32, 8, True)),
    "Q3_K": BlockFormat(4, 16),
    "Q2_K": BlockFormat(4, 16, 2, True),
}
NUMBERS = np.arange(1 << 16, dtype=np.uint16)
FINITE = NUMBERS[np.isfinite(NUMBERS.view(np.float16))]
# Zero, subnormals, the smallest normal number, one, and the largest number in fp16, with both signs.
REMARKABLE = np.array([h | s for h in (0, 1, 2, 0x3FF, 0x400, 0x3C00, 0x7BFF) for s in (0, 0x8000)], np.uint16)
SCALES_ONLY = [dtype for dtype, form in FORMATS.items() if not (form.offset or form.has_minimums)]
FOUR_BITS = [dtype for dtype, form in FORMATS.items() if form.bits == 4]
EVERY_TYPE = pytest.mark.parametrize("dtype", HALVES)
QUANTIZABLE = pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])


def random_blocks(dtype: str, rows: int, per_row: int, seed: int = 0) -> np.ndarray:
    """Returns rows of random blocks (rows, bytes) whose fp16 values are finite, with all exponents and both signs."""
    random = np.random.default_rng(seed)
    size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]][1]
    blocks = random.integers(0, 256, (rows * per_row, size), np.uint8)
    for at in HALVES[dtype]:
        halves = random.choice(FINITE, len(blocks))
        remarkable = random.random(len(blocks)) < 0.3
        halves[remarkable] = random.choice(REMARKABLE, remarkable.sum())
        blocks[:, at : at + 2] = halves.astype("<u2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, per_row * size)


def expected(raw: np.ndarray, dtype: str) -> np.ndarray:
    return gguf.quants.dequantize(raw, GGMLQuantizationType[dtype])


def joined(blocks: Blocks) -> np.ndarray:
    """Dequantizes blocks in float64, where no step rounds, and rounds to float32 at the end."""
    scales = np.repeat(blocks.scales.astype(np.float64), blocks.format.block, axis=1)
    values = blocks.codes * scales + blocks.format.offset * scales
    if blocks.minimums is not None:
        values += np.repeat(blocks.minimums.astype(np.float64), blocks.format.block, axis=1)
    return values.astype(np.float32)


def assert_lossless(raw: np.ndarray, dtype: str) -> Blocks:
    blocks = split_blocks(raw, dtype)
    np.testing.assert_array_equal(joined(blocks), expected(raw, dtype), strict=True)
    return blocks


@EVERY_TYPE
@pytest.mark.parametrize(("rows", "per_row"), [(1, 1), (1, 5), (7, 1), (3, 4), (40, 3)])
def test_blocks_joined_again_are_the_weights_that_gguf_makes_to_the_last_bit(dtype, rows, per_row):
    blocks = assert_lossless(random_blocks(dtype, rows, per_row, seed=rows), dtype)
    columns = per_row * GGML_QUANT_SIZES[GGMLQuantizationType[dtype]][0]
    assert blocks.codes.shape == (rows, columns)
    assert blocks.scales.shape == (rows, columns // blocks.format.block)
    assert (blocks.codes.dtype, blocks.scales.dtype) == (np.int8, np.float32)
    assert (blocks.minimums is not None) == blocks.format.has_minimums
    if blocks.minimums is not None:
        assert (blocks.minimums.shape, blocks.minimums.dtype) == (blocks.scales.shape, np.float32)


@EVERY_TYPE
def test_no_scale_that_a_half_can_say_loses_a_bit(dtype):
    """Takes every seventh finite fp16 value as a scale, and the same values in another order as minimums."""
    halves = FINITE[::7]
    raw = random_blocks(dtype, len(halves), 1)
    for at, values in zip(HALVES[dtype], (halves, np.random.default_rng(1).permutation(halves)), strict=False):
        raw[:, at : at + 2] = values.astype("<u2").view(np.uint8).reshape(-1, 2)
    assert_lossless(raw, dtype)


@pytest.mark.parametrize("dtype", SCALES_ONLY)
def test_float32_alone_is_exact_where_there_is_nothing_to_add(dtype):
    raw = random_blocks(dtype, 30, 4)
    blocks = split_blocks(raw, dtype)
    scales = np.repeat(blocks.scales, blocks.format.block, axis=1)
    np.testing.assert_array_equal(blocks.codes.astype(np.float32) * scales, expected(raw, dtype), strict=True)


@QUANTIZABLE
def test_weights_that_gguf_quantized_keep_what_it_made_of_them(dtype):
    weights = np.random.default_rng(2).standard_normal((48, 512), np.float32) * 0.05
    raw = gguf.quants.quantize(weights, GGMLQuantizationType[dtype])
    error = np.abs(joined(assert_lossless(raw, dtype)) - weights).max()
    assert 0 < error < 0.02


@EVERY_TYPE
def test_codes_fill_the_range_of_their_type_and_fit_the_signed_bits_of_their_format(dtype):
    blocks = split_blocks(random_blocks(dtype, 50, 8), dtype)
    assert (blocks.codes.min(), blocks.codes.max()) == CODES[dtype]
    limit = 1 << (blocks.format.bits - 1)
    assert -limit <= blocks.codes.min() <= blocks.codes.max() < limit


def test_formats_are_those_that_every_type_can_be_held_in():
    assert BLOCK_FORMATS == FORMATS


def test_block_sizes_are_those_of_gguf():
    assert {name: GGML_QUANT_SIZES[GGMLQuantizationType[name]] for name in HALVES} == BLOCK_TYPES


@EVERY_TYPE
def test_a_part_of_the_rows_gives_that_part_of_the_blocks(dtype):
    raw = random_blocks(dtype, 9, 2)
    whole, part = split_blocks(raw, dtype), split_blocks(raw[4:7], dtype)
    np.testing.assert_array_equal(part.codes, whole.codes[4:7])
    np.testing.assert_array_equal(part.scales, whole.scales[4:7])
    assert part.minimums is None or np.array_equal(part.minimums, whole.minimums[4:7])


@EVERY_TYPE
def test_bytes_that_must_not_be_written_to_are_neither_changed_nor_kept(dtype, tmp_path):
    random_blocks(dtype, 6, 2).tofile(tmp_path / "raw")
    mapped = np.memmap(tmp_path / "raw", np.uint8, mode="r").reshape(6, -1)
    blocks = assert_lossless(mapped, dtype)
    for part in (blocks.codes, blocks.scales, blocks.minimums):
        assert part is None or type(part) is np.ndarray
        assert part is None or (part.flags.writeable and part.flags.c_contiguous)
        assert part is None or not np.shares_memory(part, mapped)


@EVERY_TYPE
def test_taking_apart_needs_little_more_memory_than_the_codes(dtype):
    """The peak is about two bytes per weight plus the scales; float32 weights alone would take four bytes."""
    raw = random_blocks(dtype, 64, 64)
    split_blocks(raw, dtype)
    tracemalloc.start()
    blocks = split_blocks(raw, dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.3 * blocks.codes.nbytes + 4 * blocks.scales.nbytes


@EVERY_TYPE
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_scale_or_minimum_that_is_not_finite_is_refused(dtype, bad):
    for at in HALVES[dtype]:
        raw = random_blocks(dtype, 3, 2)
        raw[-1, at : at + 2] = np.array([bad], "<f2").view(np.uint8)
        with pytest.raises(LtxError, match=rf"{dtype} block.* is -?(inf|nan) - "):
            split_blocks(raw, dtype)


@EVERY_TYPE
def test_rows_that_are_no_whole_blocks_are_a_mistake(dtype):
    with pytest.raises(ValueError):
        split_blocks(random_blocks(dtype, 3, 2)[:, :-1].copy(), dtype)


@pytest.mark.parametrize("shape", [(2,), (16,), (3, 8), (4, 3, 2), (5, 0), (0, 4)])
def test_int4_is_packed_as_onnx_packs_it(shape):
    codes = np.random.default_rng(3).integers(-8, 8, shape, np.int8)
    packed = pack_int4(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (*shape[:-1], shape[-1] // 2)
    small = codes.astype(ml_dtypes.int4)
    assert packed.tobytes() == numpy_helper.from_array(small).raw_data
    assert packed.tobytes() == ir.Tensor(small).tobytes()


def test_every_pair_of_int4_comes_back_from_onnx():
    codes = np.array([(a, b) for a in range(-8, 8) for b in range(-8, 8)], np.int8)
    tensor = numpy_helper.from_array(np.zeros(codes.shape, ml_dtypes.int4))
    tensor.raw_data = pack_int4(codes).tobytes()
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)


@pytest.mark.parametrize("dtype", FOUR_BITS)
def test_codes_of_four_bits_survive_packing(dtype):
    codes = split_blocks(random_blocks(dtype, 5, 3), dtype).codes
    tensor = ir.Tensor(codes.astype(ml_dtypes.int4))
    np.testing.assert_array_equal(tensor.numpy().astype(np.int8), codes)
    assert pack_int4(codes).tobytes() == tensor.tobytes()


def test_an_odd_number_of_codes_is_not_packed():
    for shape in ((3,), (4, 3), (1,)):
        with pytest.raises(ValueError):
            pack_int4(np.zeros(shape, np.int8))
