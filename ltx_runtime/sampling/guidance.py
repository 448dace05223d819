"""How several velocities become one: CFG, CFG-star, STG and rescale. Knows nothing of sessions.

Formulas: the official `ltx-video` pipeline (rescale acts after STG, only with STG, and 1 means off).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.spec.presets import Guidance

Velocity = NDArray[np.float32]


def guidance_at(sigma: float, guidance: Sequence[Guidance]) -> Guidance:
    """The first entry whose `from_sigma` is at or below sigma (compared in float32), or the last."""
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
    """One velocity (B, N, C) float32 from the one with text, without, and with skipped self-attention."""
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
            factor = _deviation(text) / _deviation(guided)
            guided = guided * (np.float32(guidance.rescale) * factor + np.float32(1.0 - guidance.rescale))
    return guided


def _projection_scale(text: Velocity, unconditional: Velocity) -> Velocity:
    """<c, u> / (<u, u> + 1e-8) per sample, (B, 1, 1)."""
    flat_text = text.reshape(len(text), -1)
    flat = unconditional.reshape(len(unconditional), -1)
    scale: Velocity = (flat_text * flat).sum(1) / ((flat * flat).sum(1) + np.float32(1e-8))
    return scale.reshape(-1, 1, 1)


def _deviation(velocity: Velocity) -> Velocity:
    """Unbiased standard deviation over tokens and channels, (B, 1, 1)."""
    deviation: Velocity = velocity.std(axis=(1, 2), ddof=1, keepdims=True, dtype=np.float32)
    return deviation
