"""Computes the sigmas for a number of steps, and the step from one sigma to the next.

A schedule is an array. Sigma is the only measure of time: 1 is noise, 0 is data.
Formulas: RectifiedFlowScheduler of the official `ltx-video` package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.presets import Pass, Schedule

Sigmas = NDArray[np.float32]

MAX_STEPS = 1000
_LINEAR_THRESHOLD = 0.025
_ALLOWED_DECIMALS = 4
_TIMESTEP_EPSILON = np.float32(1e-6)
_SD3_SHIFTS = ((1024, 0.95), (4096, 2.05))


def linear_quadratic(steps: int) -> Sigmas:
    """Returns (steps,) float32 sigmas without the final 0: one half linear down to 1 - 0.025, the rest quadratic."""
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
    """Returns the sigmas 1, 1-1/N, ..., 1/N as (steps,) float32."""
    return np.linspace(1.0, 1.0 / steps, steps, dtype=np.float32)


def sd3_shift(sigmas: Sigmas, tokens: int) -> Sigmas:
    """Shifts sigmas towards noise for longer videos: mu is linear in the number of tokens and not clamped."""
    (low, mu_low), (high, mu_high) = _SD3_SHIFTS
    mu = mu_low + (mu_high - mu_low) / (high - low) * (tokens - low)
    shifted: NDArray[np.float64] = 1.0 / (1.0 + math.exp(-mu) * (1.0 / sigmas.astype(np.float64) - 1.0))
    return shifted.astype(np.float32)


def stretch_to_terminal(sigmas: Sigmas, terminal: float) -> Sigmas:
    """Scales 1 - sigma so that the last sigma equals `terminal`; a single sigma of 1 is unchanged."""
    rest = 1.0 - sigmas.astype(np.float64)
    if rest[-1] == 0.0:
        return sigmas
    stretched: NDArray[np.float64] = 1.0 - rest * (1.0 - terminal) / rest[-1]
    return stretched.astype(np.float32)


GRIDS = {"LinearQuadratic": linear_quadratic, "Uniform": uniform}
SHIFTS = {"SD3": sd3_shift}


def sigmas_of(schedule: Schedule, one: Pass, tokens: int) -> Sigmas:
    """Returns the sigmas of a pass without the final 0, (n,) float32, descending.

    The pass's own list is used unchanged; otherwise `steps` sigmas of the schedule, without those skipped at both ends.

    Raises:
        LtxError: there are no more steps than skipped ones, or above 1000; a number of skipped steps is negative; the
            schedule's sigmas are too close to each other; or the pass's own list does not descend within 1..0.
    """
    if one.sigmas:
        sigmas = np.array(one.sigmas, np.float32)
        if not (np.isfinite(sigmas).all() and sigmas[-1] > 0 and sigmas[0] <= 1 and _descends(sigmas)):
            listed = ", ".join(f"{sigma:g}" for sigma in one.sigmas)
            raise LtxError(f"timesteps must descend from at most 1 and stay above 0; got {listed}", "leave 0 out")
        return sigmas
    skipped = one.skip_initial_steps + one.skip_final_steps
    if min(one.skip_initial_steps, one.skip_final_steps) < 0:
        raise LtxError(
            f"steps to skip cannot be negative; got {one.skip_initial_steps} and {one.skip_final_steps}", "use 0"
        )
    if not skipped < one.steps <= MAX_STEPS:
        raise LtxError(f"steps must be from {skipped + 1} to {MAX_STEPS}; got {one.steps}", "use 20 or more")
    sigmas = GRIDS[schedule.sampler](one.steps)
    if schedule.shifting:
        sigmas = SHIFTS[schedule.shifting](sigmas, tokens)
        if schedule.target_shift_terminal is not None:
            sigmas = stretch_to_terminal(sigmas, schedule.target_shift_terminal)
    if not _descends(sigmas):
        raise LtxError(
            f"{one.steps} noise levels for {tokens} tokens are too close to each other",
            "ask for a smaller size, fewer frames or fewer steps",
        )
    return sigmas[one.skip_initial_steps : one.steps - one.skip_final_steps]


def _descends(sigmas: Sigmas) -> bool:
    """Returns whether each sigma is so far below the previous one that `next_sigmas` can tell them apart."""
    return bool((np.diff(sigmas) < -_TIMESTEP_EPSILON).all())


def check_allowed(sigmas: Sigmas, allowed: Sequence[float], advice: str = "") -> None:
    """Checks sigmas against those that a distilled transformer was trained on, to four decimals.

    If `allowed` is empty, all sigmas are allowed. `advice` replaces the default advice, which names the options for
    sigmas, where the sigmas come from elsewhere.

    Raises:
        LtxError: a sigma is not allowed; the message names it and all allowed ones.
    """
    rounded = {round(float(sigma), _ALLOWED_DECIMALS) for sigma in allowed}
    refused = [float(sigma) for sigma in sigmas if round(float(sigma), _ALLOWED_DECIMALS) not in rounded]
    if rounded and refused:
        listed = ", ".join(f"{sigma:g}" for sigma in allowed)
        raise LtxError(
            f"this version was distilled for the timesteps {listed}; got {refused[0]:g}",
            advice or "leave --steps and --timesteps out, or use --timesteps with some of these",
        )


def next_sigmas(timesteps: NDArray[np.float32], sigmas: Sigmas) -> NDArray[np.float32]:
    """Returns for each timestep the largest of the sigmas and 0 that is below it; a token at 0 stays at 0."""
    levels = np.append(sigmas, np.float32(0.0))
    lower = levels < timesteps[..., None] - _TIMESTEP_EPSILON
    following: NDArray[np.float32] = (levels * lower).max(-1)
    return following


def euler_step(
    tokens: NDArray[np.float32],
    velocity: NDArray[np.float32],
    timesteps: NDArray[np.float32],
    following: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Returns x - (t - next) v in float32; tokens are (B, N, C), timesteps (1, 1) or one per token."""
    stepped: NDArray[np.float32] = tokens - (timesteps - following)[..., None] * velocity
    return stepped


def stochastic_step(
    tokens: NDArray[np.float32],
    velocity: NDArray[np.float32],
    timesteps: NDArray[np.float32],
    following: NDArray[np.float32],
    noise: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Goes to the predicted data x - t v and adds fresh noise for the next sigma, in float32."""
    data = tokens - timesteps[..., None] * velocity
    level = following[..., None]
    stepped: NDArray[np.float32] = (np.float32(1.0) - level) * data + level * noise
    return stepped
