"""Latents between and after the passes: closed forms of adding noise, AdaIN and the tone map."""

import math

import numpy as np
import pytest

from ltx_runtime.vae.latents import adain, noised, tone_mapped

SHAPE = (2, 3, 2, 4, 5)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape or SHAPE).astype(np.float32)


def moments(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and unbiased deviation of every sample and channel, from their sums in float64."""
    flat = latents.reshape(*latents.shape[:2], -1).astype(np.float64)
    count = flat.shape[-1]
    mean = flat.sum(-1) / count
    return mean, np.sqrt(((flat - mean[..., None]) ** 2).sum(-1) / (count - 1))


@pytest.mark.parametrize("sigma", [0.0, 0.4219, 0.9094, 1.0])
def test_noised_latents_lie_between_the_data_and_the_noise_at_sigma(sigma):
    latents, noise = drawn(0), drawn(1)
    made = noised(latents, noise, sigma)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, sigma * noise.astype(np.float64) + (1 - sigma) * latents, atol=1e-6)


def test_noise_at_one_and_latents_at_zero_come_back_to_the_bit():
    latents, noise = drawn(0), drawn(1)
    np.testing.assert_array_equal(noised(latents, noise, 1.0), noise)
    np.testing.assert_array_equal(noised(latents, noise, 0.0), latents)


@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 1, 1, 2), (2, 3, 4, 2, 3)], ids=["same", "two_cells", "smaller"])
def test_adain_gives_every_sample_and_channel_the_mean_and_deviation_of_the_reference(shape):
    reference = 3 * drawn(2, *shape) + drawn(3, 2, 3, 1, 1, 1)
    made = adain(5 * drawn(4) - 1, reference)
    assert (made.dtype, made.shape) == (np.float32, SHAPE)
    for actual, expected in zip(moments(made), moments(reference), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_adain_is_a_line_in_every_sample_and_channel():
    latents, reference = 5 * drawn(4) - 1, 3 * drawn(2, 2, 3, 2, 2, 2) + 2
    (mean, deviation), (wanted_mean, wanted) = moments(latents), moments(reference)
    slope = (wanted / deviation)[..., None, None, None]
    offset = (wanted_mean - mean * wanted / deviation)[..., None, None, None]
    np.testing.assert_allclose(adain(latents, reference), slope * latents + offset, atol=1e-5)


def test_the_deviations_are_unbiased():
    latents = np.float32([0, 2]).reshape(1, 1, 1, 1, 2)  # mean 1, deviation sqrt(2)
    reference = np.float32([0, 0, 0, 4]).reshape(1, 1, 1, 2, 2)  # mean 1, deviation 2
    np.testing.assert_allclose(adain(latents, reference).ravel(), [1 - math.sqrt(2), 1 + math.sqrt(2)], rtol=1e-6)


def test_latents_are_the_same_after_adain_to_themselves_or_to_a_line_of_them_and_back():
    latents = drawn(5)
    np.testing.assert_allclose(adain(latents, latents), latents, atol=2e-6)
    np.testing.assert_allclose(adain(adain(latents, 7 * drawn(6) + 3), latents), latents, atol=1e-5)


def test_adain_forgets_how_its_latents_were_scaled_and_moved():
    latents, reference = drawn(7), drawn(8)
    np.testing.assert_allclose(adain(9 * latents - 4, reference), adain(latents, reference), atol=2e-5)


def test_adain_of_a_batch_is_that_of_its_samples():
    latents, reference = drawn(9), drawn(10)
    alone = [adain(latents[i : i + 1], reference[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(adain(latents, reference), np.concatenate(alone), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "mapped"), [(0.5, 0.4479709), (1, 0.82), (2, 1.3821328), (4, 2.5664746), (-3, -1.9487248), (0, 0)]
)
def test_the_tone_map_at_06_has_the_known_values(value, mapped):
    assert tone_mapped(np.float32([value]), 0.6)[0] == pytest.approx(mapped, abs=3e-7)


@pytest.mark.parametrize("ratio", [0.1, 0.6, 1.0])
def test_the_tone_map_is_its_closed_form(ratio):
    latents = 4 * drawn(11)
    k = 0.75 * ratio
    expected = latents * (1 - 0.8 * k / (1 + np.exp(-4.0 * k * (np.abs(latents.astype(np.float64)) - 1))))
    made = tone_mapped(latents, ratio)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=2e-6)


def test_a_tone_map_at_ratio_zero_changes_nothing():
    latents = drawn(12)
    np.testing.assert_array_equal(tone_mapped(latents, 0.0), latents)


@pytest.mark.parametrize("ratio", [0.2, 0.6, 1.0])
def test_a_tone_map_is_odd_and_makes_nothing_larger_than_it_was(ratio):
    latents = 6 * drawn(13)
    mapped = tone_mapped(latents, ratio)
    np.testing.assert_array_equal(tone_mapped(-latents, ratio), -mapped)
    assert (np.abs(mapped) <= np.abs(latents)).all()
    assert (np.sign(mapped) == np.sign(latents)).all()


@pytest.mark.parametrize(("ratio", "part"), [(1.0, 0.4), (0.6, 0.64), (0.2, 0.88)])
def test_very_large_values_shrink_to_their_known_part(ratio, part):
    large = np.float32([1e4, -3e30])
    np.testing.assert_allclose(tone_mapped(large, ratio), part * large, rtol=1e-6)


def test_what_is_given_stays_as_it_was():
    latents, other = drawn(14), drawn(15)
    kept = latents.copy(), other.copy()
    noised(latents, other, 0.5)
    adain(latents, other)
    tone_mapped(latents, 0.6)
    np.testing.assert_array_equal(latents, kept[0])
    np.testing.assert_array_equal(other, kept[1])
