"""Converts between pixels, latent grid and tokens, and locates each token in seconds and pixels.

This module knows nothing about models.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError

SPATIAL_SCALE = 32
TEMPORAL_SCALE = 8
LARGEST = 16_384  # pixels or frames; the model's positions reach 2048 pixels and 20 seconds
_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)", re.ASCII)
_LEAST_FPS, _MOST_FPS = 0.01, 10_000.0


@dataclass(frozen=True)
class Grid:
    """The latent grid of a video; one token per cell, ordered by frame, then row, then column."""

    frames: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * self.columns

    @property
    def num_frames(self) -> int:
        return TEMPORAL_SCALE * (self.frames - 1) + 1

    @property
    def height(self) -> int:
        return SPATIAL_SCALE * self.rows

    @property
    def width(self) -> int:
        return SPATIAL_SCALE * self.columns


def grid_of(height: int, width: int, num_frames: int) -> Grid:
    """Returns the latent grid that decodes to exactly this size.

    Raises:
        LtxError: height or width is not a positive multiple of 32 or num_frames is not 8n+1 (the message names the
            nearest valid values), or one of them is above 16384.
    """
    _check("height", height, SPATIAL_SCALE, 0, f"a multiple of {SPATIAL_SCALE}")
    _check("width", width, SPATIAL_SCALE, 0, f"a multiple of {SPATIAL_SCALE}")
    _check("num-frames", num_frames, TEMPORAL_SCALE, 1, f"{TEMPORAL_SCALE}n+1")
    return Grid((num_frames - 1) // TEMPORAL_SCALE + 1, height // SPATIAL_SCALE, width // SPATIAL_SCALE)


def size_of(text: str, name: str) -> tuple[int, int, int]:
    """Parses height, width and number of frames, as in 704x1216x121; the error message names the argument.

    Raises:
        LtxError: the text has another form.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise LtxError(f"{name} must be HEIGHTxWIDTHxFRAMES; got {text!r}", "use 704x1216x121")
    height, width, num_frames = map(int, match.groups())
    return height, width, num_frames


def _check(name: str, value: int, step: int, offset: int, rule: str) -> None:
    smallest = offset or step
    if value > LARGEST:
        raise LtxError(f"{name} must be at most {LARGEST}; got {value}", "use less")
    if value >= smallest and value % step == offset:
        return
    below = (value - offset) // step * step + offset
    nearest = [str(size) for size in (below, below + step) if size >= smallest] or [str(smallest)]
    raise LtxError(f"{name} must be {rule}; got {value}", f"use {' or '.join(nearest)}")


class Padding(NamedTuple):
    """Numbers of pixels around a picture inside a larger one."""

    left: int
    right: int
    top: int
    bottom: int


def padded_size(height: int, width: int, num_frames: int) -> tuple[int, int, int]:
    """Returns the smallest size at or above this one that the model can make: multiples of 32, and 8n+1 frames.

    Raises:
        LtxError: height, width or num_frames is below 1.
    """
    for name, value, usual in (("height", height, 480), ("width", width, 704), ("num-frames", num_frames, 97)):
        if value < 1:
            raise LtxError(f"{name} must be at least 1; got {value}", f"use {usual}")
    rows, columns = -(-height // SPATIAL_SCALE), -(-width // SPATIAL_SCALE)
    frames = (num_frames - 2) // TEMPORAL_SCALE + 1
    return rows * SPATIAL_SCALE, columns * SPATIAL_SCALE, frames * TEMPORAL_SCALE + 1


def padding_of(height: int, width: int, padded_height: int, padded_width: int) -> Padding:
    """Returns the padding that centers a picture in a larger one; an odd pixel goes to the right or the bottom."""
    vertical, horizontal = padded_height - height, padded_width - width
    assert min(vertical, horizontal) >= 0
    return Padding(horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)


def first_pass_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Returns the size of the first of two passes: `factor` times each side, rounded down to a multiple of 32.

    The second pass has twice that size.

    Raises:
        LtxError: a side of the first pass would be below 32.
    """
    smallest = math.ceil(SPATIAL_SCALE / factor / SPATIAL_SCALE) * SPATIAL_SCALE
    for name, value in (("height", height), ("width", width)):
        if int(value * factor) < SPATIAL_SCALE:
            raise LtxError(f"{name} must be at least {smallest} for two passes; got {value}", f"use {smallest}")
    rows, columns = (int(side * factor) // SPATIAL_SCALE for side in (height, width))
    return rows * SPATIAL_SCALE, columns * SPATIAL_SCALE


def coords_of(grid: Grid, fps: float, *, causal: bool, first_frame: int = 0) -> NDArray[np.float32]:
    """Returns token coordinates (1, 3, N) float32 as (seconds, pixel row, pixel column) of each cell's first corner.

    Causal positions (0.9.5 and later) count the first latent frame as one frame: 0, 1, 9, 17, ... instead of
    0, 8, 16, ... Seconds are frames times the float32 reciprocal of `fps`, as in the official pipeline. `first_frame`
    is the frame of the video at which the grid begins.

    Raises:
        LtxError: fps is not a positive finite number.
    """
    check_fps(fps)
    frames, rows, columns = np.meshgrid(
        np.arange(grid.frames), np.arange(grid.rows), np.arange(grid.columns), indexing="ij"
    )
    start = TEMPORAL_SCALE * frames
    if causal:
        start = np.maximum(start + 1 - TEMPORAL_SCALE, 0)
    seconds = (start + first_frame).astype(np.float32) * np.float32(1.0 / fps)
    coords = np.stack([seconds, SPATIAL_SCALE * rows, SPATIAL_SCALE * columns]).astype(np.float32)
    return coords.reshape(1, 3, grid.tokens)


def check_fps(fps: float) -> None:
    """Raises LtxError unless fps is a positive number at which float32 can tell the seconds of frames apart."""
    if not (math.isfinite(fps) and fps > 0):
        raise LtxError(f"fps must be a positive number; got {fps:g}", "use 24, 25 or 30")
    if not _LEAST_FPS <= fps <= _MOST_FPS:
        raise LtxError(f"fps must be from {_LEAST_FPS:g} to {_MOST_FPS:g}; got {fps:g}", "use 24, 25 or 30")


def tokens_of(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reshapes latents (B, C, F, H, W) to tokens (B, F*H*W, C)."""
    batch, channels = latents.shape[:2]
    return np.ascontiguousarray(latents.reshape(batch, channels, -1).transpose(0, 2, 1))


def latents_of(tokens: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Reshapes tokens (B, F*H*W, C) to latents (B, C, F, H, W)."""
    batch, _, channels = tokens.shape
    latents = tokens.transpose(0, 2, 1).reshape(batch, channels, grid.frames, grid.rows, grid.columns)
    return np.ascontiguousarray(latents)
