"""Laws of sizes, tokens and coordinates."""

import re
from itertools import product

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import (
    Grid,
    Padding,
    check_fps,
    coords_of,
    first_pass_size,
    grid_of,
    latents_of,
    padded_size,
    padding_of,
    tokens_of,
)

GRIDS = (Grid(1, 1, 1), Grid(4, 8, 12), Grid(3, 2, 5))
BOTH = pytest.mark.parametrize("causal", [True, False], ids=["causal", "not_causal"])


def test_known_sizes_have_the_known_number_of_tokens():
    known = {(256, 384, 25): 384, (512, 768, 97): 4992, (704, 1216, 121): 13376, (480, 704, 161): 6930}
    assert {size: grid_of(*size).tokens for size in known} == known


def test_a_grid_is_found_again_from_its_size_in_pixels():
    for sizes in product((1, 2, 21), (1, 7), (1, 40)):
        grid = Grid(*sizes)
        assert grid_of(grid.height, grid.width, grid.num_frames) == grid


def test_the_smallest_clip_is_one_frame_of_one_cell():
    assert grid_of(32, 32, 1) == Grid(1, 1, 1)


def test_a_clip_of_24_frames_is_refused_with_the_nearest_that_can_be_made():
    with pytest.raises(LtxError, match=r"^num-frames must be 8n\+1; got 24 - use 17 or 25$"):
        grid_of(256, 384, 24)


def test_a_height_of_500_is_refused_with_the_nearest_that_can_be_made():
    with pytest.raises(LtxError, match=r"^height must be a multiple of 32; got 500 - use 480 or 512$"):
        grid_of(500, 384, 25)


@pytest.mark.parametrize(("place", "step", "offset"), [(0, 32, 0), (1, 32, 0), (2, 8, 1)])
def test_every_refusal_names_the_nearest_sizes_below_and_above_that_can_be_made(place, step, offset):
    for given in (-33, -1, 0, 1, 2, 31, 33, 63, 100, 1000):
        size = [64, 64, 9]
        size[place] = given
        possible = [n for n in range(1, given + 2 * step + 2) if n % step == offset] or [offset or step]
        if given in possible:
            assert grid_of(*size)
            continue
        with pytest.raises(LtxError, match=f"; got {given} - use ") as refused:
            grid_of(*size)
        named = [int(number) for number in re.findall(r"\d+", str(refused.value).rpartition(" - use ")[2])]
        below = [n for n in possible if n < given][-1:]
        above = [n for n in possible if n > given][:1]
        assert named == below + above, given


@BOTH
def test_coordinates_are_seconds_and_first_pixel_of_every_cell_frame_by_frame_row_by_row(causal):
    for grid, fps in product(GRIDS, (24, 25.0, 30, 24000 / 1001)):
        coords = coords_of(grid, fps, causal=causal)
        assert (coords.dtype, coords.shape) == (np.float32, (1, 3, grid.tokens)), (grid, fps)
        cells = product(range(grid.frames), range(grid.rows), range(grid.columns))
        for token, (frame, row, column) in enumerate(cells):
            first_frame = 8 * frame if not causal else max(8 * frame - 7, 0)
            expected = [first_frame / fps, 32 * row, 32 * column]
            np.testing.assert_allclose(coords[0, :, token], expected, rtol=3e-7, err_msg=f"{grid} at {fps}")


def test_causal_time_counts_the_first_latent_frame_as_one_frame():
    times = [coords_of(Grid(4, 1, 1), 1.0, causal=causal)[0, 0].tolist() for causal in (True, False)]
    assert times == [[0, 1, 9, 17], [0, 8, 16, 24]]


def test_97_frames_at_25_fps_end_at_89_frames():
    assert coords_of(grid_of(512, 768, 97), 25, causal=True)[0, 0, -1] == pytest.approx(3.56)


@BOTH
def test_twice_the_frame_rate_halves_time_and_leaves_space(causal):
    slow, fast = (coords_of(Grid(4, 3, 2), fps, causal=causal) for fps in (15, 30))
    np.testing.assert_allclose(slow[:, 0], 2 * fast[:, 0], rtol=3e-7)
    np.testing.assert_array_equal(slow[:, 1:], fast[:, 1:])


@BOTH
def test_a_grid_that_begins_within_a_video_is_later_by_its_first_frame_and_nowhere_else(causal):
    for grid in GRIDS:
        begins, later = (coords_of(grid, 8, causal=causal, first_frame=first) for first in (0, 13))
        np.testing.assert_array_equal(later[:, 0], begins[:, 0] + 13 / 8, str(grid))
        np.testing.assert_array_equal(later[:, 1:], begins[:, 1:], str(grid))


@BOTH
def test_seconds_of_a_later_grid_are_rounded_once(causal):
    """Frame numbers are added before they are converted to seconds, so that only one rounding happens."""
    times = coords_of(Grid(3, 1, 1), 30, causal=causal, first_frame=13)[0, 0]
    frames = np.array([13, 14, 22] if causal else [13, 21, 29], np.float32)
    np.testing.assert_array_equal(times, frames * np.float32(1 / 30))


@pytest.mark.parametrize("fps", [0, -24, float("nan"), float("inf"), -float("inf")])
def test_a_frame_rate_that_is_no_positive_number_is_refused(fps):
    for refused in (lambda: check_fps(fps), lambda: coords_of(Grid(1, 1, 1), fps, causal=True)):
        with pytest.raises(LtxError, match="fps must be a positive number"):
            refused()


def test_latents_come_back_from_their_tokens():
    for grid in GRIDS:
        latents = np.random.RandomState(0).rand(2, 5, grid.frames, grid.rows, grid.columns).astype(np.float32)
        tokens = tokens_of(latents)
        assert tokens.shape == (2, grid.tokens, 5), grid
        np.testing.assert_array_equal(latents_of(tokens, grid), latents, str(grid))


def test_tokens_stand_in_the_order_of_their_coordinates():
    grid = Grid(3, 4, 5)
    cells = np.stack(np.meshgrid(*(np.arange(n) for n in (3, 4, 5)), indexing="ij"))[None].astype(np.float32)
    coords = coords_of(grid, 1.0, causal=False)[0].T  # (N, 3)
    np.testing.assert_array_equal(tokens_of(cells)[0] * [8, 32, 32], coords)


def test_tokens_and_latents_lie_contiguously_in_memory():
    latents = np.zeros((1, 6, 2, 3, 4), np.float32)
    assert tokens_of(latents).flags.c_contiguous
    assert latents_of(tokens_of(latents), Grid(2, 3, 4)).flags.c_contiguous


def test_sizes_are_padded_up_to_multiples_of_32_and_8n_plus_1_frames():
    known = {
        (704, 1216, 121): (704, 1216, 121),
        (480, 720, 97): (480, 736, 97),
        (1, 33, 1): (32, 64, 1),
        (500, 31, 100): (512, 32, 105),
        (32, 32, 2): (32, 32, 9),
        (32, 32, 9): (32, 32, 9),
        (32, 32, 10): (32, 32, 17),
    }
    assert {asked: padded_size(*asked) for asked in known} == known


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_padded_size_is_the_nearest_above_that_can_be_made(place):
    for given in range(1, 140, 3):
        size = [64, 64, 9]
        size[place] = given
        padded = padded_size(*size)
        assert grid_of(*padded), given
        assert 0 <= padded[place] - given < (32, 32, 8)[place], given


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_size_without_pixels_or_frames_cannot_be_padded(place):
    name, usual = (("height", 480), ("width", 704), ("num-frames", 97))[place]
    for given in (0, -1):
        size = [64, 64, 9]
        size[place] = given
        with pytest.raises(LtxError, match=f"^{name} must be at least 1; got {given} - use {usual}$"):
            padded_size(*size)


def test_padding_lies_around_the_middle_and_the_odd_pixel_right_and_below():
    assert padding_of(500, 333, 512, 352) == Padding(left=9, right=10, top=6, bottom=6)
    assert padding_of(81, 50, 96, 64) == Padding(left=7, right=7, top=7, bottom=8)
    assert padding_of(64, 96, 64, 96) == Padding(0, 0, 0, 0)


def test_without_its_padding_a_picture_has_its_own_size():
    for height, width in product(range(1, 70, 7), range(1, 70, 5)):
        padded = padded_size(height, width, 1)[:2]
        left, right, top, bottom = padding_of(height, width, *padded)
        assert (padded[0] - top - bottom, padded[1] - left - right) == (height, width)


def test_first_passes_of_known_sizes():
    known = {
        (704, 1216): (448, 800),
        (512, 768): (320, 480),
        (480, 832): (288, 544),
        (768, 1152): (480, 736),
        (256, 320): (160, 192),
        (1024, 1024): (672, 672),
    }
    assert {size: first_pass_size(*size, 0.6666666) for size in known} == known


@pytest.mark.parametrize("factor", [0.6666666, 0.5, 0.75])
def test_a_side_too_short_for_a_first_pass_is_refused_with_the_shortest_that_is_not(factor):
    for side, place in product(range(32, 400, 32), (0, 1)):
        size = (2048, side) if place else (side, 2048)
        if int(side * factor) >= 32:
            assert first_pass_size(*size, factor)[place] == int(side * factor) // 32 * 32, side
            continue
        with pytest.raises(LtxError, match=f"got {side} - use (\\d+)$") as refused:
            first_pass_size(*size, factor)
        shortest = int(str(refused.value).rpartition(" ")[2])
        assert first_pass_size(shortest, shortest, factor) == (32, 32), side
