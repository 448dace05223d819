"""Looks at the images and clips of a request: which frames are used, what differs from what was given, and how much
memory they need; and reads their pixels at the size of every pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ltx_runtime.errors import LtxError
from ltx_runtime.files import amount
from ltx_runtime.media.facts import Facts
from ltx_runtime.media.pictures import Source, label_of
from ltx_runtime.media.prepare import CROP, PAD, crop_of, fit_of, levels_of, load_media, look_at, prepared_media, scaled
from ltx_runtime.planning.choices import FROM_IMAGE, check_fit, check_number
from ltx_runtime.planning.options import CPU_MEMORY_BYTES
from ltx_runtime.planning.plan import Plan
from ltx_runtime.planning.request import Condition, Request, Resolved
from ltx_runtime.sampling.conditioning import added_frames, check_item, trimmed_frames
from ltx_runtime.sampling.start import Clip, Floats, Media
from ltx_runtime.spec.geometry import LARGEST, SPATIAL_SCALE, TEMPORAL_SCALE
from ltx_runtime.spec.versions import Version
from ltx_runtime.vae.resize import resize_bilinear

_PIXEL_BYTES = 12  # three channels of float32
_SMALLEST_SIDE, _EVEN = 2 * SPATIAL_SCALE, 2
_ROUNDED = 1  # pixels that are lost to rounding alone


@dataclass(frozen=True)
class Given:
    """An image or clip of a request, and what is used of it.

    Attributes:
        condition: the image or clip, its frame and its strength; of a clip to start from, the clip alone.
        facts: what is known of it.
        frames: how many of its frames are used.
        kept_bytes: memory for the frames that are used, at the sizes of all passes.
        read_bytes: memory for reading one frame.
        remarks: one for each way in which what is used differs from what was given, worded to follow its name.
    """

    condition: Condition
    facts: Facts
    frames: int
    kept_bytes: int
    read_bytes: int
    remarks: tuple[str, ...]

    @property
    def label(self) -> str:
        return label_of(self.condition.media)


@dataclass(frozen=True)
class GivenMedia:
    """All images and clips of a request; `video` is the clip to start from."""

    conditions: tuple[Given, ...] = ()
    video: Given | None = None

    @property
    def all(self) -> tuple[Given, ...]:
        return self.conditions if self.video is None else (*self.conditions, self.video)

    @property
    def frames(self) -> list[int]:
        """How many frames of each condition are used."""
        return [given.frames for given in self.conditions]

    @property
    def added_frames(self) -> int:
        """Number of latent frames that conditions add to the video's own."""
        return added_frames((given.condition.frame, given.frames) for given in self.conditions)

    @property
    def peak_bytes(self) -> int:
        """Memory for all frames that are used, and for reading the largest."""
        kept = sum(given.kept_bytes for given in self.all)
        return kept + max((given.read_bytes for given in self.all), default=0)

    def lines(self) -> Iterator[str]:
        """Yields every remark with the name of its image or clip."""
        for given in self.all:
            for remark in given.remarks:
                yield f"{given.label}: {remark}"


NO_MEDIA = GivenMedia()


def filled(request: Request, version: Version, memory_bytes: int | None = None) -> Request:
    """Returns the request with the length that its clip decides, and with the size that its first image or clip does.

    Args:
        request: the request; `fit` of the result is never FROM_IMAGE.
        version: the release, whose default size says how many pixels a size from an image has.
        memory_bytes: memory that images and clips may take; None for CPU_MEMORY_BYTES, of which reading one may take
            READING_BYTES.

    Raises:
        LtxError: a file cannot be read, there is none to take the size from, or the request has a size already.
    """
    check_fit(request.fit)
    if request.video is not None and request.num_frames is None and request.duration is None:
        frames = _length_of(request.video, memory_bytes)
        request = replace(request, num_frames=max(1, (frames - 1) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1))
    if request.fit != FROM_IMAGE:
        return request
    for name in ("height", "width"):
        if (value := getattr(request, name)) is not None:
            raise LtxError(
                f"{name} is {value}, but fit {FROM_IMAGE} takes the size from the image",
                f"leave height and width out, or use --fit {CROP} or {PAD}",
            )
    sources = [*(given.media for given in request.conditions), *([] if request.video is None else [request.video])]
    if not sources:
        raise LtxError(f"fit {FROM_IMAGE} needs an image or clip to take the size from", "add --image, or leave it out")
    facts = look_at(sources[0], 1, memory_bytes)
    step = _EVEN if request.pad else SPATIAL_SCALE
    height, width = _size_like(facts.height, facts.width, version.height * version.width, step)
    return replace(request, height=height, width=width, fit=CROP)


def _length_of(clip: Source, memory_bytes: int | None) -> int:
    """Counts the frames of a clip to start from; one that is far too long is refused without reading it."""

    def check(facts: Facts) -> None:
        if facts.frames is not None and facts.frames > LARGEST:
            raise LtxError(
                f"{label_of(clip)} has {_number(facts)} frames; a video has at most {LARGEST}", "give --num-frames"
            )

    return look_at(clip, LARGEST, memory_bytes, check).seen


def _size_like(own_height: int, own_width: int, pixels: int, step: int) -> tuple[int, int]:
    """Returns the height and width with about this number of pixels that come closest to an aspect ratio.

    Args:
        own_height, own_width: a size of that aspect ratio.
        pixels: about how many pixels the size has.
        step: sides are multiples of it.
    """
    aspect = own_width / own_height

    def side(length: float) -> int:
        return min(max(round(length / step) * step, _SMALLEST_SIDE), LARGEST)

    def misfit(height: int) -> float:
        width = side(height * aspect)
        return abs(math.log(width / height / aspect)) + abs(math.log(height * width / pixels)) / 4

    middle = side(math.sqrt(pixels / aspect))
    height = min((max(middle + n * step, _SMALLEST_SIDE) for n in (-2, -1, 0, 1, 2)), key=misfit)
    return height, side(height * aspect)


def media_of(planned: Plan, memory_bytes: int | None = None, *, sized: bool = False) -> GivenMedia:
    """Returns what is used of each image and clip of a request; reads frames, but keeps none.

    Args:
        planned: the plan of the request.
        memory_bytes: memory that images and clips may take; None for CPU_MEMORY_BYTES, of which reading one may take
            READING_BYTES.
        sized: whether the size of the video was taken from the first image or clip.

    Raises:
        LtxError: a file cannot be read, an image or clip cannot begin at its frame, the clip to start from has too few
            frames, or there is too little memory.
    """
    request, video = planned.request, None
    given: list[Given] = []
    for condition in request.conditions:
        room = max(1, request.num_frames - condition.frame)
        facts = look_at(condition.media, room, memory_bytes)
        used = _checked_frames(condition, facts, planned)
        given.append(_given(planned, condition, facts, used, sized=sized and not given))
    if request.video is not None:
        video = _video(planned, request.video, memory_bytes, sized=sized and not given)
    media = GivenMedia(tuple(given), video)
    _check_memory(media, memory_bytes)
    return media


def _checked_frames(condition: Condition, facts: Facts, planned: Plan) -> int:
    """Returns how many frames of a condition are used."""
    frames = trimmed_frames(facts.seen, condition.frame, planned.request.num_frames)
    check_number("strength", condition.strength, "the strength of a condition")
    check_item(frames, condition.frame, planned.passes[-1].grid.num_frames)
    return frames


def _video(planned: Plan, video: Source, memory_bytes: int | None, *, sized: bool) -> Given:
    """Returns what is used of the clip to start from."""
    num_frames = planned.passes[-1].grid.num_frames
    facts = look_at(video, num_frames, memory_bytes)
    if facts.seen < num_frames:
        raise LtxError(
            f"{label_of(video)} has {facts.seen} frames, but the new video needs {num_frames}",
            f"use --num-frames {(facts.seen - 1) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1} or fewer",
        )
    return _given(planned, Condition(video), facts, num_frames, sized=sized)


def _given(planned: Plan, condition: Condition, facts: Facts, frames: int, *, sized: bool) -> Given:
    pixels = facts.height * facts.width
    if facts.prepared:
        kept = _PIXEL_BYTES * pixels * (facts.frames or 0)
    else:
        kept = _PIXEL_BYTES * frames * sum(one.grid.height * one.grid.width for one in planned.passes)
    remarks = tuple(_remarks(planned.request, facts, frames, sized))
    return Given(condition, facts, frames, kept, facts.read_bytes, remarks)


# --- memory ---------------------------------------------------------------------------------------


def _check_memory(media: GivenMedia, memory_bytes: int | None) -> None:
    limit = memory_bytes or CPU_MEMORY_BYTES
    if media.peak_bytes > limit:
        largest = max(media.all, key=lambda given: given.kept_bytes)
        raise LtxError(
            f"the given images and clips need about {amount(media.peak_bytes)} of memory, {largest.frames} frames of "
            f"{largest.label} the most; --memory is {amount(limit)}",
            "use a shorter clip or a smaller size, or a larger --memory",
        )


# --- remarks --------------------------------------------------------------------------------------


def _remarks(request: Resolved, facts: Facts, frames: int, sized: bool) -> Iterator[str]:
    """Yields a remark for each way in which what is used differs from what was given."""
    if sized:
        yield f"gives the video its size: {facts.width}x{facts.height} becomes {request.width}x{request.height}"
    if facts.frames != frames:
        still = frames == 1
        yield f"uses {'only the first' if still else f'the first {frames}'} of {_number(facts)} frames" + (
            ", as a still image" if still else ""
        )
    if facts.sound:
        yield "its sound is dropped"
    if facts.prepared:
        return
    if frames > 1:
        yield from _speed_remarks(request, facts)
    yield from _shape_remarks(request, facts)
    yield from _pixel_remarks(facts)


def _speed_remarks(request: Resolved, facts: Facts) -> Iterator[str]:
    speed = facts.speed_at(request.fps)
    if facts.varying and facts.fps:
        yield (
            f"its frame rate varies around {facts.fps:.3g}, and its speed will, too: the video has {request.fps:g} "
            "frames a second throughout"
        )
    elif facts.fps and speed != 1:
        yield f"plays at {speed:.3g} times its speed: it has {facts.fps:g} frames a second, the video {request.fps:g}"


def _shape_remarks(request: Resolved, facts: Facts) -> Iterator[str]:
    if facts.stored_size:
        height, width = facts.stored_size
        aspect = f"{facts.pixel_aspect.numerator}:{facts.pixel_aspect.denominator}"
        yield f"pixels of {aspect} are made square: {width}x{height} becomes {facts.width}x{facts.height}"
    if request.fit == PAD:
        height, width = fit_of(facts.height, facts.width, request.height, request.width)
        if max(request.height - height, request.width - width) > _ROUNDED:
            yield f"fills {width}x{height} of {request.width}x{request.height} pixels; the rest is black"
        return
    height, width = crop_of(facts.height, facts.width, request.height, request.width)
    for own, kept, side in ((facts.width, width, "left and right"), (facts.height, height, "top and bottom")):
        if own - kept > _ROUNDED:
            lost = f"{own - kept} of {own} pixels ({(own - kept) / own:.0%})"
            yield f"loses {lost} at the {side} to the shape of the video"


def _pixel_remarks(facts: Facts) -> Iterator[str]:
    if facts.interlaced:
        yield "is interlaced, which shows as combs where something moves: deinterlace it first"
    if facts.bits > 8:
        yield f"{facts.bits} bits per channel become 8"
    if facts.transfer:
        yield f"HDR ({facts.transfer}) is shown as it is stored, which looks pale: convert it to SDR first"
    if facts.transparent:
        yield "what is transparent becomes black"
    if facts.profile:
        yield f"colours are converted from {facts.profile} to sRGB"


def _number(facts: Facts) -> str:
    if facts.frames is None:
        return f"more than {facts.seen}"
    return f"about {facts.frames}" if facts.about else f"{facts.frames}"


# --- pixels ---------------------------------------------------------------------------------------


def read_media(planned: Plan, frames_used: Sequence[int], crf: int, memory_bytes: int | None = None) -> list[Media]:
    """Reads every image and clip of a request.

    Args:
        planned: the plan of the request.
        frames_used: how many frames of each condition are used, see GivenMedia.
        crf: constant rate factor of the H.264 compression, see `levels_of`.
        memory_bytes: memory that images and clips may take, see `media_of`.

    Returns:
        The media of each pass, at its size; prepared media keep their own.

    Raises:
        LtxError: a file cannot be read, or has fewer frames than when it was looked at.
    """
    request, grids = planned.request, [one.grid for one in planned.passes]
    clips: list[list[Clip]] = [[] for _ in grids]
    for given, frames in zip(request.conditions, frames_used, strict=True):
        videos = _videos(planned, given.media, frames, crf, memory_bytes)
        for of_pass, video in zip(clips, videos, strict=True):
            of_pass.append(Clip(_whole(video, frames, given.media), given.frame, given.strength))
    whole = None
    if request.video is not None:
        num_frames = grids[-1].num_frames
        whole = load_media(
            request.video,
            request.height,
            request.width,
            padding=planned.padding,
            most_frames=num_frames,
            resize=True,
            crf=crf,
            fit=request.fit,
            most_bytes=memory_bytes,
        )
        _whole(whole, num_frames, request.video)
    return [Media(tuple(of_pass), whole) for of_pass in clips]


def _videos(planned: Plan, media: Source, frames: int, crf: int, memory_bytes: int | None) -> list[Floats]:
    """Returns an image or clip as (1, 3, F, H, W) for each pass; frames are resized as they are read.

    The numbers are those of resizing the whole clip, which may be much larger than the video.
    """
    request, grids = planned.request, [one.grid for one in planned.passes]
    prepared = prepared_media(media, frames)
    if prepared is not None:
        return [prepared] * len(grids)
    videos = [np.empty((1, 3, frames, grid.height, grid.width), np.float32) for grid in grids]
    count = 0
    how: Any = {"resize": False, "crf": crf, "fit": request.fit, "most_bytes": memory_bytes}
    for levels in levels_of(media, request.height, request.width, most_frames=frames, **how):
        for channel in range(3):
            plane = scaled(levels[..., channel], planned.padding)
            for video, grid in zip(videos, grids, strict=True):
                video[0, channel, count] = resize_bilinear(plane, grid.height, grid.width)
        count += 1
    return [video[:, :, :count] for video in videos]


def _whole(video: Floats, frames: int, media: Source) -> Floats:
    if video.shape[2] < frames:
        raise LtxError(f"{label_of(media)} has {video.shape[2]} frames now, and had {frames} before", "run it again")
    return video
