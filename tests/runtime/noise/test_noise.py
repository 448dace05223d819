"""Laws of noise: our own against a second implementation of its generator (Mersenne Twister, polar method) in plain
Python, that of other programs against the streams and orders in which they draw, and noise files against the draws.
"""

import math
import random
import zlib

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.noise.noise import RNGS, DiffusersNoise, FileNoise, GivenNoise, RecordingNoise, SeededNoise, TorchNoise
from ltx_runtime.noise.torch_random import TorchGenerator
from ltx_runtime.tensors import read_tensors, write_tensors

WORD = 0xFFFFFFFF
EVERY_RNG = pytest.mark.parametrize("rng", RNGS)

# Every kind of draw, in the order of a run: two passes, each with a clip, an image and stochastic steps.
DRAWS = {
    "pass1/posterior_video": (1, 4, 3, 2, 3),
    "pass1/initial": (1, 4, 3, 2, 3),
    "pass1/posterior_0": (1, 4, 1, 2, 3),
    "pass1/keyframe_0": (1, 4, 1, 2, 3),
    "pass1/image_0": (1, 24, 4),
    "pass1/step_0": (1, 24, 4),
    "pass1/image_1": (1, 24, 4),
    "pass1/step_1": (1, 24, 4),
    "pass2/initial": (1, 4, 3, 4, 6),
    "pass2/posterior_0": (1, 4, 1, 1, 3),
    "pass2/keyframe_0": (1, 4, 1, 1, 3),
    "pass2/step_0": (1, 75, 4),
    "decode": (1, 4, 3, 4, 6),
    "decoder/noise_2": (3, 2, 3),
    "decoder/noise_4": (2, 4, 6),
}
FROM_GENERATOR = [key for key in DRAWS if key.split("/")[-1].split("_")[0] in ("initial", "keyframe", "image")]


def twister(key: list[int]) -> random.Random:
    """Returns MT19937 seeded by `init_by_array` as its authors publish it."""
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


def polar_normals(seed: int, key: str, count: int) -> list[float]:
    """Draws normals by Marsaglia's polar method; of each pair the second value comes first."""
    generator = twister([seed & WORD, seed >> 32, zlib.crc32(key.encode())])
    values: list[float] = []
    while len(values) < count:
        x, y = (2 * generator.random() - 1 for _ in range(2))
        square = x * x + y * y
        if 0 < square < 1:
            factor = math.sqrt(-2 * math.log(square) / square)
            values += [factor * y, factor * x]
    return values[:count]


def drawn(noise, keys=tuple(DRAWS)):
    return {key: noise.draw(key, DRAWS[key]) for key in keys}


def test_the_reference_twister_is_the_one_of_the_python_standard_library():
    seed = 0x123456789ABCDEF01
    key = [seed >> shift & WORD for shift in (0, 32, 64)]
    assert twister(key).random() == random.Random(seed).random()


@pytest.mark.parametrize("key", ["pass1/initial", "pass2/image_7", "decode", "decoder/noise_6"])
@pytest.mark.parametrize("seed", [0, 1, 171198, 2**32, 2**64 - 1])
def test_our_own_noise_is_what_a_second_implementation_draws(seed, key):
    expected = np.reshape(polar_normals(seed, key, 201), (3, 67))
    np.testing.assert_allclose(SeededNoise(seed).draw(key, (3, 67)), expected, rtol=1e-6)


def test_our_own_noise_depends_on_nothing_drawn_before():
    forwards, backwards = drawn(SeededNoise(5)), drawn(SeededNoise(5), reversed(DRAWS))
    for key in DRAWS:
        np.testing.assert_array_equal(forwards[key], backwards[key])


def test_every_key_and_every_bit_of_the_seed_changes_our_own_noise():
    seeds = [0, *(1 << bit for bit in range(64))]
    different = {SeededNoise(seed).draw(key, (4,)).tobytes() for seed in seeds for key in DRAWS}
    assert len(different) == len(seeds) * len(DRAWS)


def test_no_two_keys_of_a_long_run_share_a_stream():
    parts = ("initial", "posterior_video", *(f"{kind}_{n}" for kind in ("posterior", "keyframe") for n in range(300)))
    parts += tuple(f"{kind}_{n}" for kind in ("image", "step") for n in range(1000))
    keys = [f"pass{number}/{part}" for number in (1, 2) for part in parts]
    keys += ["decode", *(f"decoder/noise_{block}" for block in range(20))]
    assert len({zlib.crc32(key.encode()) for key in keys}) == len(keys)


@EVERY_RNG
def test_every_draw_is_float32_of_its_shape_and_the_same_again_for_the_same_seed(rng):
    once, again, other = (drawn(RNGS[rng](seed)) for seed in (7, 7, 8))
    for key, shape in DRAWS.items():
        assert (once[key].dtype, once[key].shape) == (np.float32, shape)
        assert once[key].flags.c_contiguous
        np.testing.assert_array_equal(once[key], again[key])
        assert not np.array_equal(once[key], other[key])


@EVERY_RNG
@pytest.mark.parametrize("key", ["pass1/initial", "pass1/step_0", "decode", "decoder/noise_2"])
def test_noise_has_mean_zero_and_unit_variance(rng, key):
    shape = (10, 100, 100) if key.startswith("decoder") else (1, 100, 1000) if "step" in key else (1, 100, 10, 10, 10)
    values = RNGS[rng](7).draw(key, shape).astype(np.float64)
    assert abs(values.mean()) < 5 / math.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / values.size)


@EVERY_RNG
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(rng, seed):
    with pytest.raises(LtxError, match=rf"seed .* got {seed} "):
        RNGS[rng](seed)


def test_the_official_code_draws_what_is_asked_of_the_generator_and_the_rest_from_the_global_stream():
    everything = drawn(TorchNoise(5))
    alone = drawn(TorchNoise(5), FROM_GENERATOR) | drawn(TorchNoise(5), [k for k in DRAWS if k not in FROM_GENERATOR])
    for key in DRAWS:
        np.testing.assert_array_equal(everything[key], alone[key])


def test_both_streams_of_the_official_code_start_alike():
    noise = TorchNoise(5)
    np.testing.assert_array_equal(noise.draw("pass1/image_0", (1, 9, 4)), noise.draw("pass1/step_0", (1, 9, 4)))


def test_the_official_code_draws_initial_noise_as_tokens():
    noise, stream = TorchNoise(5), TorchGenerator(5)
    for number in (1, 2):
        expected = stream.normals((2, 3 * 4 * 5, 7)).reshape(2, 3, 4, 5, 7)
        np.testing.assert_array_equal(
            noise.draw(f"pass{number}/initial", (2, 7, 3, 4, 5)), np.moveaxis(expected, -1, 1)
        )


def test_the_official_code_draws_decode_noise_in_the_memory_order_of_tokens_which_a_single_cell_does_not_have():
    one_by_one = TorchGenerator(5).normals((1, 7, 3, 4, 5), (0, 2, 3, 4, 1))
    np.testing.assert_array_equal(TorchNoise(5).draw("decode", (1, 7, 3, 4, 5)), one_by_one)
    at_once = TorchGenerator(5).normals((1, 20)).reshape(1, 20, 1, 1, 1)
    np.testing.assert_array_equal(TorchNoise(5).draw("decode", (1, 20, 1, 1, 1)), at_once)


@pytest.mark.parametrize("noise", [TorchNoise, DiffusersNoise])
def test_maps_of_the_decoder_are_drawn_one_by_one(noise):
    stream = TorchGenerator(5)
    expected = np.stack([stream.normals((5, 4)) for _ in range(3)])
    np.testing.assert_array_equal(noise(5).draw("decoder/noise_1", (3, 5, 4)), expected)


def test_diffusers_draws_everything_from_one_stream_as_it_looks():
    noise, stream = DiffusersNoise(5), TorchGenerator(5)
    for key, shape in DRAWS.items():
        if not key.startswith("decoder/"):
            np.testing.assert_array_equal(noise.draw(key, shape), stream.normals(shape))


@pytest.mark.parametrize("noise", [TorchNoise, DiffusersNoise])
def test_a_draw_that_no_run_makes_has_no_place_among_ordered_ones(noise):
    with pytest.raises(ValueError, match="unknown draw pass1/other_0"):
        noise(5).draw("pass1/other_0", (1,))


@EVERY_RNG
def test_recorded_noise_is_handed_on_unchanged_and_read_back_in_any_order(rng, tmp_path):
    recording = RecordingNoise(RNGS[rng](5))
    handed_on, direct = drawn(recording), drawn(RNGS[rng](5))
    path = tmp_path / "noise.safetensors"
    recording.save(path)
    assert read_tensors(path, DRAWS).keys() == DRAWS.keys()
    read = drawn(FileNoise(path), reversed(DRAWS))
    for key in DRAWS:
        np.testing.assert_array_equal(handed_on[key], direct[key])
        np.testing.assert_array_equal(read[key], direct[key])


def test_a_recording_has_one_place_for_each_key():
    recording = RecordingNoise(SeededNoise(5))
    recording.draw("decode", (4,))
    with pytest.raises(ValueError, match="decode was drawn before"):
        recording.draw("decode", (4,))


def test_given_noise_takes_the_place_of_a_draw():
    given = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    noise = GivenNoise(SeededNoise(5), {"decode": given})
    np.testing.assert_array_equal(noise.draw("decode", (1, 2, 3)), given)
    np.testing.assert_array_equal(noise.draw("pass1/step_0", (9,)), SeededNoise(5).draw("pass1/step_0", (9,)))
    with pytest.raises(ValueError, match=r"decode has shape .*, but the run draws"):
        noise.draw("decode", (1, 3, 2))


def test_a_file_that_lacks_a_draw_or_holds_another_is_refused(tmp_path):
    path = tmp_path / "noise.safetensors"
    write_tensors(path, {"decode": np.zeros((1, 2), np.float32), "pass1/step_0": np.zeros((1, 2), np.int64)})
    noise = FileNoise(path)
    with pytest.raises(LtxError, match=r"has no noise pass1/initial; this run draws pass1/initial \(1, 4\) - "):
        noise.draw("pass1/initial", (1, 4))
    with pytest.raises(
        LtxError, match=r"holds decode \(1, 2\) of float32; this run draws decode \(2, 1\) of float32 - "
    ):
        noise.draw("decode", (2, 1))
    with pytest.raises(LtxError, match=r"holds pass1/step_0 \(1, 2\) of int64; .* of float32 - "):
        noise.draw("pass1/step_0", (1, 2))


def test_a_file_of_noise_is_opened_before_anything_is_drawn(tmp_path):
    with pytest.raises(LtxError, match=r"cannot read .*nothing.safetensors"):
        FileNoise(tmp_path / "nothing.safetensors")
