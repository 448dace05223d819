"""Images and clips, encoded, -> their places among the tokens: what is given, what is to be made, and how much of each.

Rules: the official `ltx-video` pipeline (prepare_conditioning, denoising_step). Knows geometry and arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import TEMPORAL_SCALE, Grid, coords_of, tokens_of

Floats = NDArray[np.float32]
# (number of the item, shape) -> standard normal noise
NoiseOf = Callable[[int, tuple[int, ...]], Floats]

# The first latents of a clip that begins within the video: the encoder saw nothing before them, so they cannot stand
# where latents of the video's middle stand.
_PREFIX = 2
_EPSILON = 1e-6


@dataclass(frozen=True)
class Item:
    """What the VAE encoder made of a condition: latents (B, C, f, H, W) float32, normalized, of the pass's own size."""

    latents: Floats
    frame: int
    strength: float


@dataclass(frozen=True)
class Conditioned:
    """What a pass begins from. Tokens that items add come first, in the order of the items, and leave at the end.

    Attributes:
        tokens: (B, extra + N, C) float32.
        coords: (1, 3, extra + N) float32, see coords_of.
        mask: (1, extra + N) float32, how much of each token is given; None if nothing is.
        extra: how many tokens items add.
    """

    tokens: Floats
    coords: Floats
    mask: Floats | None
    extra: int


def trimmed_frames(length: int, frame: int, num_frames: int) -> int:
    """How many of a clip's `length` frames are used from `frame` of a video on: as many as it has room for, 8k+1.

    Raises:
        LtxError: the video has no such frame.
    """
    if not 0 <= frame < num_frames:
        raise LtxError(f"a condition cannot begin at frame {frame} of {num_frames}", f"use 0 to {num_frames - 1}")
    return (min(length, num_frames - frame) - 1) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1


def check_item(num_media_frames: int, frame: int, num_frames: int) -> None:
    """Checks that an image or clip can be given from `frame` on in a video of `num_frames`.

    Raises:
        LtxError: its frames are not 8k+1 or go beyond the video, or a clip begins within a group of 8 frames.
    """
    step = TEMPORAL_SCALE
    if num_media_frames < 1 or num_media_frames % step != 1:
        below = max((num_media_frames - 1) // step, 0) * step + 1
        raise LtxError(f"a clip must have {step}k+1 frames; got {num_media_frames}", f"use its first {below}")
    latest = num_frames - num_media_frames
    if latest < 0:
        fitting = (num_frames - 1) // step * step + 1
        raise LtxError(f"a clip of {num_media_frames} frames is longer than {num_frames}", f"use its first {fitting}")
    if num_media_frames > 1:
        latest -= latest % step
        if frame % step:
            nearest = min(frame - frame % step, latest)
            raise LtxError(
                f"a clip must begin at a multiple of {step}; got frame {frame}", f"use {nearest}, or an image"
            )
    if not 0 <= frame <= latest:
        what = f"a clip of {num_media_frames} frames" if num_media_frames > 1 else "an image"
        raise LtxError(f"{what} cannot begin at frame {frame} of {num_frames}", f"use 0 to {latest}")


def added_frames(places: Iterable[tuple[int, int]]) -> int:
    """How many latent frames items add beside the video's own, by the frame each begins at and its number of frames."""
    return sum(min(frames // TEMPORAL_SCALE + 1, _PREFIX) for frame, frames in places if frame)


def condition(
    initial: Floats, items: Iterable[Item], noise_of: NoiseOf, grid: Grid, fps: float, *, causal: bool
) -> Conditioned:
    """Sets items into the latents that a pass begins from.

    What begins at frame 0 goes into the latents there. An image later on becomes tokens of its own beside those of the
    video, at its moment; of a clip the first two latents become such tokens and the rest go into the video's latents.

    Args:
        initial: (B, C, F, H, W) float32, at the pass's first noise level. It is left as it is.
        items: taken one after another; `noise_of` is asked before the next is taken.
        noise_of: draws noise for the tokens that an item adds; asked for no other item.
        grid: of `initial`.
        fps: frames per second of the video.
        causal: the position convention, see coords_of.
    """
    latents, mask = initial.copy(), np.zeros((1, 1, *initial.shape[2:]), np.float32)
    extra: list[tuple[Floats, Floats, Floats]] = []
    count = 0
    for index, item in enumerate(items):
        count += 1
        beside = _set_in(latents, mask, item)
        if beside is not None:
            extra.append(_beside(beside, item, noise_of(index, beside.shape), fps, causal=causal))
    own = tokens_of(latents), coords_of(grid, fps, causal=causal), tokens_of(mask)[..., 0]
    if not count:
        return Conditioned(own[0], own[1], None, 0)
    tokens, coords, masks = zip(*extra, own, strict=True)
    return Conditioned(
        np.concatenate(tokens, axis=1),
        np.concatenate(coords, axis=2),
        np.concatenate(masks, axis=1),
        sum(each.shape[1] for each in tokens[:-1]),
    )


def _set_in(latents: Floats, mask: Floats, item: Item) -> Floats | None:
    """Mixes an item into latents and marks it in the mask; returns those of its latents that go beside them."""
    given, beside, first = item.latents, None, 0
    if item.frame:
        beside, given, first = given[:, :, :_PREFIX], given[:, :, _PREFIX:], item.frame // TEMPORAL_SCALE + _PREFIX
        assert item.latents.shape[2] == 1 or item.frame % TEMPORAL_SCALE == 0
    place = (slice(None), slice(None), slice(first, first + given.shape[2]))
    if given.shape[2]:
        latents[place] = _mixed(latents[place], given, item.strength)
        mask[place] = item.strength
    return beside


def _beside(given: Floats, item: Item, noise: Floats, fps: float, *, causal: bool) -> tuple[Floats, Floats, Floats]:
    """Tokens, coordinates and mask of latents that stand beside the video's own, at the item's moment."""
    tokens = tokens_of(_mixed(noise, given, item.strength))
    coords = coords_of(Grid(*given.shape[2:]), fps, causal=causal, first_frame=item.frame)
    return tokens, coords, np.full((1, tokens.shape[1]), item.strength, np.float32)


def _mixed(noise: Floats, given: Floats, strength: float) -> Floats:
    """From noise at strength 0 to what is given at 1, both of them exactly."""
    assert noise.shape == given.shape
    weight = np.float32(strength)
    way = given - noise
    mixed: Floats = noise + weight * way if weight < 0.5 else given - (np.float32(1.0) - weight) * way
    return mixed


def renoise_image_tokens(
    tokens: Floats, initial: Floats, mask: Floats, noise: Floats, scale: float, sigma: float
) -> Floats:
    """Before a step: wholly given tokens are set back to how they began, plus a little noise so that they can move.

    Args:
        tokens: (B, N, C) float32.
        initial: tokens before the first step.
        mask: (1 or B, N) float32.
        noise: standard normal, of the shape of `tokens`.
        scale: of the noise, which is multiplied by sigma squared too.
        sigma: the step's noise level.
    """
    level = np.float32(sigma)
    noised = initial + np.float32(scale) * noise * (level * level)
    fixed = mask > np.float32(1.0 - _EPSILON)
    renoised: Floats = np.where(fixed[..., None], noised, tokens)
    return renoised


def token_timesteps(sigma: float, mask: Floats | None) -> Floats:
    """The noise level of each token, at most 1 - mask: (1 or B, N) float32, or (1, 1) without a mask."""
    level = np.float32(sigma)
    if mask is None:
        return np.full((1, 1), level)
    timesteps: Floats = np.minimum(level, np.float32(1.0) - mask)
    return timesteps


def moves(sigma: float, mask: Floats) -> NDArray[np.bool_]:
    """Which tokens (1 or B, N) a step at `sigma` moves: those whose own noise level it has reached."""
    moving: NDArray[np.bool_] = np.float32(sigma) - np.float32(_EPSILON) < np.float32(1.0) - mask
    return moving
