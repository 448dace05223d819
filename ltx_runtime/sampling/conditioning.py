"""Places encoded images and clips among the tokens, and stores in a mask how strongly each token is conditioned.

Rules: the official `ltx-video` pipeline (prepare_conditioning, denoising_step). This module knows geometry and arrays
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import TEMPORAL_SCALE, Grid, coords_of, tokens_of

Floats = NDArray[np.float32]
# (index of the item, shape) -> standard normal noise
NoiseOf = Callable[[int, tuple[int, ...]], Floats]

# Number of latent frames at the start of a clip that become extra tokens if the clip begins after frame 0. The encoder
# saw nothing before them, so they cannot replace latent frames in the middle of the video.
_PREFIX = 2
_EPSILON = 1e-6


@dataclass(frozen=True)
class Item:
    """An encoded image or clip.

    Attributes:
        latents: (B, C, f, H, W) float32, normalized, of the pass's own size.
        frame: the frame of the video at which it begins.
        strength: in 0..1; at 1 the latents are used without noise.
    """

    latents: Floats
    frame: int
    strength: float


@dataclass(frozen=True)
class Conditioned:
    """Tokens from which a pass begins. Those that items add come first, in the order of the items.

    The added tokens are removed at the end of the pass.

    Attributes:
        tokens: (B, extra + N, C) float32.
        coords: (1, 3, extra + N) float32, see coords_of.
        mask: (1, extra + N) float32, the conditioning strength of each token; None without items.
        extra: number of tokens that items add.
    """

    tokens: Floats
    coords: Floats
    mask: Floats | None
    extra: int


def trimmed_frames(length: int, frame: int, num_frames: int) -> int:
    """Returns how many of a clip's `length` frames fit into a video from `frame` on, rounded down to 8k+1.

    Raises:
        LtxError: `frame` is not in the video.
    """
    if not 0 <= frame < num_frames:
        raise LtxError(f"a condition cannot begin at frame {frame} of {num_frames}", f"use 0 to {num_frames - 1}")
    return (min(length, num_frames - frame) - 1) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1


def check_item(num_media_frames: int, frame: int, num_frames: int) -> None:
    """Checks that an image or clip can be placed at `frame` of a video of `num_frames` frames.

    Raises:
        LtxError: its number of frames is not 8k+1, it extends beyond the video, or a clip does not begin at a
            multiple of 8.
    """
    step = TEMPORAL_SCALE
    if num_media_frames < 1 or num_media_frames % step != 1:
        below = max((num_media_frames - 1) // step, 0) * step + 1
        raise LtxError(f"a clip must have {step}k+1 frames; got {num_media_frames}", f"use its first {below}")
    latest = num_frames - num_media_frames
    if latest < 0:
        fitting = (num_frames - 1) // step * step + 1
        raise LtxError(
            f"a clip of {num_media_frames} frames is longer than the video of {num_frames}", f"use its first {fitting}"
        )
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
    """Returns how many latent frames are added to the video's own by items, each given as (first frame, frames)."""
    return sum(min(frames // TEMPORAL_SCALE + 1, _PREFIX) for frame, frames in places if frame)


def condition(
    initial: Floats, items: Iterable[Item], noise_of: NoiseOf, grid: Grid, fps: float, *, causal: bool
) -> Conditioned:
    """Inserts items into the latents from which a pass begins.

    An item at frame 0 is mixed into the latents there. A later image becomes extra tokens beside those of the video, at
    its own time. So do the first two latent frames of a later clip; the rest of it is mixed into the video's latents.

    Args:
        initial: (B, C, F, H, W) float32, at the pass's first noise level. It is not modified.
        items: consumed one at a time; `noise_of` is called for an item before the next is taken.
        noise_of: draws noise for the tokens that an item adds; not called for items that add none.
        grid: grid of `initial`.
        fps: frames per second of the video.
        causal: the position convention, see coords_of.
    """
    latents, mask = initial.copy(), np.zeros((1, 1, *initial.shape[2:]), np.float32)
    extra: list[tuple[Floats, Floats, Floats]] = []
    count = 0
    for index, item in enumerate(items):
        count += 1
        added = _insert(latents, mask, item)
        if added is not None:
            extra.append(_added_tokens(added, item, noise_of(index, added.shape), fps, causal=causal))
    video = tokens_of(latents), coords_of(grid, fps, causal=causal), tokens_of(mask)[..., 0]
    if not count:
        return Conditioned(video[0], video[1], None, 0)
    tokens, coords, masks = zip(*extra, video, strict=True)
    return Conditioned(
        np.concatenate(tokens, axis=1),
        np.concatenate(coords, axis=2),
        np.concatenate(masks, axis=1),
        sum(part.shape[1] for part in tokens[:-1]),
    )


def _insert(latents: Floats, mask: Floats, item: Item) -> Floats | None:
    """Mixes an item into latents and mask in place; returns those of its latents that become extra tokens, if any."""
    body, added, first = item.latents, None, 0
    if item.frame:
        added, body, first = body[:, :, :_PREFIX], body[:, :, _PREFIX:], item.frame // TEMPORAL_SCALE + _PREFIX
        assert item.latents.shape[2] == 1 or item.frame % TEMPORAL_SCALE == 0
    place = (slice(None), slice(None), slice(first, first + body.shape[2]))
    if body.shape[2]:
        latents[place] = _mixed(latents[place], body, item.strength)
        mask[place] = item.strength
    return added


def _added_tokens(
    latents: Floats, item: Item, noise: Floats, fps: float, *, causal: bool
) -> tuple[Floats, Floats, Floats]:
    """Returns tokens, coordinates and mask of latents that become extra tokens, at the item's own time."""
    tokens = tokens_of(_mixed(noise, latents, item.strength))
    coords = coords_of(Grid(*latents.shape[2:]), fps, causal=causal, first_frame=item.frame)
    return tokens, coords, np.full((1, tokens.shape[1]), item.strength, np.float32)


def _mixed(noise: Floats, latents: Floats, strength: float) -> Floats:
    """Interpolates from noise at strength 0 to the given latents at strength 1; both ends are exact."""
    assert noise.shape == latents.shape
    weight = np.float32(strength)
    difference = latents - noise
    mixed: Floats = noise + weight * difference if weight < 0.5 else latents - (np.float32(1.0) - weight) * difference
    return mixed


def renoise_image_tokens(
    tokens: Floats, initial: Floats, mask: Floats, noise: Floats, scale: float, sigma: float
) -> Floats:
    """Resets fully conditioned tokens to their initial values plus a little noise, before a step.

    As in the official pipeline, the noise helps with motion continuity.

    Args:
        tokens: (B, N, C) float32.
        initial: tokens before the first step.
        mask: (1 or B, N) float32, the conditioning strength of each token.
        noise: standard normal, of the shape of `tokens`.
        scale: factor of the noise, which is also multiplied by sigma squared.
        sigma: noise level of the step.
    """
    level = np.float32(sigma)
    noised = initial + np.float32(scale) * noise * (level * level)
    fixed = mask > np.float32(1.0 - _EPSILON)
    renoised: Floats = np.where(fixed[..., None], noised, tokens)
    return renoised


def token_timesteps(sigma: float, mask: Floats | None) -> Floats:
    """Returns the noise level of each token, at most 1 - mask: (1 or B, N) float32, or (1, 1) without a mask."""
    level = np.float32(sigma)
    if mask is None:
        return np.full((1, 1), level)
    timesteps: Floats = np.minimum(level, np.float32(1.0) - mask)
    return timesteps


def moves(sigma: float, mask: Floats) -> NDArray[np.bool_]:
    """Returns which tokens (1 or B, N) a step at `sigma` changes: those with sigma at or below 1 - mask."""
    moving: NDArray[np.bool_] = np.float32(sigma) - np.float32(_EPSILON) < np.float32(1.0) - mask
    return moving
