"""Laws of conditioning: items are at the right place, and their tokens change at the right steps."""

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.sampling.conditioning import (
    Item,
    check_item,
    condition,
    moves,
    renoise_image_tokens,
    token_timesteps,
    trimmed_frames,
)
from ltx_runtime.spec.geometry import Grid, coords_of, latents_of, tokens_of

CHANNELS, FPS = 3, 24.0
GRID = Grid(5, 2, 3)
CELLS = GRID.rows * GRID.columns
BOTH = pytest.mark.parametrize("causal", [True, False], ids=["causal", "not_causal"])
STRENGTHS = pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.85, 1.0])


def random(seed, frames=GRID.frames, batch=1):
    shape = (batch, CHANNELS, frames, GRID.rows, GRID.columns)
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def no_noise(index, shape):
    raise AssertionError("this item needs no noise")


def noise_of(index, shape):
    return np.random.RandomState(100 + index).standard_normal(shape).astype(np.float32)


def start(items, initial=None, noise=noise_of, causal=True):
    return condition(random(0) if initial is None else initial, items, noise, GRID, FPS, causal=causal)


def in_grid(made):
    """Returns the video's own tokens as (B, C, F, H, W) and their mask as (F, H, W)."""
    mask = made.mask[0, made.extra :].reshape(GRID.frames, GRID.rows, GRID.columns)
    return latents_of(made.tokens[:, made.extra :], GRID), mask


# --- where items go -------------------------------------------------------------------------------


@BOTH
def test_without_items_there_are_the_initial_tokens_and_no_mask(causal):
    made = start([], noise=no_noise, causal=causal)
    np.testing.assert_array_equal(made.tokens, tokens_of(random(0)))
    np.testing.assert_array_equal(made.coords, coords_of(GRID, FPS, causal=causal))
    assert made.mask is None and made.extra == 0


@STRENGTHS
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_an_item_at_frame_0_is_mixed_into_the_first_latents_and_adds_no_tokens(frames, strength):
    given = random(1, frames)
    made = start([Item(given, 0, strength)], noise=no_noise)
    latents, mask = in_grid(made)
    expected = random(0)
    expected[:, :, :frames] = (1 - strength) * expected[:, :, :frames] + strength * given
    np.testing.assert_allclose(latents, expected, atol=1e-6)
    np.testing.assert_array_equal(mask[:frames], np.float32(strength))
    np.testing.assert_array_equal(mask[frames:], 0)
    assert made.extra == 0 and made.mask.shape == (1, GRID.tokens)


@STRENGTHS
@BOTH
@pytest.mark.parametrize("frame", [1, 13, 24, 32])
def test_an_image_later_on_stands_beside_the_video_at_its_frame(frame, strength, causal):
    given = random(1, 1)
    made = start([Item(given, frame, strength)], causal=causal)
    assert made.extra == CELLS
    mixed = (1 - strength) * noise_of(0, given.shape) + strength * given
    np.testing.assert_allclose(made.tokens[:, :CELLS], tokens_of(mixed), atol=1e-6)
    np.testing.assert_array_equal(made.mask[0, :CELLS], np.float32(strength))
    np.testing.assert_allclose(made.coords[0, 0, :CELLS], frame / FPS, rtol=3e-7)
    np.testing.assert_array_equal(made.coords[0, 1:, :CELLS], coords_of(Grid(1, 2, 3), FPS, causal=causal)[0, 1:])
    latents, mask = in_grid(made)
    np.testing.assert_array_equal(latents, random(0))
    assert not mask.any()


@STRENGTHS
@pytest.mark.parametrize(("frame", "frames"), [(8, 2), (24, 2), (8, 3), (16, 3), (8, 4)])
def test_a_clip_later_on_has_two_latents_beside_the_video_and_the_rest_in_it(frame, frames, strength):
    given = random(1, frames)
    made = start([Item(given, frame, strength)])
    assert made.extra == 2 * CELLS
    mixed = (1 - strength) * noise_of(0, given[:, :, :2].shape) + strength * given[:, :, :2]
    np.testing.assert_allclose(made.tokens[:, : made.extra], tokens_of(mixed), atol=1e-6)
    latents, mask = in_grid(made)
    expected, marked = random(0), np.zeros(mask.shape, np.float32)
    for number in range(2, frames):
        place = frame // 8 + number
        expected[:, :, place] = (1 - strength) * expected[:, :, place] + strength * given[:, :, number]
        marked[place] = strength
    np.testing.assert_allclose(latents, expected, atol=1e-6)
    np.testing.assert_array_equal(mask, marked)


@pytest.mark.parametrize(("causal", "second"), [(True, 1), (False, 8)])
def test_the_second_latent_beside_the_video_is_one_causal_frame_later(causal, second):
    made = start([Item(random(1, 2), 16, 1.0)], causal=causal)
    frames = made.coords[0, 0, : made.extra] * FPS
    np.testing.assert_allclose(frames, [16] * CELLS + [16 + second] * CELLS, rtol=1e-6)


def test_extra_tokens_come_first_and_in_the_order_of_their_items():
    items = [Item(random(1, 1), 20, 1.0), Item(random(2, 1), 0, 0.5), Item(random(3, 3), 8, 0.75)]
    made = start(items)
    assert made.extra == 3 * CELLS
    expected = np.concatenate([random(1, 1), 0.75 * random(3, 3)[:, :, :2] + 0.25 * noise_of(2, (1, 3, 2, 2, 3))], 2)
    np.testing.assert_allclose(made.tokens[:, : made.extra], tokens_of(expected.astype(np.float32)), atol=1e-6)
    np.testing.assert_array_equal(made.mask[0, : made.extra], np.repeat(np.float32([1, 0.75, 0.75]), CELLS))
    np.testing.assert_array_equal(made.coords[:, :, made.extra :], coords_of(GRID, FPS, causal=True))
    _, mask = in_grid(made)
    np.testing.assert_array_equal(mask[:, 0, 0], np.float32([0.5, 0, 0, 0.75, 0]))


def test_a_later_item_goes_over_an_earlier_one():
    made = start([Item(random(1, 2), 0, 0.5), Item(random(2, 1), 0, 0.25)], noise=no_noise)
    latents, mask = in_grid(made)
    first = 0.75 * (0.5 * random(0)[:, :, 0] + 0.5 * random(1, 2)[:, :, 0]) + 0.25 * random(2, 1)[:, :, 0]
    np.testing.assert_allclose(latents[:, :, 0], first, atol=1e-6)
    np.testing.assert_array_equal(mask[:2, 0, 0], np.float32([0.25, 0.5]))


def test_whole_strength_gives_exactly_the_item_and_none_exactly_the_noise():
    for strength, expected in ((1.0, random(1, 1)), (0.0, noise_of(0, (1, 3, 1, 2, 3)))):
        made = start([Item(random(1, 1), 9, strength)])
        np.testing.assert_array_equal(made.tokens[:, :CELLS], tokens_of(expected))


def test_noise_is_asked_for_after_its_own_item_and_before_the_next():
    diary = []

    def items():
        for index, (frames, frame) in enumerate([(1, 0), (1, 8), (2, 16), (3, 8), (5, 0)]):
            diary.append(f"item {index}")
            yield Item(random(index, frames), frame, 1.0)

    def noise(index, shape):
        diary.append(f"noise {index} {shape[2]}")
        return noise_of(index, shape)

    start(items(), noise=noise)
    assert diary == ["item 0", "item 1", "noise 1 1", "item 2", "noise 2 2", "item 3", "noise 3 2", "item 4"]


def test_initial_latents_and_items_are_left_as_they_are():
    initial, given = random(0), random(1, 3)
    start([Item(given, 0, 0.5), Item(given, 8, 0.5)], initial)
    np.testing.assert_array_equal(initial, random(0))
    np.testing.assert_array_equal(given, random(1, 3))


def test_every_sample_of_a_batch_has_its_own_item():
    initial, given = random(0, batch=2), random(1, 3, batch=2)
    made = start([Item(given, 8, 0.5)], initial, noise=lambda index, shape: np.zeros(shape, np.float32))
    for sample in (0, 1):
        alone = start([Item(given[[sample]], 8, 0.5)], initial[[sample]], noise=lambda i, s: np.zeros(s, np.float32))
        np.testing.assert_array_equal(made.tokens[[sample]], alone.tokens)


# --- which tokens change at which step ------------------------------------------------------------


def test_without_a_mask_all_tokens_are_at_the_step_s_own_noise_level():
    np.testing.assert_array_equal(token_timesteps(0.725, None), np.float32([[0.725]]))


def test_given_tokens_are_no_noisier_than_what_is_not_given_of_them():
    mask = np.float32([[0, 0.25, 0.5, 1]])
    np.testing.assert_array_equal(token_timesteps(0.625, mask), np.float32([[0.625, 0.625, 0.5, 0]]))


def test_tokens_join_once_the_noise_level_has_fallen_to_theirs():
    mask = np.float32([[0, 0.25, 0.5, 1]])
    assert moves(1.0, mask).tolist() == [[True, False, False, False]]
    assert moves(0.75, mask).tolist() == [[True, True, False, False]]
    assert moves(0.5, mask).tolist() == [[True, True, True, False]]
    assert moves(0.01, mask).tolist() == [[True, True, True, False]]


def test_only_wholly_given_tokens_are_noised_and_from_how_they_began():
    tokens, initial, noise = (np.random.RandomState(seed).rand(1, 3, 4).astype(np.float32) for seed in range(3))
    mask = np.float32([[0.5, 1, 0.99]])
    noised = renoise_image_tokens(tokens, initial, mask, noise, 0.15, 0.8)
    np.testing.assert_array_equal(noised[:, [0, 2]], tokens[:, [0, 2]])
    np.testing.assert_allclose(noised[:, 1], initial[:, 1] + 0.15 * 0.8**2 * noise[:, 1], rtol=1e-6)


# --- checks of items ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "frame", "num_frames", "used"),
    [(1, 0, 121, 1), (1, 120, 121, 1), (200, 0, 121, 121), (200, 8, 121, 113), (16, 0, 121, 9), (8, 8, 121, 1)],
)
def test_clips_are_trimmed_to_what_fits_and_to_8k_plus_1(length, frame, num_frames, used):
    assert trimmed_frames(length, frame, num_frames) == used


@pytest.mark.parametrize("frame", [-1, 25, 1000])
def test_a_frame_that_the_video_does_not_have_is_refused(frame):
    with pytest.raises(LtxError, match=f"^a condition cannot begin at frame {frame} of 25 - use 0 to 24$"):
        trimmed_frames(9, frame, 25)


@pytest.mark.parametrize(("media", "frame"), [(1, 0), (1, 13), (1, 32), (9, 0), (33, 0), (9, 8), (25, 8), (9, 24)])
def test_an_item_that_fits_is_accepted(media, frame):
    check_item(media, frame, 33)


@pytest.mark.parametrize(
    ("media", "frame", "why"),
    [
        (10, 0, r"a clip must have 8k\+1 frames; got 10 - use its first 9"),
        (8, 0, r"a clip must have 8k\+1 frames; got 8 - use its first 1"),
        (0, 0, r"a clip must have 8k\+1 frames; got 0 - use its first 1"),
        (41, 0, r"a clip of 41 frames is longer than the video of 33 - use its first 33"),
        (1, 33, r"an image cannot begin at frame 33 of 33 - use 0 to 32"),
        (1, -1, r"an image cannot begin at frame -1 of 33 - use 0 to 32"),
        (17, 24, r"a clip of 17 frames cannot begin at frame 24 of 33 - use 0 to 16"),
        (9, 13, r"a clip must begin at a multiple of 8; got frame 13 - use 8, or an image"),
        (9, 31, r"a clip must begin at a multiple of 8; got frame 31 - use 24, or an image"),
        (17, 31, r"a clip must begin at a multiple of 8; got frame 31 - use 16, or an image"),
    ],
)
def test_an_item_that_does_not_fit_is_refused_with_what_does(media, frame, why):
    with pytest.raises(LtxError, match=f"^{why}$"):
        check_item(media, frame, 33)
