"""The loop: noise -> latents, as a generator, so that the caller owns progress, preview, cancelling and memory.

Is given a velocity function; knows nothing of sessions, text or guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.schedule import Sigmas, euler_step, stochastic_step

VelocityOf = Callable[[NDArray[np.float32], float], NDArray[np.float32]]
NoiseOf = Callable[[tuple[int, ...]], NDArray[np.float32]]


@dataclass(frozen=True)
class Step:
    """The state after one step: `latents` (B, N, C) float32 at noise level `sigma`."""

    index: int
    sigma: float
    latents: NDArray[np.float32]


def denoise(
    latents: NDArray[np.float32], sigmas: Sigmas, velocity_of: VelocityOf, step_noise: NoiseOf | None = None
) -> Iterator[Step]:
    """Yields one Step per sigma; the last one, at sigma 0, holds the result.

    Args:
        latents: (B, N, C) float32 noise at level sigmas[0].
        sigmas: (n,) float32, descending; the jump after the last always goes to 0.
        velocity_of: (latents, sigma) -> velocity, same shape.
        step_noise: draws fresh noise for stochastic steps; None for deterministic Euler steps.
    """
    for index, sigma in enumerate(sigmas):
        next_sigma = float(sigmas[index + 1]) if index + 1 < len(sigmas) else 0.0
        velocity = velocity_of(latents, float(sigma))
        if step_noise is None:
            latents = euler_step(latents, velocity, float(sigma), next_sigma)
        else:
            noise = step_noise(latents.shape)
            latents = stochastic_step(latents, velocity, float(sigma), next_sigma, noise)
        yield Step(index, next_sigma, latents)
