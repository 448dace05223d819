"""Resizes pictures bilinearly, as the official pipeline resizes conditioning media and two-pass results.

Samples lie at pixel centres (align_corners=False), and shrinking has no antialiasing. This module knows nothing about
models.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resize_bilinear(video: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resizes (..., H, W) float32 to (..., height, width), picture by picture; returns the input if the size is equal.

    For values in [-1, 1], the result is within 1e-6 of torch's `interpolate`.
    """
    old_height, old_width = video.shape[-2:]
    assert video.dtype == np.float32 and min(old_height, old_width, height, width) > 0
    if (old_height, old_width) == (height, width):
        return video
    upper, lower, row_weights = _neighbours(old_height, height)
    left, right, column_weights = _neighbours(old_width, width)
    pictures = video.reshape(-1, old_height, old_width)
    resized = np.empty((len(pictures), height, width), np.float32)
    for picture, target in zip(pictures, resized, strict=True):
        rows = _mixed(picture[upper], picture[lower], row_weights[:, None])
        target[:] = _mixed(rows[:, left], rows[:, right], column_weights)
    return resized.reshape(*video.shape[:-2], height, width)


def _neighbours(old_size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Returns the pixels before and after each of `new_size` places on an axis of `old_size`, and the latter's weight.

    Rounds exactly where torch does: first the ratio and then the place to float32. At pixel 1000, another rounding
    would change the weight by 1e-4.
    """
    ratio = np.float64(np.float32(old_size) / np.float32(new_size))
    position = np.maximum((ratio * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32), np.float32(0.0))
    before = np.minimum(position.astype(np.int64), old_size - 1)
    weight: NDArray[np.float32] = np.minimum(position - before.astype(np.float32), np.float32(1.0))
    return before, np.minimum(before + 1, old_size - 1), weight


def _mixed(before: NDArray[np.float32], after: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolates between two arrays and overwrites both; returns the result in the memory of the first."""
    before *= np.float32(1.0) - weight
    after *= weight
    before += after
    return before
