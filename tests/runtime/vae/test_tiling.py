"""Laws of tiles: alignment with an ideal decoder, exactness with a decoder of limited range, order."""

from itertools import pairwise

import numpy as np
import pytest

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.tiling import Tiling, decode_tiled, encode_tiled

AXES = ("frames", "rows", "columns")
SEEDS = range(25)


def some_tiling(random, least_overlap=0):
    """Draws sizes of tiles and overlaps that a user could give."""
    frame_overlap = random.randint(max(least_overlap, 1), 9)
    space_overlap = random.randint(least_overlap, 9)
    sizes = [
        None if random.rand() < 0.2 else random.randint(max(2 * overlap, 1), 2 * overlap + 8)
        for overlap in (frame_overlap, space_overlap, space_overlap)
    ]
    return Tiling(*sizes, frame_overlap=frame_overlap, space_overlap=space_overlap)


def some_grid(random):
    """Draws a grid that is either long or wide, so that no test holds a gigabyte."""
    if random.rand() < 0.5:
        return (random.randint(1, 60), random.randint(1, 3), random.randint(1, 3))
    return (random.randint(1, 3), random.randint(1, 20), random.randint(1, 20))


def ideal(frames, rows, columns):
    """Decodes to pixels that hold their frame, row and column of the whole video."""
    return np.stack(
        np.meshgrid(
            np.arange(8 * frames.start, 8 * frames.stop - 7, dtype=np.float32),
            np.arange(32 * rows.start, 32 * rows.stop, dtype=np.float32),
            np.arange(32 * columns.start, 32 * columns.stop, dtype=np.float32),
            indexing="ij",
        )
    )


def whole(grid):
    return tuple(slice(0, size) for size in grid)


def seeing(latents, radius):
    """Returns a decoder whose pixels sum the latents within `radius` inside its window, wrong near every cut."""

    def decode(frames, rows, columns):
        near = latents[frames, rows, columns]
        for axis in range(3):
            summed = np.cumsum(np.insert(near, 0, 0, axis=axis), axis=axis)
            size = near.shape[axis]
            ends = [min(i + radius + 1, size) for i in range(size)]
            starts = [max(i - radius, 0) for i in range(size)]
            near = summed.take(ends, axis=axis) - summed.take(starts, axis=axis)
        near = near.repeat(8, axis=0)[7:].repeat(32, axis=1).repeat(32, axis=2)
        return np.stack([near] * 3).astype(np.float32)

    return decode


def video_of(grid, decode, tiles):
    return np.stack(list(decode_tiled(Grid(*grid), decode, tiles)), axis=1)


def test_tiles_of_an_ideal_decoder_make_every_frame_once_in_order_and_every_pixel_in_its_place():
    for seed in SEEDS:
        random = np.random.RandomState(seed)
        grid, tiles = some_grid(random), some_tiling(random)
        frames = list(decode_tiled(Grid(*grid), ideal, tiles))
        assert len(frames) == 8 * grid[0] - 7, seed
        for made, wanted in zip(frames, ideal(*whole(grid)).swapaxes(0, 1), strict=True):
            np.testing.assert_array_equal(made, wanted, f"seed {seed}")


def test_where_an_overlap_is_four_times_as_far_as_the_decoder_sees_tiles_equal_the_whole_exactly():
    for seed in SEEDS:
        random = np.random.RandomState(seed)
        grid, tiles = some_grid(random), some_tiling(random, least_overlap=4)
        latents = random.randint(-50, 50, grid)
        decode = seeing(latents, min(tiles.frame_overlap, tiles.space_overlap) // 4)
        np.testing.assert_array_equal(video_of(grid, decode, tiles), decode(*whole(grid)), f"seed {seed}")


@pytest.mark.parametrize("axis", range(3))
def test_a_decoder_that_sees_further_is_wrong_around_the_cut_and_nowhere_else(axis):
    grid = [2, 2, 2]
    grid[axis] = 12
    decode = seeing(np.random.RandomState(0).randint(1, 50, grid), 2)
    made = video_of(grid, decode, Tiling(**{AXES[axis]: 8}))
    wrong = np.flatnonzero((made != decode(*whole(grid))).any(axis=tuple({0, 1, 2, 3} - {axis + 1})))
    scale, lead = (8, 7) if axis == 0 else (32, 0)
    # The tiles share latents 4 to 7 and blend at 5 and 6. Within two latents of its cut, one is wrong at 6 and 7, the
    # other at 4 and 5.
    assert wrong.size
    assert wrong.min() >= scale * 5 - lead
    assert wrong.max() < scale * 7 - lead


@pytest.mark.parametrize("axis", range(3))
def test_a_tile_fades_in_linearly_over_the_middle_half_of_the_overlap(axis):
    def first_latent(*window):
        return np.full_like(ideal(*window), window[axis].start)

    grid = [1, 1, 1]
    grid[axis] = 12
    made = video_of(grid, first_latent, Tiling(**{AXES[axis]: 8})).max(axis=tuple({0, 1, 2, 3} - {axis + 1}))
    scale, lead = (8, 7) if axis == 0 else (32, 0)
    middles = np.arange(made.size) + 0.5 + lead
    np.testing.assert_allclose(made, 4 * np.clip((middles / scale - 5) / 2, 0, 1), rtol=1e-6)


def test_where_four_tiles_meet_each_counts_by_the_product_of_its_two_weights():
    values = np.random.RandomState(0).standard_normal((12, 12)).astype(np.float32)

    def corner(frames, rows, columns):
        return np.full_like(ideal(frames, rows, columns), values[rows.start, columns.start])

    made = video_of((1, 12, 12), corner, Tiling(rows=8, columns=8))[0, 0]
    later = np.clip((np.arange(384) + 0.5 - 160) / 64, 0, 1)
    weights = np.stack([1 - later, later])
    np.testing.assert_allclose(made, weights.T @ values[::4, ::4][:2, :2] @ weights, atol=1e-6)


def windows_of(grid, tiles):
    """Returns every window that is decoded."""
    windows = []

    def note(*window):
        windows.append(window)
        return ideal(*window)

    list(decode_tiled(Grid(*grid), note, tiles))
    return windows


def test_tiles_have_the_size_asked_for_share_what_was_asked_and_leave_nothing_out():
    for seed in SEEDS:
        random = np.random.RandomState(seed)
        grid, tiles = some_grid(random), some_tiling(random)
        windows = windows_of(grid, tiles)
        overlaps = (tiles.frame_overlap, tiles.space_overlap, tiles.space_overlap)
        sizes = (tiles.frames, tiles.rows, tiles.columns)
        for axis, (size, tile, overlap) in enumerate(zip(grid, sizes, overlaps, strict=True)):
            spans = sorted({(window[axis].start, window[axis].stop) for window in windows})
            assert {stop - start for start, stop in spans} == {min(tile or size, size)}, seed
            assert (spans[0][0], spans[-1][1]) == (0, size), seed
            assert all(before[1] - after[0] >= overlap for before, after in pairwise(spans)), seed
            fewer = len(spans) - 1  # one tile fewer would not reach the end
            assert not fewer or fewer * tile - (fewer - 1) * overlap < size, seed


def always(given):
    """Returns a decoder or encoder that always returns `given`."""
    return lambda *window: given


def test_one_tile_gives_the_bits_of_the_decoder_and_the_encoder():
    for seed in SEEDS:
        random = np.random.RandomState(seed)
        grid = tuple(random.randint(1, 6, 3))
        bits = random.randint(0, 2**32, (3, 8 * grid[0] - 7, 32 * grid[1], 32 * grid[2]), dtype=np.uint32)
        video = bits.view(np.float32)  # with infinities, negative zeros and NaN among them
        tiles = Tiling(*(random.choice([None, size + 8]) for size in grid))
        frames = list(decode_tiled(Grid(*grid), always(video), tiles))
        same = [frame.tobytes() for frame in frames] == [frame.tobytes() for frame in video.swapaxes(0, 1)]
        assert same, seed
        latents = np.frombuffer(random.bytes(8 * np.prod(grid)), np.float32).reshape(2, *grid)
        assert encode_tiled(video, always(latents), tiles).tobytes() == latents.tobytes(), seed


def test_a_tile_is_decoded_only_when_the_next_frame_needs_it():
    given, asked = [], []

    def note(*window):
        asked.append((window[0], len(given)))
        return ideal(*window)

    for frame in decode_tiled(Grid(40, 2, 2), note, Tiling(frames=11)):
        given.append(frame)  # one by one, to see when each frame comes
    assert len(asked) == 6
    assert asked[0] == (slice(0, 11), 0)
    for (before, _), (after, frames_given) in pairwise(asked):
        assert frames_given > 8 * after.start  # all frames before the new tile, and more
        assert frames_given < 8 * before.stop - 7  # but not yet the last frames of the previous tile


def test_frames_stay_as_they_were_given():
    frames = list(decode_tiled(Grid(14, 3, 3), ideal, Tiling(frames=8)))
    assert all(frame.flags.owndata and frame.flags.c_contiguous and frame.flags.writeable for frame in frames)


def causal(memory):
    """Returns an encoder whose latents sum a cell's pixels over their frames and those of `memory` earlier latents."""

    def encode(video):
        frames, rows, columns = video.shape[1] // 8 + 1, video.shape[2] // 32, video.shape[3] // 32
        cells = video.reshape(3, -1, rows, 32, columns, 32).sum((3, 5))
        groups = [cells[:, max(0, 8 * (i - memory) - 7) : 8 * i + 1].sum(1) for i in range(frames)]
        return np.stack(groups, axis=1)

    return encode


def test_latents_of_tiles_equal_those_of_the_whole_once_the_encoder_has_seen_its_past():
    for seed in SEEDS:
        random = np.random.RandomState(seed)
        (frames, rows, columns), tiles = some_grid(random), some_tiling(random)
        video = random.randint(-3, 4, (3, 8 * min(frames, 30) - 7, 32 * rows, 32 * columns)).astype(np.float32)
        encode = causal(tiles.frame_overlap - 1)  # a tile's first latent covers one of its eight frames
        np.testing.assert_array_equal(encode_tiled(video, encode, tiles), encode(video), f"seed {seed}")


def test_an_encoder_that_remembers_more_is_wrong_only_from_the_end_of_the_first_tile_on():
    video = np.random.RandomState(0).randint(1, 5, (3, 89, 32, 32)).astype(np.float32)
    encode = causal(4)
    made = encode_tiled(video, encode, Tiling(frames=8))
    np.testing.assert_array_equal((made == encode(video)).all((0, 2, 3)), [True] * 8 + [False] + [True] * 3)


def test_neighbours_of_an_encoder_fade_over_the_two_latents_in_the_middle():
    def first_column(window):
        return np.full((1, 1, 1, window.shape[3] // 32), window[0, 0, 0, 0])

    made = encode_tiled(
        ideal(*whole((1, 1, 12))) * 0 + np.arange(384, dtype=np.float32), first_column, Tiling(columns=8)
    )
    np.testing.assert_array_equal(made.ravel() / 128, [0, 0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("shape", [(3, 8, 32, 32), (3, 9, 33, 32), (3, 9, 32, 40), (4, 9, 32, 32), (3, 0, 32, 32)])
def test_a_video_that_has_no_latent_grid_is_refused(shape):
    with pytest.raises(
        LtxError, match=r"^a video to encode must be \(3, 8n\+1, 32n, 32n\); got \(\d.*\) - crop or pad it$"
    ):
        encode_tiled(np.zeros(shape, np.float32), causal(0), Tiling())


def test_a_decoder_that_loses_a_frame_is_noticed():
    with pytest.raises(ValueError, match=r"^a tile is \(3, 56, 32, 32\), expected \(\.\.\., 57, 32, 32\)$"):
        list(decode_tiled(Grid(20, 1, 1), lambda *window: ideal(*window)[:, 1:], Tiling(frames=8)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frames": 7}, "tiles of 7 latent frames are too small to share 4 - use 8 or more"),
        ({"rows": 5, "space_overlap": 3}, "tiles of 5 latent rows are too small to share 3 - use 6 or more"),
        ({"columns": 0, "space_overlap": 0}, "tiles of 0 latent columns are too small to share 0 - use 1 or more"),
        ({"frame_overlap": 0}, "tiles must share at least 1 latent frames; got 0 - use 4"),
        ({"space_overlap": -1}, "tiles must share at least 0 latent rows; got -1 - use 4"),
    ],
)
def test_tiles_that_could_not_be_blended_are_refused(given, said):
    with pytest.raises(LtxError, match=f"^{said}$"):
        Tiling(**given)
