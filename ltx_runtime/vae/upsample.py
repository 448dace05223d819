"""Upsamples latents with an open session of the spatial or the temporal upsampler."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sessions import Session
from ltx_runtime.sessions.numbers import finite

Floats = NDArray[np.float32]


def upsample(session: Session, latents: Floats) -> Floats:
    """Returns normalized latents (B, C, F, H, W) at twice the height and width, or at twice the frame rate.

    Raises:
        NotFiniteError: a value is not finite.
    """
    return finite(np.asarray(session.run({"latents": latents})["upsampled"]), f"the {session.component.name} computed")
