"""Encodes images and clips to latents with an open session of the VAE encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sessions import Session
from ltx_runtime.sessions.numbers import finite
from ltx_runtime.vae.tiling import Tiling, encode_tiled

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Posterior:
    """The VAE's posterior of a clip: mean and standard deviation of normalized latents, (B, C, F, H, W) float32."""

    mean: Floats
    deviation: Floats

    def sample(self, noise: Floats) -> Floats:
        """Returns latents sampled from the posterior with standard normal noise of the same shape.

        Raises:
            NotFiniteError: a value is not finite, as of a huge deviation.
        """
        return finite(self.mean + self.deviation * noise, "sampling from the encoded media gave")


def encode_media(session: Session, video: Floats, tiling: Tiling) -> Posterior:
    """Returns the posterior of a clip (1, 3, 8F-7, 32H, 32W) float32 in [-1, 1], encoded whole or in tiles.

    Raises:
        NotFiniteError: a value is not finite.
    """

    made = f"the {session.component.name} computed"

    def encode(clip: Floats) -> Floats:
        return finite(np.asarray(session.run({"video": clip[None]})["posterior"][0]), made)

    posterior = encode_tiled(video[0], encode, tiling)[None]
    mean, deviation = np.split(posterior, 2, axis=1)
    return Posterior(mean, deviation)
