"""Number of steps -> sigmas, and the step from one sigma to the next. A schedule is an array; sigma is the only
clock: 1 is noise, 0 is data. Formulas: RectifiedFlowScheduler of the official `ltx-video` package.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.versions import Pass, Schedule

Sigmas = NDArray[np.float32]

MAX_STEPS = 1000
_LINEAR_THRESHOLD = 0.025
_SD3_SHIFTS = ((1024, 0.95), (4096, 2.05))


def linear_quadratic(steps: int) -> Sigmas:
    """Half the steps linear down to 1 - 0.025, the rest quadratic. (steps,) float32, without the final 0."""
    if steps == 1:
        return np.ones(1, np.float32)
    linear = steps // 2
    quadratic = steps - linear
    slope_gap = linear - _LINEAR_THRESHOLD * steps
    a = slope_gap / (linear * quadratic**2)
    b = _LINEAR_THRESHOLD / linear - 2 * slope_gap / quadratic**2
    c = a * linear**2
    grid = [_LINEAR_THRESHOLD * i / linear for i in range(linear)]
    grid += [a * i**2 + b * i + c for i in range(linear, steps)]
    return np.array([1.0 - x for x in grid], np.float64).astype(np.float32)


def uniform(steps: int) -> Sigmas:
    """1, 1-1/N, ..., 1/N as (steps,) float32."""
    return np.linspace(1.0, 1.0 / steps, steps, dtype=np.float32)


def sd3_shift(sigmas: Sigmas, tokens: int) -> Sigmas:
    """Moves sigmas towards noise for longer videos: mu is linear in the token count and not clamped."""
    (low, mu_low), (high, mu_high) = _SD3_SHIFTS
    mu = mu_low + (mu_high - mu_low) / (high - low) * (tokens - low)
    shifted: NDArray[np.float64] = math.exp(mu) / (math.exp(mu) + (1.0 / sigmas.astype(np.float64) - 1.0))
    return shifted.astype(np.float32)


def stretch_to_terminal(sigmas: Sigmas, terminal: float) -> Sigmas:
    """Scales 1 - sigma so that the last sigma equals `terminal`; one step at sigma 1 stays as it is."""
    rest = 1.0 - sigmas.astype(np.float64)
    if rest[-1] == 0.0:
        return sigmas
    stretched: NDArray[np.float64] = 1.0 - rest * (1.0 - terminal) / rest[-1]
    return stretched.astype(np.float32)


GRIDS = {"LinearQuadratic": linear_quadratic, "Uniform": uniform}
SHIFTS = {"SD3": sd3_shift}


def sigmas_of(schedule: Schedule, one: Pass, tokens: int, steps: int | None = None) -> Sigmas:
    """The noise levels of a pass, from the first to the last before 0. (n,) float32, descending.

    The pass's own list is used verbatim unless another number of `steps` is asked for; otherwise `steps` of the
    schedule, less those the pass skips at both ends.

    Raises:
        LtxError: steps is below 1, above 1000, or not more than the steps skipped, or contradicts a fixed list.
    """
    if one.sigmas:
        if steps is not None and steps != len(one.sigmas):
            raise LtxError(
                f"this version is distilled to a fixed list of {len(one.sigmas)} steps; "
                f"got {steps} - leave the steps out or use {len(one.sigmas)}"
            )
        return np.array(one.sigmas, np.float32)
    count = one.steps if steps is None else steps
    skipped = one.skip_initial_steps + one.skip_final_steps
    if not skipped < count <= MAX_STEPS:
        raise LtxError(f"steps must be from {skipped + 1} to {MAX_STEPS}; got {count} - use {one.steps}")
    sigmas = GRIDS[schedule.sampler](count)
    if schedule.shifting:
        sigmas = SHIFTS[schedule.shifting](sigmas, tokens)
        if schedule.target_shift_terminal is not None:
            sigmas = stretch_to_terminal(sigmas, schedule.target_shift_terminal)
    return sigmas[one.skip_initial_steps : count - one.skip_final_steps]


def euler_step(
    latents: NDArray[np.float32], velocity: NDArray[np.float32], sigma: float, next_sigma: float
) -> NDArray[np.float32]:
    """x - (sigma - next_sigma) v, in float32."""
    stepped: NDArray[np.float32] = latents - (np.float32(sigma) - np.float32(next_sigma)) * velocity
    return stepped


def stochastic_step(
    latents: NDArray[np.float32],
    velocity: NDArray[np.float32],
    sigma: float,
    next_sigma: float,
    noise: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Goes to the predicted data x - sigma v and noises it anew to `next_sigma`, in float32."""
    data = latents - np.float32(sigma) * velocity
    stepped: NDArray[np.float32] = (np.float32(1.0) - np.float32(next_sigma)) * data + np.float32(next_sigma) * noise
    return stepped
