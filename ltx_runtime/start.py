"""What a pass begins from: images and clips, read, encoded and put in their places among noise.

Media are read once, and encoded for every pass at its own size. Knows no backend: it is given an open session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.conditioning import Conditioned, Item, added_frames, check_item, condition, trimmed_frames
from ltx_runtime.errors import LtxError
from ltx_runtime.geometry import Grid
from ltx_runtime.latents import noised
from ltx_runtime.media import count_frames, load_media
from ltx_runtime.plan import PassPlan, Plan, Request
from ltx_runtime.resize import resize_bilinear
from ltx_runtime.sessions import Session
from ltx_runtime.stages import Posterior, encode_media
from ltx_runtime.tiling import Tiling

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """An image or clip that a part of the video is given by.

    video: (1, 3, F, H, W) float32 in [-1, 1], of any height and width; frame: where it begins; strength: in 0..1.
    """

    video: Floats
    frame: int
    strength: float


@dataclass(frozen=True)
class Media:
    """All that a request gives besides text; `whole` is a clip to start from instead of noise."""

    clips: tuple[Clip, ...] = ()
    whole: Floats | None = None

    @property
    def added_frames(self) -> int:
        """Latent frames that stand beside the video's own."""
        return added_frames((clip.frame, clip.video.shape[2]) for clip in self.clips)


@dataclass(frozen=True)
class Encoded:
    """Media as the VAE encoder sees them at the size of one pass."""

    clips: tuple[Posterior, ...] = ()
    whole: Posterior | None = None


def frames_of(request: Request, planned: Plan) -> list[int]:
    """How many frames of each image and clip of a request are used.

    Raises:
        LtxError: a file cannot be read, or cannot be given from its frame on.
    """
    used = []
    for given in request.conditions:
        room = max(1, request.num_frames - given.frame)
        frames = trimmed_frames(count_frames(given.path, room), given.frame, request.num_frames)
        check_item(frames, given.frame, planned.passes[-1].grid.num_frames)
        used.append(frames)
    return used


def read_media(request: Request, planned: Plan, crf: int) -> Media:
    """Reads every image and clip of a request.

    Raises:
        LtxError: a file cannot be read, or has too few or too many frames for its place.
    """
    num_frames = planned.passes[-1].grid.num_frames
    clips = []
    for given, frames in zip(request.conditions, frames_of(request, planned), strict=True):
        video = load_media(
            given.path,
            request.height,
            request.width,
            padding=planned.padding,
            most_frames=frames,
            resize=False,
            crf=crf,
        )
        clips.append(Clip(video, given.frame, given.strength))
    if request.video is None:
        return Media(tuple(clips))
    whole = load_media(
        request.video,
        request.height,
        request.width,
        padding=planned.padding,
        most_frames=num_frames,
        resize=True,
        crf=crf,
    )
    if whole.shape[2] < num_frames:
        raise LtxError(
            f"{request.video} has {whole.shape[2]} frames, and {num_frames} are to be made of it - "
            f"use --num-frames {(whole.shape[2] - 1) // 8 * 8 + 1} or fewer"
        )
    return Media(tuple(clips), whole)


def encode_for(
    session: Session, media: Media, grid: Grid, tiling_of: Callable[[Grid], Tiling], done: Callable[[], None]
) -> Encoded:
    """Encodes all media at the size of a pass, each cut as `tiling_of` its grid says; `done` is called after each."""

    def posterior(video: Floats) -> Posterior:
        sized = resize_bilinear(video, grid.height, grid.width)
        frames = (video.shape[2] - 1) // 8 + 1
        made = encode_media(session, sized, tiling_of(Grid(frames, grid.rows, grid.columns)))
        done()
        return made

    clips = tuple(posterior(clip.video) for clip in media.clips)
    return Encoded(clips, None if media.whole is None else posterior(media.whole))


def start_of(
    one: PassPlan,
    planned: Plan,
    shape: tuple[int, ...],
    before: Floats | None,
    media: Media,
    encoded: Encoded,
    draw: Callable[[str, tuple[int, ...]], Floats],
    *,
    causal: bool,
    sampled: bool,
) -> Conditioned:
    """The tokens that a pass begins from, at its first noise level.

    Args:
        one: the pass.
        planned: what holds for all passes.
        shape: (1, C, F, H, W) of its latents.
        before: upsampled latents of the pass before.
        media: images and clips.
        encoded: what the encoder made of them at this pass's size.
        draw: (name, shape) -> noise of this pass.
        causal: the position convention.
        sampled: whether latents are drawn from the posteriors, instead of being their means.
    """

    def drawn(posterior: Posterior, name: str) -> Floats:
        return posterior.sample(draw(name, posterior.mean.shape)) if sampled else posterior.mean

    if encoded.whole is not None:
        before = drawn(encoded.whole, "posterior_video")
    latents = draw("initial", shape)
    if before is not None:
        latents = noised(before, latents, float(one.sigmas[0]))

    def items() -> Iterator[Item]:
        for i, (clip, posterior) in enumerate(zip(media.clips, encoded.clips, strict=True)):
            yield Item(drawn(posterior, f"posterior_{i}"), clip.frame, clip.strength)

    def keyframe_noise(i: int, noise_shape: tuple[int, ...]) -> Floats:
        return draw(f"keyframe_{i}", noise_shape)

    return condition(latents, items(), keyframe_noise, one.grid, planned.fps, causal=causal)
