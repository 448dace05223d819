"""Laws of torch's random numbers, against a second implementation in plain Python and numbers that torch has drawn."""

import math
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

from ltx_runtime.noise.torch_random import TorchGenerator

SEEDS = (0, 171198, 2**32 - 1, 2**63 + 5)
WITHIN = 1e-6  # tolerance to the numbers of torch
ROUNDED = 4e-6  # tolerance to the exact transform: angles up to 2 pi in float32 times radii up to 5.8

# From torch 2.13.0 on a processor with AVX2: torch.manual_seed(0), then these draws one after another.
TORCH_DRAWS = {
    5: [1.54099607, -0.293428898, -2.17878938, 0.568431258, -1.08452237],
    20: [
        *(-0.0885314271, 0.523883283, -0.665871322, 0.850377381, -0.613583088, 0.0315927416, -0.492676973),
        *(0.248414755, 0.439695835, 0.112411186, 0.64079237, 0.441156268, -0.102309652, 0.792443991),
        *(-0.289667696, 0.0525074862, 0.522860467, 2.30220532, -1.46889389, -1.58668876),
    ],
    2: [-1.39859545, 0.191869423],
}
TORCH_UNIFORMS = [0.698441088, 0.567546427, 0.835243165]  # torch.rand(3) after these draws
# torch.randn(3, 6) with torch.Generator().manual_seed(2**64 - 1).
TORCH_LARGE_SEED = [
    *(-2.66429758, -1.0910486, -1.64603913, -0.538258553, 0.30621922, 0.424003005),
    *(0.265636146, -3.14929533, -2.84376431, 0.946320117, -0.340290517, -0.32600823),
    *(-0.0296445042, 0.383217037, -0.160953194, 1.96789145, 1.62438321, -1.11376548),
]
# torch.empty(2, 3, 3).permute(2, 0, 1).normal_() with torch.Generator().manual_seed(42).
TORCH_PERMUTED = [
    *(0.336690366, 0.23033303, 2.20820141, 0.267350882, 1.11029029, 0.957971811),
    *(0.128809407, -1.12285638, -0.637997031, 0.534904659, -1.68979895, 1.32213509),
    *(0.234462366, -0.186328292, 0.461657226, 0.809357226, -0.988959908, 0.817189753),
]


def twister(seed: int) -> Iterator[int]:
    """Yields the words of MT19937 seeded by `init_genrand`, as its authors publish it, with a seed's lower 32 bits."""
    state = [seed & 0xFFFFFFFF]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    while True:
        yield generator.getrandbits(32)


def long_uniform(words: Iterator[int]) -> float:
    upper, lower = next(words), next(words)
    return ((upper << 32 | lower) & (1 << 53) - 1) / 2**53


def block(words: Iterator[int]) -> list[float]:
    """Draws 16 normals at once: the first eight uniforms give radii, the others angles; cosines come before sines."""
    fractions = [(next(words) & 0xFFFFFF) / 2**24 for _ in range(16)]
    radii = [math.sqrt(-2 * math.log(1 - u)) for u in fractions[:8]]
    angles = [2 * math.pi * u for u in fractions[8:]]
    return [r * turn(a) for turn in (math.cos, math.sin) for r, a in zip(radii, angles, strict=True)]


def pairs(words: Iterator[int]) -> Iterator[float]:
    """Draws normals one by one: of every two uniforms the first gives the angle, the second the radius."""
    while True:
        angle, height = 2 * math.pi * long_uniform(words), long_uniform(words)
        radius = math.sqrt(-2 * math.log1p(-height))
        yield radius * math.cos(angle)
        yield radius * math.sin(angle)


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_those_of_the_mersenne_twister(seed):
    words = twister(seed)
    generator = TorchGenerator(seed)
    assert generator.words(700).tolist() == [next(words) for _ in range(700)]
    assert generator.long_words(9).tolist() == [next(words) << 32 | next(words) for _ in range(9)]


def test_a_seed_counts_by_its_lower_32_bits_alone():
    one, other = TorchGenerator(7), TorchGenerator(7 + (123 << 32))
    np.testing.assert_array_equal(one.words(5), other.words(5))
    assert TorchGenerator(8).words(1) != TorchGenerator(7).words(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_uniforms_are_the_lower_bits_of_words(seed):
    words, generator = twister(seed), TorchGenerator(seed)
    short, long = generator.uniforms((3, 4)), generator.long_uniforms((5,))
    assert (short.dtype, long.dtype) == (np.float32, np.float64)
    assert short.reshape(-1).tolist() == [(next(words) & 0xFFFFFF) / 2**24 for _ in range(12)]
    assert long.tolist() == [long_uniform(words) for _ in range(5)]


@pytest.mark.parametrize("seed", SEEDS)
def test_sixteen_and_more_normals_are_made_in_blocks(seed):
    words, generator = twister(seed), TorchGenerator(seed)
    drawn = generator.normals((4, 8))
    assert (drawn.dtype, drawn.shape) == (np.float32, (4, 8))
    np.testing.assert_allclose(drawn.reshape(-1), block(words) + block(words), rtol=0, atol=ROUNDED)


def test_a_rest_of_the_last_block_makes_the_last_sixteen_be_drawn_once_more():
    words, drawn = twister(3), TorchGenerator(3).normals((37,))
    expected = block(words) + block(words)
    for _ in range(5):
        next(words)
    expected = expected[:21] + block(words)
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("seed", SEEDS)
def test_fewer_normals_are_made_in_pairs_of_which_one_may_wait(seed):
    normals, generator = pairs(twister(seed)), TorchGenerator(seed)
    for count in (3, 1, 1, 2, 0, 15, 1, 5, 4):
        drawn = generator.normals((count,))
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, [next(normals) for _ in range(count)], rtol=1e-6)


def test_a_normal_that_waits_is_not_touched_by_blocks_and_uniforms():
    words, generator = twister(9), TorchGenerator(9)
    normals = pairs(words)
    np.testing.assert_allclose(generator.normals((1,)), [next(normals)], rtol=1e-6)
    np.testing.assert_allclose(generator.normals((16,)), block(words), rtol=0, atol=ROUNDED)
    assert generator.uniforms((1,)).tolist() == [(next(words) & 0xFFFFFF) / 2**24]
    np.testing.assert_allclose(generator.normals((3,)), [next(normals) for _ in range(3)], rtol=1e-6)


def test_a_tensor_whose_axes_lie_in_another_order_is_filled_one_by_one_in_the_order_of_its_memory():
    shape, memory = (2, 5, 3, 4), (0, 2, 3, 1)
    normals, drawn = pairs(twister(1)), TorchGenerator(1).normals(shape, memory)
    laid = np.reshape([next(normals) for _ in range(120)], (2, 3, 4, 5))
    assert drawn.flags.c_contiguous
    np.testing.assert_allclose(drawn, np.moveaxis(laid, -1, 1), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 17, 1, 1), (1, 1, 6, 7), (1, 20, 1, 1)])
def test_axes_of_one_element_have_no_place_in_memory(shape):
    drawn, plain = (TorchGenerator(1).normals(shape, memory) for memory in ((0, 2, 3, 1), None))
    np.testing.assert_array_equal(drawn, plain)


def test_no_elements_take_no_words():
    generator = TorchGenerator(4)
    assert generator.normals((0, 3)).shape == (0, 3)
    assert generator.uniforms((2, 0)).shape == (2, 0)
    assert generator.words(1) == TorchGenerator(4).words(1)


def test_a_draw_without_axes_is_one_number():
    assert TorchGenerator(4).normals(()) == TorchGenerator(4).normals((1,))[0]


def test_the_numbers_are_those_that_torch_has_drawn():
    generator = TorchGenerator(0)
    for count, expected in TORCH_DRAWS.items():
        np.testing.assert_allclose(generator.normals((count,)), expected, rtol=0, atol=WITHIN)
    np.testing.assert_array_equal(generator.uniforms((3,)), np.float32(TORCH_UNIFORMS))
    large = TorchGenerator(2**64 - 1).normals((3, 6)).reshape(-1)
    np.testing.assert_allclose(large, TORCH_LARGE_SEED, rtol=0, atol=WITHIN)
    permuted = TorchGenerator(42).normals((3, 2, 3), (1, 2, 0)).reshape(-1)
    np.testing.assert_allclose(permuted, TORCH_PERMUTED, rtol=0, atol=WITHIN)


@pytest.mark.parametrize("memory", [None, (0, 2, 3, 4, 1)])
def test_normals_have_mean_zero_and_unit_variance_and_those_of_a_large_video_take_no_time(memory):
    generator = TorchGenerator(7)
    start = time.perf_counter()
    drawn = generator.normals((1, 128, 16, 22, 38), memory).astype(np.float64)
    assert time.perf_counter() - start < 2
    assert abs(drawn.mean()) < 5 / math.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / drawn.size)
