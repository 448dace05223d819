"""Cuts a latent grid into overlapping tiles, decodes or encodes one after another, and blends what comes back, so
that the memory needed does not grow with the video.

Stands between latents and frames. Is given functions: knows nothing of sessions, models or noise. Sizes and slices
are in latents unless they say pixels.
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
_LEAD = TEMPORAL_SCALE - 1  # the first latent is one frame, so the frames of latent i are 8i-7 .. 8i
FRAME_OVERLAP = 4
SPACE_OVERLAP = 4

Array = NDArray[np.float32]
Decode = Callable[[slice, slice, slice], Array]  # frames, rows, columns -> video (3, 8f-7, 32h, 32w)
Encode = Callable[[Array], Array]  # video (3, 8f-7, 32h, 32w) -> (C, f, h, w)


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile (None: the whole axis), and how much neighbours share at least.

    What is near a cut is wrong, and less so with every latent of distance. Raises LtxError where a tile is smaller
    than two overlaps, or shares nothing in time.
    """

    frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    frame_overlap: int = FRAME_OVERLAP
    space_overlap: int = SPACE_OVERLAP

    def __post_init__(self) -> None:
        _check("frames", self.frames, self.frame_overlap, least=1)
        _check("rows", self.rows, self.space_overlap, least=0)
        _check("columns", self.columns, self.space_overlap, least=0)

    def window(self, grid: Grid) -> Grid:
        """Size of every tile of a grid: an axis that is shorter than a tile is not cut."""
        return Grid(
            min(self.frames or grid.frames, grid.frames),
            min(self.rows or grid.rows, grid.rows),
            min(self.columns or grid.columns, grid.columns),
        )


def _check(axis: str, size: int | None, overlap: int, least: int) -> None:
    if overlap < least:
        raise LtxError(f"tiles must share at least {least} latent {axis}; got {overlap}", f"use {FRAME_OVERLAP}")
    smallest = max(2 * overlap, 1)
    if size is not None and size < smallest:
        raise LtxError(f"tiles of {size} latent {axis} are too small to share {overlap}", f"use {smallest} or more")


def decode_tiled(grid: Grid, decode: Decode, tiling: Tiling) -> Iterator[Array]:
    """Decodes tile after tile; frames (3, 32H, 32W) float32 come in order, each as soon as nothing can change it.

    Holds the frames of one tile in time, and those of the tile before that fade into it.

    Args:
        grid: the grid of all latents.
        decode: frames, rows and columns as slices -> video (3, 8f-7, 32h, 32w) float32 of that window alone.
        tiling: one tile gives exactly what `decode` gives.
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
        both = fading.shape[1]
        yield from _faded(fading, video[:, done - first : done - first + both])
        yield from _copies(video[:, done - first + both : ramp.start - first])
        fading = video[:, ramp.start - first : ramp.stop - first].copy()
        done = ramp.start
        del video  # before the next is made


def _copies(video: Array) -> Iterator[Array]:
    """Every frame as an array of its own: a view would keep the whole tile as long as its reader has it."""
    for i in range(video.shape[1]):
        yield video[:, i].copy()


def _faded(before: Array, after: Array) -> Iterator[Array]:
    """Frames that turn from one video into the other; where both are equal they stay as they are."""
    for i, weight in enumerate(_weights(before.shape[1])):
        yield before[:, i] + weight * (after[:, i] - before[:, i])


def encode_tiled(video: Array, encode: Encode, tiling: Tiling) -> Array:
    """Encodes tile after tile: video (3, 8F-7, 32H, 32W) float32 -> (C, F, H, W) float32.

    The encoder sees only the past, so a tile is right to its end and is not blended in time: a later one begins
    with frame 8a as its one-frame latent, and its latents up to the end of the tile before are thrown away.

    Args:
        video: all frames.
        encode: such a video of any size -> (C, f, h, w), of that window alone.
        tiling: one tile gives exactly what `encode` gives.

    Raises:
        LtxError: the video has another size.
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
    """Frames and pixels of a window that is decoded alone: its first latent is one frame."""
    return (
        slice(TEMPORAL_SCALE * frames.start, TEMPORAL_SCALE * frames.stop - _LEAD),
        slice(SPATIAL_SCALE * rows.start, SPATIAL_SCALE * rows.stop),
        slice(SPATIAL_SCALE * columns.start, SPATIAL_SCALE * columns.stop),
    )


def _checked(made: Array, window: tuple[slice, slice, slice]) -> Array:
    expected = tuple(one.stop - one.start for one in window)
    if made.shape[1:] != expected:
        raise ValueError(f"a tile is {made.shape}, expected (..., {', '.join(map(str, expected))})")
    return made


def _over_space(grid: Grid, tiling: Tiling, scale: int, make: Callable[[slice, slice], Array]) -> Array:
    """All rows and columns (c, f, scale*H, scale*W) of what `make` gives for windows of them, blended."""
    down = spans_of(grid.rows, tiling.rows, tiling.space_overlap)
    across = spans_of(grid.columns, tiling.columns, tiling.space_overlap)
    down_ramps, across_ramps = (_ramps(spans, tiling.space_overlap, scale) for spans in (down, across))

    def band(rows: slice) -> Array:
        return _joined(across, across_ramps, 3, scale, partial(make, rows))

    return _joined(down, down_ramps, 2, scale, band)


def spans_of(size: int, tile: int | None, overlap: int) -> list[slice]:
    """The fewest tiles of that size which share at least `overlap`, spread evenly."""
    if tile is None or tile >= size:
        return [slice(0, size)]
    steps = -(-(size - tile) // (tile - overlap))
    starts = [i * (size - tile) // steps for i in range(steps + 1)]
    return [slice(start, start + tile) for start in starts]


def _ramps(spans: Sequence[slice], overlap: int, scale: int, lead: int = 0) -> list[slice]:
    """Frames or pixels where each tile but the first fades in: half an overlap, in the middle of what is shared.

    In the middle both tiles are equally wrong, and each is more so towards its own cut. As a tile is at least two
    overlaps long, no ramp reaches the next.
    """
    width = scale * overlap // 2
    ramps = []
    for before, after in pairwise(spans):
        start = (scale * (after.start + before.stop) - width) // 2 - lead
        first = max(start, scale * after.start)  # in time, the first latent of a tile lacks 7 of its frames
        ramps.append(slice(first, max(first, start + width)))
    return ramps


def _joined(
    spans: Sequence[slice], ramps: Sequence[slice], axis: int, scale: int, make: Callable[[slice], Array]
) -> Array:
    """Lays what `make` gives for each span over the one before, along one axis; of a single span, itself."""
    piece = make(spans[0])
    if len(spans) == 1:
        return piece
    shape = list(piece.shape)
    shape[axis] = scale * spans[-1].stop
    joined = np.empty(shape, np.float32)
    onto = np.moveaxis(joined, axis, 0)
    onto[: scale * spans[0].stop] = np.moveaxis(piece, axis, 0)
    for span, ramp in zip(spans[1:], ramps, strict=True):
        del piece  # before the next is made
        piece = make(span)
        new = np.moveaxis(piece, axis, 0)[ramp.start - scale * span.start :]
        both = ramp.stop - ramp.start
        onto[ramp] += _weights(both).reshape(-1, 1, 1, 1) * (new[:both] - onto[ramp])
        onto[ramp.stop : scale * span.stop] = new[both:]
        del new
    return joined


def _weights(size: int) -> Array:
    """Weights of the tile that fades in: a line from 0 to 1, taken at the middle of each frame or pixel."""
    weights: Array = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return weights
