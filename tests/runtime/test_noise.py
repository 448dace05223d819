"""Laws of noise, and a second implementation of its generator (Mersenne Twister, polar method) in plain Python."""

import math
import random
from typing import get_args

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.noise import NoiseStream, Purpose

PURPOSES = get_args(Purpose)
NUMBERS = {"latents": 0, "step": 1, "decode": 2, "decoder_maps": 3}
WORD = 0xFFFFFFFF


def twister(key: list[int]) -> random.Random:
    """MT19937 seeded by `init_by_array` as its authors publish it."""
    state = [19650218]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & WORD)
    i = 1
    for k in range(624):
        state[i] = (
            (state[i] ^ (state[i - 1] ^ state[i - 1] >> 30) * 1664525) + key[k % len(key)] + k % len(key)
        ) & WORD
        i += 1
        if i == 624:
            state[0], i = state[623], 1
    for _ in range(623):
        state[i] = ((state[i] ^ (state[i - 1] ^ state[i - 1] >> 30) * 1566083941) - i) & WORD
        i += 1
        if i == 624:
            state[0], i = state[623], 1
    state[0] = 0x80000000
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    return generator


def normals(seed: int, purpose: int, count: int) -> list[float]:
    """Marsaglia's polar method; of each pair the second value comes first."""
    generator = twister([seed & WORD, seed >> 32, purpose])
    values: list[float] = []
    while len(values) < count:
        x, y = (2 * generator.random() - 1 for _ in range(2))
        square = x * x + y * y
        if 0 < square < 1:
            factor = math.sqrt(-2 * math.log(square) / square)
            values += [factor * y, factor * x]
    return values[:count]


def test_the_reference_twister_is_the_one_of_the_python_standard_library():
    seed = 0x123456789ABCDEF01
    key = [seed >> shift & WORD for shift in (0, 32, 64)]
    assert twister(key).random() == random.Random(seed).random()


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("seed", [0, 1, 171198, 2**32, 2**64 - 1])
def test_noise_is_what_a_second_implementation_draws(seed, purpose):
    drawn = NoiseStream(seed, purpose).draw((3, 67))
    assert drawn.dtype == np.float32
    expected = np.reshape(normals(seed, NUMBERS[purpose], 201), (3, 67))
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_noise_has_mean_zero_and_unit_variance(purpose):
    drawn = NoiseStream(7, purpose).draw((100_000,)).astype(np.float64)
    assert abs(drawn.mean()) < 5 / math.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / drawn.size)


def test_a_stream_goes_on_where_the_last_draw_ended():
    pieces, whole = NoiseStream(5, "step"), NoiseStream(5, "step").draw((18,))
    drawn = [pieces.draw(shape).reshape(-1) for shape in ((1, 3), (5,), (2, 5))]
    np.testing.assert_array_equal(np.concatenate(drawn), whole)


def test_streams_that_are_open_at_once_do_not_disturb_each_other():
    one, other = NoiseStream(5, "step"), NoiseStream(5, "decode")
    mixed = [stream.draw((4,)) for _ in range(2) for stream in (one, other)]
    np.testing.assert_array_equal(np.concatenate(mixed[::2]), NoiseStream(5, "step").draw((8,)))


def test_every_purpose_and_every_bit_of_the_seed_changes_the_noise():
    seeds = [0, *(1 << bit for bit in range(64))]
    drawn = {NoiseStream(seed, purpose).draw((4,)).tobytes() for seed in seeds for purpose in PURPOSES}
    assert len(drawn) == len(seeds) * len(PURPOSES)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(LtxError, match=rf"seed .* got {seed} "):
        NoiseStream(seed, "latents")
