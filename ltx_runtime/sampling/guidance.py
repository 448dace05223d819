"""Combines several velocities into one: CFG, CFG-star, STG and rescaling. This module knows nothing about sessions.

Formulas: the official `ltx-video` pipeline (rescaling acts after STG, only with STG, and 1 means off).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.spec.presets import Guidance

Velocity = NDArray[np.float32]


def guidance_at(sigma: float, guidance: Sequence[Guidance]) -> Guidance:
    """Returns the first entry whose `from_sigma` is at or below sigma (compared in float32), or else the last entry."""
    for entry in guidance:
        if np.float32(entry.from_sigma) <= np.float32(sigma):
            return entry
    return guidance[-1]


def combine(
    guidance: Guidance,
    text: Velocity,
    unconditional: Velocity | None = None,
    perturbed: Velocity | None = None,
) -> Velocity:
    """Returns the guided velocity, (B, N, C) float32.

    Args:
        guidance: the scales of the step.
        text: velocity with the prompt.
        unconditional: velocity with the negative prompt; required for CFG.
        perturbed: velocity with skipped layers; required for STG.
    """
    guided = text
    if guidance.uses_cfg:
        assert unconditional is not None
        if guidance.cfg_star:
            unconditional = _projection_scale(text, unconditional) * unconditional
        guided = unconditional + np.float32(guidance.cfg_scale) * (text - unconditional)
    if guidance.uses_stg:
        assert perturbed is not None
        guided = guided + np.float32(guidance.stg_scale) * (text - perturbed)
        if guidance.rescale != 1.0:
            with np.errstate(divide="ignore", invalid="ignore"):  # of a constant velocity; the caller looks for NaN
                factor = _deviation(text) / _deviation(guided)
            guided = guided * (np.float32(guidance.rescale) * factor + np.float32(1.0 - guidance.rescale))
    return guided


def _projection_scale(text: Velocity, unconditional: Velocity) -> Velocity:
    """Returns <c, u> / (<u, u> + 1e-8) per sample, (B, 1, 1); c is `text` and u is `unconditional`."""
    flat_text = text.reshape(len(text), -1)
    flat = unconditional.reshape(len(unconditional), -1)
    scale: Velocity = (flat_text * flat).sum(1) / ((flat * flat).sum(1) + np.float32(1e-8))
    return scale.reshape(-1, 1, 1)


def _deviation(velocity: Velocity) -> Velocity:
    """Returns the unbiased standard deviation over tokens and channels, (B, 1, 1)."""
    deviation: Velocity = velocity.std(axis=(1, 2), ddof=1, keepdims=True, dtype=np.float32)
    return deviation
