"""Laws of sinusoids and rotations: their formulas in float64, published numbers, order and shapes."""

import math

import numpy as np
import pytest

from ltx_runtime.spec.encodings import Rope, sinusoid_of

SINUSOID = 1e-4  # an ulp of a frequency below 1 times 1,000 rad is 6e-5
ROTATION = 1e-6
# Frequencies and positions are exact in float32, and so are their products.
ROPE = Rope((1.5, 3.25, 40.0), (16.0, 1024.0, 512.0))


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize("shape", [(), (1,), (40,), (2, 1), (3, 70), (2, 3, 4)], ids=str)
def test_sinusoids_are_cosines_and_then_sines_of_timesteps_by_falling_frequencies(shape):
    timesteps = np.random.RandomState(0).uniform(0, 1, shape).astype(np.float32)
    sinusoids = sinusoid_of(timesteps)
    assert (sinusoids.dtype, sinusoids.shape) == (np.float32, (*shape, 256))
    for place in np.ndindex(shape):
        angles = [1000 * float(timesteps[place]) * 10_000 ** (-k / 128) for k in range(128)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        np.testing.assert_allclose(sinusoids[place], expected, rtol=0, atol=SINUSOID)


@pytest.mark.parametrize(
    ("timestep", "anchors"),
    [
        (1.0, {0: 0.562379, 1: 0.789627, 127: 0.994232, 128: 0.826880, 129: 0.613588, 255: 0.107254}),
        (0.909375, {0: -0.115813, 128: -0.993271}),
        (0.05, {0: 0.964966, 128: -0.262375}),
        (0.0, dict.fromkeys(range(128), 1.0) | dict.fromkeys(range(128, 256), 0.0)),
    ],
)
def test_the_sinusoid_of_a_timestep_has_the_published_values(timestep, anchors):
    (sinusoid,) = sinusoid_of(floats(timestep))
    np.testing.assert_allclose(sinusoid[list(anchors)], list(anchors.values()), atol=1e-5)


def test_every_token_has_the_sinusoid_of_its_own_timestep_to_the_last_bit():
    timesteps = np.array([[0.0, 0.9, 0.9, 0.25], [0.9, 0.25, 1.0, 0.0]], np.float32)
    sinusoids = sinusoid_of(timesteps)
    for place in np.ndindex(timesteps.shape):
        np.testing.assert_array_equal(sinusoids[place], sinusoid_of(timesteps[place][None])[0])


def test_one_timestep_broadcast_to_many_tokens_gives_as_many_sinusoids_in_memory_of_their_own():
    sinusoids = sinusoid_of(np.broadcast_to(floats(0.7), (2, 5)))
    np.testing.assert_array_equal(sinusoids, np.tile(sinusoid_of(floats(0.7)), (2, 5, 1)))
    assert sinusoids.flags.c_contiguous and sinusoids.flags.writeable


@pytest.mark.parametrize("left_over", [0, 1, 2, 5])
def test_rotations_are_cosines_and_sines_of_frequencies_by_positions_with_the_axes_interleaved(left_over):
    coords = np.array([[[0, 16, 4, 3], [0, 1024, 256, 960], [0, 512, 768, 32]]], np.float32)
    pairs = left_over + 3 * len(ROPE.frequencies)
    cosines, sines = ROPE.rotation(coords, 2 * pairs)
    assert (cosines.dtype, cosines.shape) == (sines.dtype, sines.shape) == (np.float32, (4, pairs))
    for token in range(4):
        angles = [0.0] * left_over  # pairs of channels that are not rotated
        for frequency in ROPE.frequencies:
            for axis, largest in enumerate(ROPE.max_position):
                angles.append(frequency * (2 * float(coords[0, axis, token]) / largest - 1))
        np.testing.assert_allclose(cosines[token], np.cos(angles), rtol=0, atol=ROTATION)
        np.testing.assert_allclose(sines[token], np.sin(angles), rtol=0, atol=ROTATION)


def test_pairs_that_are_left_over_are_not_rotated_at_all():
    rotation = ROPE.rotation(np.full((1, 3, 6), 7, np.float32), 2 * (9 + 2))
    np.testing.assert_array_equal(rotation.cosines[:, :2], 1)
    np.testing.assert_array_equal(rotation.sines[:, :2], 0)


def test_the_first_and_the_largest_positions_are_turned_by_the_frequencies_themselves():
    """Of the largest frequency, 5,000 pi, float32 keeps thousandths: the cosine is that of the rounded angle."""
    frequencies = floats(math.pi / 2, 100.0, 5000 * math.pi).tolist()
    rope = Rope(tuple(frequencies), (20.0, 2048.0, 2048.0))
    coords = np.array([[[0, 20], [0, 2048], [0, 2048]]], np.float32)
    cosines, sines = rope.rotation(coords, 18)
    angles = np.repeat(frequencies, 3)
    np.testing.assert_allclose(cosines, [np.cos(angles)] * 2, rtol=0, atol=ROTATION)
    np.testing.assert_allclose(sines, [-np.sin(angles), np.sin(angles)], rtol=0, atol=ROTATION)
