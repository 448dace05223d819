"""The denoising loop as a generator, so that the caller controls progress, preview, cancelling and memory.

The loop takes a velocity function and a function that draws noise; it knows nothing about sessions, text or guidance.
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
    """State after one denoising step.

    Attributes:
        index: number of the step, from 0.
        sigma: noise level after the step.
        tokens: (B, N, C) float32 at that noise level.
        before: tokens before the step.
        timesteps: noise levels of `before`, (1, 1) or one per token.
        velocity: velocity that the transformer returned for `before`.
    """

    index: int
    sigma: float
    tokens: Tokens
    before: Tokens
    timesteps: NDArray[np.float32]
    velocity: Tokens

    def predicted(self) -> Tokens:
        """Returns the noise-free tokens that the transformer predicts at this step: x - t v, (B, N, C) float32."""
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
    resumed: tuple[int, Tokens] | None = None,
) -> Iterator[Step]:
    """Yields one Step per sigma; the last one, at sigma 0, holds the result.

    Args:
        tokens: (B, N, C) float32, at noise level sigmas[0] where they are not conditioned.
        sigmas: (n,) float32, descending; the step from the last one always goes to 0.
        velocity_of: computes the velocity of a step, see VelocityOf.
        draw: (name, shape) -> fresh noise; the names are `image_<step>` and `step_<step>`.
        stochastic: whether to go to the predicted data and add fresh noise, instead of Euler steps.
        mask: (1, N) in 0..1, the conditioning strength of each token; a token changes only while sigma <= 1 - mask.
        image_noise_scale: scale of the noise that fully conditioned tokens get before every step, times sigma squared.
        resumed: number of finished steps, and the tokens after them; their noise is drawn as well.
    """
    initial = tokens
    finished, tokens = resumed or (0, tokens)
    renoised = mask is not None and image_noise_scale > 0
    for index in range(finished):
        for name in ("image",) * renoised + ("step",) * stochastic:
            draw(f"{name}_{index}", tokens.shape)
    for index, sigma in [*enumerate(sigmas)][finished:]:
        if mask is not None and renoised:
            noise = draw(f"image_{index}", tokens.shape)
            tokens = renoise_image_tokens(tokens, initial, mask, noise, image_noise_scale, float(sigma))
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
