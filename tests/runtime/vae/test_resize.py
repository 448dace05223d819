"""Laws of the bilinear resize; test_media_official compares it with torch."""

import numpy as np
import pytest

from ltx_runtime.vae.resize import resize_bilinear

SIZES = [((1, 1), (3, 4)), ((2, 3), (4, 9)), ((5, 7), (3, 2)), ((6, 4), (6, 9)), ((8, 8), (1, 1)), ((3, 5), (7, 5))]
EVERY_SIZE = pytest.mark.parametrize(("old", "new"), SIZES, ids=str)


def random(*shape):
    return np.random.RandomState(0).uniform(-1, 1, shape).astype(np.float32)


def tents(old, new):
    """Returns the weight of each old pixel in each new one: a tent function that reaches to the neighbours."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(old)), 0)


def test_the_same_size_is_returned_as_it_is():
    video = random(2, 4, 6)
    assert resize_bilinear(video, 4, 6) is video


def test_two_pixels_become_four_with_quarters_between():
    given = np.array([[0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(resize_bilinear(given, 1, 4), [[0.0, 0.25, 0.75, 1.0]])


def test_half_the_size_averages_pairs():
    given = random(6, 8)
    averages = given.reshape(3, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(resize_bilinear(given, 3, 4), averages, atol=1e-6)


def test_a_third_of_the_size_takes_every_third_pixel_and_does_not_smooth():
    given = random(9, 6)
    np.testing.assert_array_equal(resize_bilinear(given, 3, 2), given[1::3, 1::3])


@EVERY_SIZE
def test_every_pixel_mixes_the_four_around_its_centre(old, new):
    given = random(*old)
    mixed = tents(old[0], new[0]) @ given @ tents(old[1], new[1]).T
    np.testing.assert_allclose(resize_bilinear(given, *new), mixed, atol=1e-6)


@EVERY_SIZE
def test_one_colour_stays_that_colour(old, new):
    np.testing.assert_allclose(resize_bilinear(np.full(old, 0.3, np.float32), *new), 0.3, rtol=1e-6)


@EVERY_SIZE
def test_pictures_of_a_video_are_resized_each_for_itself(old, new):
    video = random(2, 3, 4, *old)
    resized = resize_bilinear(video, *new)
    assert (resized.shape, resized.dtype) == ((2, 3, 4, *new), np.float32)
    np.testing.assert_array_equal(resized[1, 2, 3], resize_bilinear(video[1, 2, 3], *new))


@EVERY_SIZE
def test_what_is_given_is_left_as_it_is(old, new):
    video = random(2, *old)
    before = video.copy()
    resize_bilinear(video, *new)
    np.testing.assert_array_equal(video, before)


def test_rows_and_columns_can_be_resized_one_after_the_other():
    given = random(5, 7)
    both = resize_bilinear(given, 8, 3)
    np.testing.assert_allclose(resize_bilinear(resize_bilinear(given, 5, 3), 8, 3), both, atol=1e-6)
