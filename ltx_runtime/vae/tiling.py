"""Decodes or encodes a latent grid in overlapping tiles, one after another, and blends the results.

The memory for activations then does not grow with the video. Functions that decode or encode one window are passed in:
this module knows nothing about sessions, models or noise. Sizes and slices are in latents unless they say pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import SPATIAL_SCALE, TEMPORAL_SCALE, Grid, grid_of

RGB = 3
_LEAD = TEMPORAL_SCALE - 1  # the first latent frame is one video frame, so latent frame i is frames 8i-7 .. 8i
FRAME_OVERLAP = 4
SPACE_OVERLAP = 4

Array = NDArray[np.float32]
Decode = Callable[[slice, slice, slice], Array]  # frames, rows, columns -> video (3, 8f-7, 32h, 32w)
Encode = Callable[[Array], Array]  # video (3, 8f-7, 32h, 32w) -> (C, f, h, w)


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile (None: the whole axis), and the minimum overlap of neighbouring tiles.

    Values near a cut have errors, which shrink with every latent of distance. Raises LtxError if a tile is smaller than
    two overlaps, or if tiles would not overlap in time.
    """

    frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    frame_overlap: int = FRAME_OVERLAP
    space_overlap: int = SPACE_OVERLAP

    def __post_init__(self) -> None:
        _check("frames", self.frames, self.frame_overlap, min_overlap=1)
        _check("rows", self.rows, self.space_overlap, min_overlap=0)
        _check("columns", self.columns, self.space_overlap, min_overlap=0)

    def window(self, grid: Grid) -> Grid:
        """Returns the size of every tile of a grid; an axis that is shorter than a tile is not cut."""
        return Grid(
            min(self.frames or grid.frames, grid.frames),
            min(self.rows or grid.rows, grid.rows),
            min(self.columns or grid.columns, grid.columns),
        )


def _check(axis: str, size: int | None, overlap: int, min_overlap: int) -> None:
    if overlap < min_overlap:
        raise LtxError(f"tiles must share at least {min_overlap} latent {axis}; got {overlap}", f"use {FRAME_OVERLAP}")
    smallest = max(2 * overlap, 1)
    if size is not None and size < smallest:
        raise LtxError(f"tiles of {size} latent {axis} are too small to share {overlap}", f"use {smallest} or more")


def decode_tiled(grid: Grid, decode: Decode, tiling: Tiling) -> Iterator[Array]:
    """Decodes tile after tile, and yields frames (3, 32H, 32W) float32 as soon as no later tile can change them.

    Holds the frames of one tile in time, and the frames of the previous one that fade into it.

    Args:
        grid: the grid of all latents.
        decode: slices of frames, rows and columns -> video (3, 8f-7, 32h, 32w) float32 of that window alone.
        tiling: how the grid is cut; with a single tile, the result is exactly that of `decode`.
    """

    def window(frames: slice, rows: slice, columns: slice) -> Array:
        return _checked(decode(frames, rows, columns), _in_video(frames, rows, columns))

    end = slice(grid.num_frames, grid.num_frames)
    spans = spans_of(grid.frames, tiling.frames, tiling.frame_overlap)
    ramps = [*_ramps(spans, tiling.frame_overlap, TEMPORAL_SCALE, _LEAD), end]
    done = 0
    fading = np.empty((RGB, 0), np.float32)
    for span, ramp in zip(spans, ramps, strict=True):
        video = _over_space(grid, tiling, SPATIAL_SCALE, partial(window, span))
        first = TEMPORAL_SCALE * span.start
        shared = fading.shape[1]
        yield from _faded(fading, video[:, done - first : done - first + shared])
        yield from _copies(video[:, done - first + shared : ramp.start - first])
        fading = video[:, ramp.start - first : ramp.stop - first].copy()
        done = ramp.start
        del video  # frees it before the next tile is decoded


def _copies(video: Array) -> Iterator[Array]:
    """Yields a copy of every frame: a view would keep the whole tile in memory for as long as the caller has it."""
    for i in range(video.shape[1]):
        yield video[:, i].copy()


def _faded(before: Array, after: Array) -> Iterator[Array]:
    """Yields frames that fade from one video into the other; where both are equal, the values stay exactly equal."""
    for i, weight in enumerate(_weights(before.shape[1])):
        yield before[:, i] + weight * (after[:, i] - before[:, i])


def encode_tiled(video: Array, encode: Encode, tiling: Tiling) -> Array:
    """Encodes tile after tile: video (3, 8F-7, 32H, 32W) float32 -> (C, F, H, W) float32.

    The encoder sees only the past, so a tile is correct up to its end and is not blended in time. A later tile begins
    with frame 8a as its one-frame latent, and its latents up to the end of the previous tile are discarded.

    Args:
        video: all frames.
        encode: video (3, 8f-7, 32h, 32w) of one window -> (C, f, h, w) of that window alone.
        tiling: how the video is cut; with a single tile, the result is exactly that of `encode`.

    Raises:
        LtxError: the video has another shape.
    """
    channels, num_frames, height, width = video.shape
    if channels != RGB or num_frames % TEMPORAL_SCALE != 1 or height % SPATIAL_SCALE or width % SPATIAL_SCALE:
        raise LtxError(f"a video to encode must be (3, 8n+1, 32n, 32n); got {video.shape}", "crop or pad it")
    grid = grid_of(height, width, num_frames)

    def window(frames: slice, rows: slice, columns: slice) -> Array:
        when, down, across = _in_video(frames, rows, columns)
        return _checked(encode(np.ascontiguousarray(video[:, when, down, across])), (frames, rows, columns))

    spans = spans_of(grid.frames, tiling.frames, tiling.frame_overlap)
    ramps = [slice(before.stop, before.stop) for before in spans[:-1]]
    return _joined(spans, ramps, 1, 1, lambda frames: _over_space(grid, tiling, 1, partial(window, frames)))


def _in_video(frames: slice, rows: slice, columns: slice) -> tuple[slice, slice, slice]:
    """Returns the frames and pixels of a window that is decoded alone, so that its first latent frame is one frame."""
    return (
        slice(TEMPORAL_SCALE * frames.start, TEMPORAL_SCALE * frames.stop - _LEAD),
        slice(SPATIAL_SCALE * rows.start, SPATIAL_SCALE * rows.stop),
        slice(SPATIAL_SCALE * columns.start, SPATIAL_SCALE * columns.stop),
    )


def _checked(tile: Array, window: tuple[slice, slice, slice]) -> Array:
    expected = tuple(part.stop - part.start for part in window)
    if tile.shape[1:] != expected:
        raise ValueError(f"a tile is {tile.shape}, expected (..., {', '.join(map(str, expected))})")
    return tile


def _over_space(grid: Grid, tiling: Tiling, scale: int, make: Callable[[slice, slice], Array]) -> Array:
    """Returns (c, f, scale*H, scale*W) for all rows and columns, blended from the windows that `make` returns."""
    down = spans_of(grid.rows, tiling.rows, tiling.space_overlap)
    across = spans_of(grid.columns, tiling.columns, tiling.space_overlap)
    down_ramps, across_ramps = (_ramps(spans, tiling.space_overlap, scale) for spans in (down, across))

    def band(rows: slice) -> Array:
        return _joined(across, across_ramps, 3, scale, partial(make, rows))

    return _joined(down, down_ramps, 2, scale, band)


def spans_of(size: int, tile: int | None, overlap: int) -> list[slice]:
    """Returns the fewest tiles of size `tile` that overlap by at least `overlap`, spread evenly over an axis."""
    if tile is None or tile >= size:
        return [slice(0, size)]
    steps = -(-(size - tile) // (tile - overlap))
    starts = [i * (size - tile) // steps for i in range(steps + 1)]
    return [slice(start, start + tile) for start in starts]


def _ramps(spans: Sequence[slice], overlap: int, scale: int, lead: int = 0) -> list[slice]:
    """Returns where each tile but the first fades in, in frames or pixels: half an overlap, centred in the shared part.

    In the middle both tiles have equal errors, and each has larger ones towards its own cut. Since a tile is at least
    two overlaps long, ramps do not overlap.
    """
    width = scale * overlap // 2
    ramps = []
    for before, after in pairwise(spans):
        start = (scale * (after.start + before.stop) - width) // 2 - lead
        first = max(start, scale * after.start)  # in time, the first latent frame of a tile lacks 7 of its frames
        ramps.append(slice(first, max(first, start + width)))
    return ramps


def _joined(
    spans: Sequence[slice], ramps: Sequence[slice], axis: int, scale: int, make: Callable[[slice], Array]
) -> Array:
    """Joins what `make` returns for each span along one axis, fading each into the next; a single one stays as is."""
    piece = make(spans[0])
    if len(spans) == 1:
        return piece
    shape = list(piece.shape)
    shape[axis] = scale * spans[-1].stop
    joined = np.empty(shape, np.float32)
    target = np.moveaxis(joined, axis, 0)
    target[: scale * spans[0].stop] = np.moveaxis(piece, axis, 0)
    for span, ramp in zip(spans[1:], ramps, strict=True):
        del piece  # frees it before the next one is made
        piece = make(span)
        new = np.moveaxis(piece, axis, 0)[ramp.start - scale * span.start :]
        shared = ramp.stop - ramp.start
        target[ramp] += _weights(shared).reshape(-1, 1, 1, 1) * (new[:shared] - target[ramp])
        target[ramp.stop : scale * span.stop] = new[shared:]
        del new
    return joined


def _weights(size: int) -> Array:
    """Returns the weights of a tile that fades in: a line from 0 to 1, sampled at the middle of each frame or pixel."""
    weights: Array = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return weights
