"""How large tiles may be: estimates of memory, and the tiling within a budget that does the least twice.

Stands beside `tiling`, which cuts and blends. Knows nothing of sessions or models; sizes are in latents unless they say
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product, starmap

from ltx_runtime.errors import LtxError
from ltx_runtime.vae.tiling import (
    FRAME_OVERLAP,
    LEAD,
    RGB,
    SPACE_OVERLAP,
    SPATIAL_SCALE,
    TEMPORAL_SCALE,
    Tiling,
    spans_of,
)

# Of ONNX Runtime on the CPU in fp32 without its arena: about five tensors of 128 channels for every 4x4 pixels.
BYTES_PER_PIXEL = 180
# The same five tensors in bf16 or fp16, and the video in fp32 and as bytes. Not measured yet.
HALF_BYTES_PER_PIXEL = 95
# The least any window needs: the widest layers' weights in fp32.
SMALLEST_BYTES = 550_000_000
_BYTES_OF_VALUES = 4

Serves = Callable[[int, int, int], bool]  # frames, rows, columns of a window -> whether what decodes it takes that size


class UnservedError(ValueError):
    """What decodes or encodes takes no tile of a grid, however it is cut."""


def activation_bytes(frames: int, rows: int, columns: int, *, bytes_per_pixel: float = BYTES_PER_PIXEL) -> int:
    """Estimated memory to decode or encode one window at once; files of weights that are mapped do not count."""
    return max(SMALLEST_BYTES, int(bytes_per_pixel * _num_pixels(frames, rows, columns)))


def peak_bytes(
    frames: int,
    rows: int,
    columns: int,
    tiling: Tiling,
    *,
    encoding: bool = False,
    bytes_per_pixel: float = BYTES_PER_PIXEL,
) -> int:
    """Estimated memory of a grid in tiles: one window's activations and, of a decode, the frames held beside them."""
    tile_frames, tile_rows, tile_columns = tiling.window(frames, rows, columns)
    held = 0
    if tile_columns < columns:
        held += _num_pixels(tile_frames, tile_rows, columns)
    if tile_rows < rows:
        held += _num_pixels(tile_frames, rows, columns)
    if tile_frames < frames:
        held += TEMPORAL_SCALE * tiling.frame_overlap // 2 * _num_pixels(1, rows, columns)
    window = activation_bytes(tile_frames, tile_rows, tile_columns, bytes_per_pixel=bytes_per_pixel)
    return window if encoding else window + RGB * _BYTES_OF_VALUES * held


def tiling_for(
    frames: int,
    rows: int,
    columns: int,
    budget_bytes: float,
    *,
    encoding: bool = False,
    bytes_per_pixel: float = BYTES_PER_PIXEL,
    serves: Serves = lambda frames, rows, columns: True,
    or_smallest: bool = False,
) -> Tiling | None:
    """The tiling within a budget that does the least twice; None if a grid needs no tiles.

    Encoding cuts time only where nothing else helps: what an encoder saw long ago still counts. With `or_smallest`, a
    grid of which nothing fits is cut as small as it is served, since the budget may be wrong.

    Raises:
        LtxError: the smallest tiles need more.
        UnservedError: `serves` takes no tile of any size.
    """
    overlaps = (FRAME_OVERLAP, SPACE_OVERLAP, SPACE_OVERLAP)
    sizes = [_tile_sizes(size, overlap) for size, overlap in zip((frames, rows, columns), overlaps, strict=True)]
    need = partial(peak_bytes, frames, rows, columns, encoding=encoding, bytes_per_pixel=bytes_per_pixel)
    served = [one for one in starmap(Tiling, product(*sizes)) if serves(*one.window(frames, rows, columns))]
    if not served:
        raise UnservedError(f"no tile of {frames}x{rows}x{columns} latents is served")
    peaks = {tiling: need(tiling) for tiling in served}
    fitting = [tiling for tiling, peak in peaks.items() if peak <= budget_bytes]
    if not fitting and or_smallest:
        fitting = [min(peaks, key=lambda tiling: peaks[tiling])]
    if not fitting:
        raise LtxError(
            f"{TEMPORAL_SCALE * frames - LEAD} frames of {SPATIAL_SCALE * columns}x{SPATIAL_SCALE * rows} take "
            f"{math.ceil(min(peaks.values()) / 1e8) / 10:.1f} GB even in the smallest tiles; "
            f"got {budget_bytes / 1e9:.2f} GB",
            "allow more or make less",
        )

    def price(tiling: Tiling) -> tuple[bool, int]:
        return encoding and tiling.frames is not None, _tiled_pixels(frames, rows, columns, tiling)

    best = min(fitting, key=price)
    return None if best == Tiling() else best


def _tile_sizes(size: int, overlap: int) -> list[int | None]:
    """The whole, then for every number of tiles the smallest that share enough."""
    smallest = 2 * overlap
    sizes = {-(-(size + count * overlap) // (count + 1)) for count in range(1, size)} | {smallest}
    return [None, *(tile for tile in sorted(sizes) if smallest <= tile < size)]


def _tiled_pixels(frames: int, rows: int, columns: int, tiling: Tiling) -> int:
    """How many pixels all tiles have together."""
    in_time = spans_of(frames, tiling.frames, tiling.frame_overlap)
    down = spans_of(rows, tiling.rows, tiling.space_overlap)
    across = spans_of(columns, tiling.columns, tiling.space_overlap)
    return len(in_time) * len(down) * len(across) * _num_pixels(in_time[0].stop, down[0].stop, across[0].stop)


def _num_pixels(frames: int, rows: int, columns: int) -> int:
    return (TEMPORAL_SCALE * frames - LEAD) * SPATIAL_SCALE**2 * rows * columns
