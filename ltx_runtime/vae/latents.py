"""What is done to normalized latents between the passes and after them: noising, AdaIN, tone mapping.

Formulas: the official `ltx-video` pipeline (LTXMultiScalePipeline, tone_map_latents). Knows nothing of sessions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]

_SPACE_TIME = (2, 3, 4)


def noised(latents: Latents, noise: Latents, sigma: float) -> Latents:
    """Latents (B, C, F, H, W) moved to noise level `sigma`: where a pass begins that does not begin from noise."""
    level = np.float32(sigma)
    mixed: Latents = level * noise + (np.float32(1.0) - level) * latents
    return mixed


def adain(latents: Latents, reference: Latents) -> Latents:
    """Gives every sample and channel of (B, C, F, H, W) mean and deviation (unbiased) of those of `reference`.

    The reference may have another grid, but of more than one cell.
    """
    mean, deviation = _statistics(latents)
    wanted_mean, wanted_deviation = _statistics(reference)
    adapted: Latents = (latents - mean) / deviation * wanted_deviation + wanted_mean
    return adapted


def _statistics(latents: Latents) -> tuple[Latents, Latents]:
    mean: Latents = latents.mean(_SPACE_TIME, keepdims=True, dtype=np.float32)
    deviation: Latents = latents.std(_SPACE_TIME, ddof=1, keepdims=True, dtype=np.float32)
    return mean, deviation


def tone_mapped(latents: Latents, ratio: float) -> Latents:
    """Compresses large values: at ratio 0 nothing changes, at 1 large ones shrink to two fifths."""
    strength = np.float32(0.75 * ratio)
    pressed = np.float32(1.0) / (np.float32(1.0) + np.exp(-np.float32(4.0) * strength * (np.abs(latents) - 1)))
    mapped: Latents = latents * (np.float32(1.0) - np.float32(0.8) * strength * pressed)
    return mapped
