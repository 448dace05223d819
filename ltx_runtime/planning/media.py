"""Counts the frames to use of the images and clips of a request, and reads their pixels."""

from __future__ import annotations

from collections.abc import Sequence

from ltx_runtime.errors import LtxError
from ltx_runtime.media.pictures import label_of
from ltx_runtime.media.prepare import count_frames, load_media
from ltx_runtime.planning.choices import check_number
from ltx_runtime.planning.plan import Plan
from ltx_runtime.sampling.conditioning import check_item, trimmed_frames
from ltx_runtime.sampling.start import Clip, Media


def frames_of(planned: Plan) -> list[int]:
    """Returns how many frames of each conditioning image and clip of a request are used.

    Raises:
        LtxError: a file cannot be read, or an image or clip cannot begin at its frame.
    """
    request, used = planned.request, []
    for given in request.conditions:
        room = max(1, request.num_frames - given.frame)
        frames = trimmed_frames(count_frames(given.media, room), given.frame, request.num_frames)
        check_number("strength", given.strength, "the strength of a condition")
        check_item(frames, given.frame, planned.passes[-1].grid.num_frames)
        used.append(frames)
    return used


def read_media(planned: Plan, frames_used: Sequence[int], crf: int) -> Media:
    """Reads every image and clip of a request.

    Args:
        planned: the plan of the request.
        frames_used: how many frames of each image and clip are used, as `frames_of` returns them.
        crf: constant rate factor of the H.264 compression, see `load_media`.

    Raises:
        LtxError: a file cannot be read, or the clip to start from has too few frames.
    """
    request, num_frames = planned.request, planned.passes[-1].grid.num_frames
    clips = []
    for given, frames in zip(request.conditions, frames_used, strict=True):
        video = load_media(
            given.media,
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
            f"{label_of(request.video)} has {whole.shape[2]} frames, but the new video needs {num_frames}",
            f"use --num-frames {(whole.shape[2] - 1) // 8 * 8 + 1} or fewer",
        )
    return Media(tuple(clips), whole)
