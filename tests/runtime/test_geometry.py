"""Laws of sizes, tokens and coordinates."""

import re
from itertools import product

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.geometry import Grid, check_fps, coords_of, grid_of, latents_of, tokens_of

GRIDS = (Grid(1, 1, 1), Grid(4, 8, 12), Grid(3, 2, 5))
BOTH = pytest.mark.parametrize("causal", [True, False], ids=["causal", "not_causal"])


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((256, 384, 25), 384), ((512, 768, 97), 4992), ((704, 1216, 121), 13376), ((480, 704, 161), 6930)],
)
def test_known_sizes_have_the_known_number_of_tokens(size, tokens):
    assert grid_of(*size).tokens == tokens


@pytest.mark.parametrize("grid", [Grid(*sizes) for sizes in product((1, 2, 21), (1, 7), (1, 40))])
def test_a_grid_is_found_again_from_its_size_in_pixels(grid):
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
@pytest.mark.parametrize("given", [-33, -1, 0, 1, 2, 31, 33, 63, 100, 1000])
def test_every_refusal_names_the_nearest_sizes_below_and_above_that_can_be_made(place, step, offset, given):
    size = [64, 64, 9]
    size[place] = given
    possible = [n for n in range(1, given + 2 * step + 2) if n % step == offset] or [offset or step]
    if given in possible:
        assert grid_of(*size)
        return
    with pytest.raises(LtxError) as refused:
        grid_of(*size)
    named = [int(number) for number in re.findall(r"\d+", str(refused.value).rpartition(" - use ")[2])]
    below = [n for n in possible if n < given][-1:]
    above = [n for n in possible if n > given][:1]
    assert named == below + above


@BOTH
@pytest.mark.parametrize("fps", [24, 25.0, 30, 24000 / 1001])
@pytest.mark.parametrize("grid", GRIDS)
def test_coordinates_are_seconds_and_first_pixel_of_every_cell_frame_by_frame_row_by_row(grid, fps, causal):
    coords = coords_of(grid, fps, causal=causal)
    assert (coords.dtype, coords.shape) == (np.float32, (1, 3, grid.tokens))
    cells = product(range(grid.frames), range(grid.rows), range(grid.columns))
    for token, (frame, row, column) in enumerate(cells):
        first_frame = 8 * frame if not causal else max(8 * frame - 7, 0)
        np.testing.assert_allclose(coords[0, :, token], [first_frame / fps, 32 * row, 32 * column], rtol=3e-7)


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


@pytest.mark.parametrize("fps", [0, -24, float("nan"), float("inf"), -float("inf")])
def test_a_frame_rate_that_is_no_positive_number_is_refused(fps):
    for refused in (lambda: check_fps(fps), lambda: coords_of(Grid(1, 1, 1), fps, causal=True)):
        with pytest.raises(LtxError, match="fps must be a positive number"):
            refused()


@pytest.mark.parametrize("grid", GRIDS)
def test_latents_come_back_from_their_tokens(grid):
    latents = np.random.RandomState(0).rand(2, 5, grid.frames, grid.rows, grid.columns).astype(np.float32)
    tokens = tokens_of(latents)
    assert tokens.shape == (2, grid.tokens, 5)
    np.testing.assert_array_equal(latents_of(tokens, grid), latents)


def test_tokens_stand_in_the_order_of_their_coordinates():
    grid = Grid(3, 4, 5)
    cells = np.stack(np.meshgrid(*(np.arange(n) for n in (3, 4, 5)), indexing="ij"))[None].astype(np.float32)
    coords = coords_of(grid, 1.0, causal=False)[0].T  # (N, 3)
    np.testing.assert_array_equal(tokens_of(cells)[0] * [8, 32, 32], coords)


def test_tokens_and_latents_lie_contiguously_in_memory():
    latents = np.zeros((1, 6, 2, 3, 4), np.float32)
    assert tokens_of(latents).flags.c_contiguous
    assert latents_of(tokens_of(latents), Grid(2, 3, 4)).flags.c_contiguous
