"""Estimates the memory of tiles, and finds the tiling within a memory budget that computes the fewest pixels twice.

The module `tiling` cuts and blends the tiles. This module knows nothing about sessions or models; sizes are in latents
unless they say pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product, starmap

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import TEMPORAL_SCALE, Grid
from ltx_runtime.vae.tiling import FRAME_OVERLAP, RGB, SPACE_OVERLAP, Tiling, spans_of

# ONNX Runtime on the CPU in fp32 without its arena: about five tensors of 128 channels for every 4x4 pixels.
BYTES_PER_PIXEL = 180
# The same five tensors in bf16 or fp16, and the video in fp32 and as bytes. Not measured yet.
HALF_BYTES_PER_PIXEL = 95
# OpenVINO in bf16: private memory grew by 350 to 360 bytes a pixel from 25 frames of 256x384 to 49 frames of 512x768.
OPENVINO_BYTES_PER_PIXEL = 360
# Memory that even the smallest window needs, for the weights of the widest layers in fp32.
SMALLEST_BYTES = 550_000_000
_BYTES_OF_VALUES = 4

Serves = Callable[[Grid], bool]  # a window -> whether the decoder or encoder takes that size


class UnservedError(ValueError):
    """The error if an engine of the decoder or encoder serves no tile of a grid, however the grid is cut."""


def activation_bytes(window: Grid, *, bytes_per_pixel: float = BYTES_PER_PIXEL) -> int:
    """Returns the estimated memory to decode or encode one window, without memory-mapped weights."""
    return max(SMALLEST_BYTES, int(bytes_per_pixel * _num_pixels(window)))


def peak_bytes(grid: Grid, tiling: Tiling, *, encoding: bool = False, bytes_per_pixel: float = BYTES_PER_PIXEL) -> int:
    """Returns the estimated memory to decode or encode a grid in tiles.

    That is the activations of one window and, for decoding, the frames that are held beside them.
    """
    tile = tiling.window(grid)
    held_pixels = 0
    if tile.columns < grid.columns:
        held_pixels += _num_pixels(replace(tile, columns=grid.columns))
    if tile.rows < grid.rows:
        held_pixels += _num_pixels(replace(grid, frames=tile.frames))
    if tile.frames < grid.frames:
        held_pixels += TEMPORAL_SCALE * tiling.frame_overlap // 2 * _num_pixels(replace(grid, frames=1))
    window = activation_bytes(tile, bytes_per_pixel=bytes_per_pixel)
    return window if encoding else window + RGB * _BYTES_OF_VALUES * held_pixels


def tiling_for(
    grid: Grid,
    budget_bytes: float,
    *,
    encoding: bool = False,
    bytes_per_pixel: float = BYTES_PER_PIXEL,
    serves: Serves = lambda window: True,
    or_smallest: bool = False,
) -> Tiling | None:
    """Returns the tiling within a memory budget that computes the fewest pixels twice; None if no tiles are needed.

    Encoding cuts time only if nothing else fits, since latents depend on frames from long before. With `or_smallest`,
    a grid for which no tiling fits gets the one that needs the least memory, since the budget may be wrong.

    Raises:
        LtxError: even the smallest tiles need more memory.
        UnservedError: `serves` accepts no tile of any size.
    """
    overlaps = (FRAME_OVERLAP, SPACE_OVERLAP, SPACE_OVERLAP)
    axes = (grid.frames, grid.rows, grid.columns)
    sizes = [_tile_sizes(size, overlap) for size, overlap in zip(axes, overlaps, strict=True)]
    peak_of = partial(peak_bytes, grid, encoding=encoding, bytes_per_pixel=bytes_per_pixel)
    served = [tiling for tiling in starmap(Tiling, product(*sizes)) if serves(tiling.window(grid))]
    if not served:
        raise UnservedError(f"no tile of {'x'.join(map(str, axes))} latents is served")
    peaks = {tiling: peak_of(tiling) for tiling in served}
    fitting = [tiling for tiling, peak in peaks.items() if peak <= budget_bytes]
    if not fitting and or_smallest:
        fitting = [min(peaks, key=lambda tiling: peaks[tiling])]
    if not fitting:
        raise LtxError(
            f"{grid.num_frames} frames of {grid.width}x{grid.height} take "
            f"{math.ceil(min(peaks.values()) / 1e8) / 10:.1f} GB even in the smallest tiles; "
            f"got {budget_bytes / 1e9:.2f} GB",
            "raise the memory limit or request a smaller video",
        )

    def cost(tiling: Tiling) -> tuple[bool, int]:
        return encoding and tiling.frames is not None, _tiled_pixels(grid, tiling)

    best = min(fitting, key=cost)
    return None if best == Tiling() else best


def _tile_sizes(size: int, overlap: int) -> list[int | None]:
    """Returns None for the whole axis, then the smallest tile size with enough overlap for each number of tiles."""
    smallest = 2 * overlap
    sizes = {-(-(size + count * overlap) // (count + 1)) for count in range(1, size)} | {smallest}
    return [None, *(tile for tile in sorted(sizes) if smallest <= tile < size)]


def _tiled_pixels(grid: Grid, tiling: Tiling) -> int:
    """Returns the number of pixels of all tiles together."""
    in_time = spans_of(grid.frames, tiling.frames, tiling.frame_overlap)
    down = spans_of(grid.rows, tiling.rows, tiling.space_overlap)
    across = spans_of(grid.columns, tiling.columns, tiling.space_overlap)
    return len(in_time) * len(down) * len(across) * _num_pixels(tiling.window(grid))


def _num_pixels(grid: Grid) -> int:
    return grid.num_frames * grid.height * grid.width
