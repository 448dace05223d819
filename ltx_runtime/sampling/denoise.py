"""The loop: noise -> latents, as a generator, so that the caller owns progress, preview, cancelling and memory.

Is given a velocity function and a way to draw noise; knows nothing of sessions, text or guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sampling.conditioning import moves, renoise_image_tokens, token_timesteps
from ltx_runtime.sampling.schedule import Sigmas, euler_step, next_sigmas, stochastic_step

Tokens = NDArray[np.float32]
# (tokens (B, N, C), timesteps (1, 1) or (1, N), index of the step) -> velocity (B, N, C)
VelocityOf = Callable[[Tokens, NDArray[np.float32], int], Tokens]
Draw = Callable[[str, tuple[int, ...]], Tokens]


@dataclass(frozen=True)
class Step:
    """The state after one step.

    Attributes:
        index: number of the step, from 0.
        sigma: the noise level after it.
        tokens: (B, N, C) float32 at that noise level.
        before: the tokens before the step, at noise levels `timesteps`, (1, 1) or one per token.
        velocity: that the transformer gave for them.
    """

    index: int
    sigma: float
    tokens: Tokens
    before: Tokens
    timesteps: NDArray[np.float32]
    velocity: Tokens

    def predicted(self) -> Tokens:
        """The noise-free tokens that the transformer foresees at this step: x - t v, (B, N, C) float32."""
        data: Tokens = self.before - self.timesteps[..., None] * self.velocity
        return data


def denoise(
    tokens: Tokens,
    sigmas: Sigmas,
    velocity_of: VelocityOf,
    draw: Draw,
    *,
    stochastic: bool = False,
    mask: NDArray[np.float32] | None = None,
    image_noise_scale: float = 0.0,
) -> Iterator[Step]:
    """Yields one Step per sigma; the last one, at sigma 0, holds the result.

    Args:
        tokens: (B, N, C) float32, noise at level sigmas[0] where nothing is given.
        sigmas: (n,) float32, descending; the jump after the last always goes to 0.
        velocity_of: see VelocityOf.
        draw: (name, shape) -> fresh noise, for `image_<step>` and `step_<step>`.
        stochastic: go through the predicted data and noise it anew, instead of Euler steps.
        mask: (1, N) in 0..1, how much of each token is given; given ones join when sigma falls to 1 - mask.
        image_noise_scale: of the noise that wholly given tokens get before every step, times sigma squared.
    """
    given = tokens
    for index, sigma in enumerate(sigmas):
        if mask is not None and image_noise_scale > 0:
            noise = draw(f"image_{index}", tokens.shape)
            tokens = renoise_image_tokens(tokens, given, mask, noise, image_noise_scale, float(sigma))
        timesteps = token_timesteps(float(sigma), mask)
        velocity = velocity_of(tokens, timesteps, index)
        following = next_sigmas(timesteps, sigmas)
        if stochastic:
            noise = draw(f"step_{index}", tokens.shape)
            stepped = stochastic_step(tokens, velocity, timesteps, following, noise)
        else:
            stepped = euler_step(tokens, velocity, timesteps, following)
        before = tokens
        tokens = stepped if mask is None else np.where(moves(float(sigma), mask)[..., None], stepped, tokens)
        level = float(sigmas[index + 1]) if index + 1 < len(sigmas) else 0.0
        yield Step(index, level, tokens, before, timesteps, velocity)
