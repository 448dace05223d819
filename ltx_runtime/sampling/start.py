"""Builds the tokens from which a pass begins: noise with encoded images and clips in their places.

Media are encoded for every pass at its own size. This module knows arrays only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.sampling.conditioning import Conditioned, Item, added_frames, condition
from ltx_runtime.sampling.pass_plan import PassPlan, Settings
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.vae.encode import Posterior
from ltx_runtime.vae.latents import noised
from ltx_runtime.vae.resize import resize_bilinear

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """An image or clip that conditions a part of the video.

    Attributes:
        video: (1, 3, F, H, W) float32 in [-1, 1], of any height and width.
        frame: the frame of the video at which it begins.
        strength: conditioning strength in 0..1.
    """

    video: Floats
    frame: int
    strength: float


@dataclass(frozen=True)
class Media:
    """All images and clips of a request; `whole` is a clip to start from instead of noise."""

    clips: tuple[Clip, ...] = ()
    whole: Floats | None = None

    @property
    def added_frames(self) -> int:
        """Number of latent frames that are added to the video's own."""
        return added_frames((clip.frame, clip.video.shape[2]) for clip in self.clips)


@dataclass(frozen=True)
class Encoded:
    """Posteriors of all media at the size of one pass."""

    clips: tuple[Posterior, ...] = ()
    whole: Posterior | None = None


def encode_for(media: Media, grid: Grid, encode: Callable[[Floats, Grid], Posterior]) -> Encoded:
    """Encodes all media at the size of a pass; `encode` returns the posterior of a clip with the given latent grid."""

    def posterior(video: Floats) -> Posterior:
        sized = resize_bilinear(video, grid.height, grid.width)
        frames = (video.shape[2] - 1) // 8 + 1
        return encode(sized, Grid(frames, grid.rows, grid.columns))

    clips = tuple(posterior(clip.video) for clip in media.clips)
    return Encoded(clips, None if media.whole is None else posterior(media.whole))


def start_of(
    one: PassPlan,
    settings: Settings,
    shape: tuple[int, ...],
    before: Floats | None,
    media: Media,
    encoded: Encoded,
    draw: Callable[[str, tuple[int, ...]], Floats],
    *,
    causal: bool,
    sampled: bool,
) -> Conditioned:
    """Returns the tokens from which a pass begins, at its first noise level.

    Args:
        one: plan of the pass.
        settings: settings of all passes.
        shape: shape (1, C, F, H, W) of the pass's latents.
        before: upsampled latents of the previous pass, or None.
        media: images and clips.
        encoded: posteriors of `media` at this pass's size.
        draw: (name, shape) -> noise of this pass.
        causal: the position convention, see coords_of.
        sampled: whether latents are sampled from the posteriors; otherwise their means are used.
    """

    def latents_from(posterior: Posterior, name: str) -> Floats:
        return posterior.sample(draw(name, posterior.mean.shape)) if sampled else posterior.mean

    if encoded.whole is not None:
        before = latents_from(encoded.whole, "posterior_video")
    latents = draw("initial", shape)
    if before is not None:
        latents = noised(before, latents, float(one.sigmas[0]))

    def items() -> Iterator[Item]:
        for i, (clip, posterior) in enumerate(zip(media.clips, encoded.clips, strict=True)):
            yield Item(latents_from(posterior, f"posterior_{i}"), clip.frame, clip.strength)

    def keyframe_noise(i: int, noise_shape: tuple[int, ...]) -> Floats:
        return draw(f"keyframe_{i}", noise_shape)

    return condition(latents, items(), keyframe_noise, one.grid, settings.fps, causal=causal)
