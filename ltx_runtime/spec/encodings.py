"""Encodes noise levels as sinusoids, and positions of tokens as rotations: networks take these in their place.

They are computed here in float32 and are inputs of the graphs, because both are sines of angles of up to 1,000 and
15,000 radians: a backend that computes in bf16 throughout would get them wrong by a quarter turn and more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SINUSOID_CHANNELS = 256
TIMESTEP_SCALE = 1000.0  # the same in every release, in transformers and in decoders
_MAX_PERIOD = 10000.0


def sinusoid_of(timesteps: Floats) -> Floats:
    """Returns the sinusoids (..., 256) float32 of timesteps (...) float32 in 0..1: cosines, then sines.

    Source: `get_timestep_embedding` of diffusers with `flip_sin_to_cos` and no `downscale_freq_shift`, on timesteps
    times 1000, as the official networks use it.
    """
    half = SINUSOID_CHANNELS // 2
    exponents = np.float32(-math.log(_MAX_PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    distinct, places = np.unique(timesteps, return_inverse=True)  # one for each noise level of the tokens
    angles = (distinct * np.float32(TIMESTEP_SCALE))[:, None] * frequencies
    sinusoids = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return sinusoids[places.reshape(timesteps.shape)]


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which queries and keys are rotated, each (N, width / 2) float32."""

    cosines: Floats
    sines: Floats


@dataclass(frozen=True)
class Rope:
    """The rotary position embedding of a transformer.

    Attributes:
        frequencies: radians per unit of a position in [-1, 1], the same for all three axes.
        max_position: seconds, pixel row and pixel column that are at 1; zero is at -1.
    """

    frequencies: tuple[float, ...]
    max_position: tuple[float, float, float]

    def rotation(self, coords: Floats, width: int) -> Rotation:
        """Returns the rotation of tokens at coords (1, 3, N) float32, see `coords_of`, in a transformer of this width.

        The three axes are interleaved. Pairs of channels that are left over come first and are not rotated.

        Source: `Transformer3DModel.precompute_freqs_cis` of the official `ltx-video` package.
        """
        frequencies = np.array(self.frequencies, np.float32)
        unrotated = width // 2 - 3 * len(frequencies)
        rotation = Rotation(*(np.empty((coords.shape[2], width // 2), np.float32) for _ in range(2)))
        rotation.cosines[:, :unrotated], rotation.sines[:, :unrotated] = 1.0, 0.0
        for axis in range(3):
            distinct, places = np.unique(coords[0, axis], return_inverse=True)  # a few dozen for thousands of tokens
            positions = distinct / np.float32(self.max_position[axis]) * np.float32(2) - np.float32(1)
            angles = positions[:, None] * frequencies
            rotation.cosines[:, unrotated + axis :: 3] = np.cos(angles)[places]
            rotation.sines[:, unrotated + axis :: 3] = np.sin(angles)[places]
        return rotation
