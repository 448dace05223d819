"""Laws of memory: how much tiles hold at a time, and which tiles are chosen for a budget."""

import tracemalloc
from dataclasses import astuple
from itertools import product

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae import tile_sizes
from ltx_runtime.vae.tile_sizes import activation_bytes, peak_bytes, tiling_for
from ltx_runtime.vae.tiling import Tiling, decode_tiled

# Latent frames, rows and columns of a clip.
GRIDS = pytest.mark.parametrize(
    "grid", [Grid(16, 22, 38), Grid(7, 8, 12), Grid(1, 60, 40), Grid(40, 9, 9), Grid(33, 28, 50)], ids=str
)
HD = Grid(16, 22, 38)
SCRATCH = 4  # scratch memory of the decoder below, as a multiple of its output


def hungry(frames, rows, columns):
    """Decodes to zeros with five times the memory of the video, of which only the video remains."""
    shape = (8 * (frames.stop - frames.start) - 7, 32 * (rows.stop - rows.start), 32 * (columns.stop - columns.start))
    scratch = np.empty((SCRATCH, 3, *shape), np.float32)
    return np.zeros(scratch.shape[1:], np.float32)


@pytest.mark.parametrize("sizes", [(8, None, None), (8, 9, None), (8, None, 8), (8, 9, 8), (None, 9, 8)])
def test_memory_is_that_of_one_window_and_the_frames_held_whatever_the_length(sizes, monkeypatch):
    monkeypatch.setattr(tile_sizes, "SMALLEST_BYTES", 0)
    tiles, rows, columns = Tiling(*sizes), 11, 10
    for frames in (10, 18):
        tracemalloc.start()
        for frame in decode_tiled(Grid(frames, rows, columns), hungry, tiles):
            assert frame.shape == (3, 32 * rows, 32 * columns)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        expected = peak_bytes(Grid(frames, rows, columns), tiles, bytes_per_pixel=(1 + SCRATCH) * 12)
        assert expected <= peak <= expected + 3 * frame.nbytes
        assert (sizes[0] is None) or expected == peak_bytes(Grid(999, rows, columns), tiles, bytes_per_pixel=60)


@GRIDS
def test_a_tiling_stays_within_its_budget_and_more_memory_never_means_more_work(grid):
    budgets = np.linspace(smallest_budget(grid), 1.01 * max(peak_bytes(grid, Tiling()), 6e8), 12)
    tilings = [tiling_for(grid, budget) for budget in budgets]
    assert all(peak_bytes(grid, one or Tiling()) <= budget for one, budget in zip(tilings, budgets, strict=True))
    works = [decoded(grid, one or Tiling()) for one in tilings]
    assert works == sorted(works, reverse=True)
    assert tilings[-1] is None


@GRIDS
def test_no_other_tiling_that_fits_decodes_less(grid):
    for budget in np.linspace(smallest_budget(grid), activation_bytes(grid), 5):
        best = decoded(grid, tiling_for(grid, budget) or Tiling())
        for sizes in product(*([*range(8, size), None] for size in astuple(grid))):
            other = Tiling(*sizes)
            assert peak_bytes(grid, other) > budget or decoded(grid, other) >= best


def smallest_budget(grid):
    """Returns the bytes that the refusal of a budget of zero says to allow."""
    with pytest.raises(
        LtxError, match=r"^\d+ frames of \d+x\d+ take [\d.]+ GB even in the smallest tiles; "
    ) as refusal:
        tiling_for(grid, 0)
    assert str(refusal.value).endswith("; got 0.00 GB - raise the memory limit or request a smaller video")
    return 1e9 * float(str(refusal.value).split("take ")[1].split()[0])


def decoded(grid, tiles):
    """Returns the pixels of all tiles together, with the fewest tiles along each axis that reach its end."""
    total = 1024
    for size, tile, pixels in zip(astuple(grid), (tiles.frames, tiles.rows, tiles.columns), (8, 1, 1), strict=True):
        tile = min(tile or size, size)
        count = next(n for n in range(1, 99) if n * tile - (n - 1) * 4 >= size)
        total *= count * (8 * tile - 7 if pixels == 8 else tile)
    return total


def test_a_budget_below_the_smallest_tiles_is_refused_and_the_one_that_is_named_is_enough():
    with pytest.raises(
        LtxError, match=r"^121 frames of 1216x704 take ([\d.]+) GB even in .*; got 0\.10 GB - raise the memory limit"
    ):
        tiling_for(HD, 1e8)
    needed = smallest_budget(HD)
    assert tiling_for(HD, needed) is not None
    with pytest.raises(LtxError):
        tiling_for(HD, needed - 1.1e8)


def test_memory_grows_with_the_pixels_of_a_window_and_is_never_less_than_the_widest_weights():
    assert activation_bytes(Grid(1, 1, 1)) == activation_bytes(Grid(1, 2, 2)) == tile_sizes.SMALLEST_BYTES
    assert activation_bytes(HD) == tile_sizes.BYTES_PER_PIXEL * 121 * 704 * 1216
    assert activation_bytes(HD, bytes_per_pixel=85) * 2 == activation_bytes(HD, bytes_per_pixel=170)


@GRIDS
def test_encoding_cuts_time_only_where_no_cut_in_space_is_enough(grid):
    uncut = peak_bytes(grid, Tiling(None, min(grid.rows, 8), min(grid.columns, 8)), encoding=True)
    for budget in np.linspace(uncut, activation_bytes(grid), 7):
        tiles = tiling_for(grid, budget, encoding=True) or Tiling()
        assert tiles.frames is None
        assert peak_bytes(grid, tiles, encoding=True) <= budget
    if grid.frames > 8 and uncut > tile_sizes.SMALLEST_BYTES:
        assert tiling_for(grid, uncut - 1, encoding=True).frames is not None


def test_encoding_holds_no_frames_beside_a_window():
    for sizes in product((8, None), repeat=3):
        tile = [one or size for one, size in zip(sizes, astuple(HD), strict=True)]
        assert peak_bytes(HD, Tiling(*sizes), encoding=True) == activation_bytes(Grid(*tile))
        assert (peak_bytes(HD, Tiling(*sizes)) == activation_bytes(Grid(*tile))) == (sizes == (None, None, None))


def test_where_nothing_fits_the_smallest_served_is_tried_if_that_is_wanted():
    with pytest.raises(LtxError, match="even in the smallest tiles"):
        tiling_for(HD, 1, serves=lambda window: window == HD)
    assert tiling_for(HD, 1, serves=lambda window: window == HD, or_smallest=True) is None
    smallest = tiling_for(HD, 1, or_smallest=True)
    assert smallest.window(HD) == Grid(8, 8, 8)


def test_only_tiles_that_are_served_are_taken_and_a_grid_without_any_has_none():
    tiling = tiling_for(HD, 10**15, serves=lambda window: window.columns <= 20)
    assert tiling.window(HD).columns <= 20
    with pytest.raises(tile_sizes.UnservedError):
        tiling_for(HD, 10**15, serves=lambda window: False)
