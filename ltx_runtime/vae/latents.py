"""Operations on normalized latents between and after the passes: noising, AdaIN and tone mapping.

The formulas are those of the official `ltx-video` pipeline (LTXMultiScalePipeline, tone_map_latents). This module knows
nothing about sessions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]

_SPACE_TIME = (2, 3, 4)


def noised(latents: Latents, noise: Latents, sigma: float) -> Latents:
    """Returns latents (B, C, F, H, W) noised to level `sigma`: the start of a pass that refines existing latents."""
    level = np.float32(sigma)
    mixed: Latents = level * noise + (np.float32(1.0) - level) * latents
    return mixed


def adain(latents: Latents, reference: Latents) -> Latents:
    """Returns latents (B, C, F, H, W) with the mean and standard deviation of `reference` in each sample and channel.

    The standard deviation is the unbiased one. The reference may have another grid, but with more than one cell.
    """
    mean, deviation = _statistics(latents)
    reference_mean, reference_deviation = _statistics(reference)
    with np.errstate(divide="ignore", invalid="ignore"):  # of a constant channel; the caller looks for NaN
        adapted: Latents = (latents - mean) / deviation * reference_deviation + reference_mean
    return adapted


def _statistics(latents: Latents) -> tuple[Latents, Latents]:
    mean: Latents = latents.mean(_SPACE_TIME, keepdims=True, dtype=np.float32)
    deviation: Latents = latents.std(_SPACE_TIME, ddof=1, keepdims=True, dtype=np.float32)
    return mean, deviation


def tone_mapped(latents: Latents, ratio: float) -> Latents:
    """Returns latents with large values compressed: not at all at ratio 0, to two fifths at ratio 1."""
    strength = np.float32(0.75 * ratio)
    compression = np.float32(1.0) / (np.float32(1.0) + np.exp(-np.float32(4.0) * strength * (np.abs(latents) - 1)))
    mapped: Latents = latents * (np.float32(1.0) - np.float32(0.8) * strength * compression)
    return mapped
