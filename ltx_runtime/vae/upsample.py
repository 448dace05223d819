"""Latents -> more latents, by an open session of a spatial or temporal upsampler."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sessions import Session

Floats = NDArray[np.float32]


def upsample(session: Session, latents: Floats) -> Floats:
    """Normalized latents (B, C, F, H, W) of twice the size, or with the temporal upsampler twice the frame rate."""
    return np.asarray(session.run({"latents": latents})["upsampled"])
