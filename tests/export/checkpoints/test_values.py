"""Conversion of stored bytes to and from float32, bit for bit as torch: every code, every tie, and any float."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from samples.gguf_files import QUANTIZED, random_blocks

from ltx_export.checkpoints.values import READ_DTYPES, float32_of, rows_of
from ltx_runtime.errors import LtxError
from ltx_runtime.weights.checkpoint import StoredTensor
from ltx_runtime.weights.floats import FLOAT_DTYPES, stored_as

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TORCH |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
FP8_DTYPES = pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
NUMBERS = np.arange(1 << 16, dtype=np.uint16)
HALF_DTYPES = pytest.mark.parametrize("dtype", ["F16", "BF16"])


@pytest.fixture
def stored(tmp_path):
    """Returns a tensor of these bytes in the middle of a file."""

    def of(data: np.ndarray, dtype: str, *shape: int) -> StoredTensor:
        (tmp_path / "file").write_bytes(b"\xff" * 13 + data.tobytes() + b"\xff" * 5)
        return StoredTensor(tmp_path / "file", 13, data.nbytes, dtype, shape)

    return of


def torch_rounds(values: np.ndarray, dtype: str) -> np.ndarray:
    """Returns the uint16 codes to which torch rounds float32 values."""
    return torch.from_numpy(values).to(TORCH[dtype]).view(torch.int16).numpy().view(np.uint16)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return stored_as(values, dtype, "x").view("<u2")


def floats(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits, np.uint32).view(np.float32)


def assert_same_codes(values: np.ndarray, dtype: str) -> None:
    """Checks that our codes are torch's; a NaN only has to stay a NaN of the same sign."""
    ours, theirs = rounded(values, dtype), torch_rounds(values, dtype)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(ours[numbers], theirs[numbers])
    infinity = 0x7C00 if dtype == "F16" else 0x7F80
    assert ((ours[~numbers] & 0x7FFF) > infinity).all()
    np.testing.assert_array_equal(ours >> 15, values.view(np.uint32) >> 31)


@FP8_DTYPES
def test_every_code_of_fp8_is_read_as_torch_reads_it(stored, dtype):
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(TORCH[dtype]).float().numpy()
    values = float32_of(stored(codes, dtype, 16, 16)).reshape(-1)
    np.testing.assert_array_equal(values, expected, strict=True)
    np.testing.assert_array_equal(np.signbit(values), codes >= 128)
    assert np.isnan(values).sum() == {"F8_E4M3": 2, "F8_E5M2": 6}[dtype]


@FP8_DTYPES
def test_bf16_holds_every_code_of_fp8_exactly(stored, dtype):
    codes = np.arange(256, dtype=np.uint8)
    values = float32_of(stored(codes, dtype, 256))
    kept = float32_of(stored(stored_as(values, "BF16", "x"), "BF16", 256))
    np.testing.assert_array_equal(kept, values, strict=True)
    assert_same_codes(values, "BF16")


@HALF_DTYPES
def test_every_code_of_a_half_is_read_as_torch_reads_it_and_written_back(stored, dtype):
    expected = torch.from_numpy(NUMBERS.view(np.int16)).view(TORCH[dtype]).float().numpy()
    values = float32_of(stored(NUMBERS, dtype, 256, 256)).reshape(-1)
    np.testing.assert_array_equal(values, expected, strict=True)
    np.testing.assert_array_equal(np.signbit(values), NUMBERS >= 1 << 15)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(rounded(values, dtype)[numbers], NUMBERS[numbers])
    assert_same_codes(values, dtype)


def test_bf16_rounds_every_tie_and_its_neighbours_as_torch_does():
    """Checks the ties between every two codes: the largest round to infinity, the smallest are subnormal."""
    for below in (0x7FFF, 0x8000, 0x8001, 0xFFFF, 1):
        assert_same_codes(floats(NUMBERS.astype(np.uint32) << 16 | below), "BF16")


def test_fp16_rounds_every_tie_and_its_neighbours_as_torch_does():
    halves = NUMBERS[: 0x7C00 - 1].view(np.float16).astype(np.float32)  # all finite ones but the largest
    ties = (halves + NUMBERS[1:0x7C00].view(np.float16).astype(np.float32)) / 2
    around = np.concatenate([np.nextafter(ties, np.float32(0)), ties, np.nextafter(ties, np.float32(np.inf))])
    assert_same_codes(np.concatenate([around, -around]), "F16")


def test_bf16_rounds_random_floats_of_every_exponent_as_torch_does():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32)
    assert_same_codes(floats(bits), "BF16")


def test_fp16_rounds_random_floats_of_every_exponent_as_torch_does():
    values = floats(np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, np.uint32))
    assert_same_codes(values[~(np.abs(values) >= 65520) | np.isinf(values)], "F16")


@HALF_DTYPES
def test_what_is_no_number_or_infinite_stays_so(dtype):
    bits = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7F80FFFF, 0x7F800000]
    values = floats(np.array(bits + [one | 1 << 31 for one in bits]))
    assert_same_codes(values, dtype)


def test_float32_keeps_every_bit():
    bits = np.random.default_rng(2).integers(0, 1 << 32, 1 << 12, np.uint32)
    assert stored_as(floats(bits), "F32", "x").tobytes() == bits.tobytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_what_would_become_infinite_in_fp16_is_refused_by_name_and_what_would_not_is_rounded(sign):
    limit = np.float32(65520)  # halfway between the largest fp16 number and what would be the next one
    for value in (limit, np.float32(1e5), np.float32(3e38)):
        with pytest.raises(LtxError, match=r"some\.weight has values beyond fp16's 65504 - .*bf16") as refused:
            stored_as(np.array([0, sign * value], np.float32), "F16", "some.weight")
        assert "\n" not in str(refused.value)
    largest = np.nextafter(limit, np.float32(0))
    assert stored_as(np.array([sign * largest]), "F16", "x").view("<f2") == sign * 65504


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_values_in_any_order_of_memory_are_stored_in_that_of_their_shape(dtype):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (values.T, values[:, ::2], values[::-1]):
        assert stored_as(view, dtype, "x").tobytes() == stored_as(view.copy(), dtype, "x").tobytes()


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, "F8_E4M3"])
def test_rows_are_those_of_the_whole(stored, dtype):
    values = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0)).to(TORCH[dtype])
    tensor = stored(values.view(torch.uint8).numpy(), dtype, 7, 3, 2)
    np.testing.assert_array_equal(float32_of(tensor), values.float().numpy(), strict=True)
    assert rows_of(tensor) == 7
    for start, stop in ((0, 1), (2, 5), (6, 7), (3, 3)):
        np.testing.assert_array_equal(float32_of(tensor, start, stop), values[start:stop].float().numpy(), strict=True)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_quantized_values_are_those_of_gguf_for_vectors_and_rows_of_any_number_of_axes(stored, dtype):
    raw = random_blocks(dtype, 6, 512, 1.0, seed=3)
    expected = gguf.quants.dequantize(raw, GGMLQuantizationType[dtype])
    for shape in ((6, 512), (6 * 512,), (3, 2, 512), (2, 3, 1, 512)):
        tensor = stored(raw, dtype, *shape)
        np.testing.assert_array_equal(float32_of(tensor), expected.reshape(shape), strict=True)
        assert rows_of(tensor) == (shape[0] if len(shape) > 1 else 1)
    np.testing.assert_array_equal(float32_of(stored(raw, dtype, 6, 512), 2, 5), expected[2:5], strict=True)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_single_number_has_no_axes(stored, dtype):
    value = float32_of(stored(stored_as(np.array(2.5, np.float32), dtype, "x"), dtype))
    assert (value.shape, float(value)) == ((), 2.5)


@pytest.mark.parametrize("dtype", ["I64", "I8", "U8", "F64", "F8_E8M0", "BOOL"])
def test_what_no_weights_are_stored_in_is_refused_with_all_that_is_read(stored, dtype):
    with pytest.raises(LtxError) as refused:
        float32_of(stored(np.zeros(8, np.uint8), dtype, 1))
    floats = [name for name in READ_DTYPES if name.startswith(("F", "BF"))]
    assert str(refused.value).endswith(f" stores weights as {dtype} - use one in {', '.join(floats)}, or a GGUF")
