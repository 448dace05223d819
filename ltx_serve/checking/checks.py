"""The checks of a request: everything that the library checks before a run, and the limits of the server.

It is the checking process alone that imports this file, and what it needs of the library.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.files import amount
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.folder.release import release_of
from ltx_runtime.media.pictures import label_of, opened
from ltx_runtime.media.video import check_output
from ltx_runtime.outputs.plain import fields_of_request, request_from_fields
from ltx_runtime.planning.backends import Chosen, Size, needed
from ltx_runtime.planning.choices import FROM_IMAGE
from ltx_runtime.planning.media import GivenMedia, filled, media_of
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import Plan, plan
from ltx_runtime.planning.report import pass_bytes
from ltx_runtime.planning.request import Request, Resolved, resolved
from ltx_runtime.spec.geometry import TEMPORAL_SCALE
from ltx_runtime.spec.versions import Version
from ltx_serve.checking.room import Room
from ltx_serve.jobs.folders import VIDEO

_MOST_IMAGE_PIXELS = 64_000_000  # of an image
_MOST_CLIP_PIXELS = 4096 * 2304  # of each frame of a clip


class Checks:
    """Checks requests within the limits of a server, which are the arguments of `Checker`."""

    def __init__(self, max_pixels: int, max_frames: int, memory_bytes: int | None, rooms: Mapping[Path, Room]) -> None:
        self._max_pixels, self._max_frames, self._memory_bytes = max_pixels, max_frames, memory_bytes
        self._rooms = rooms
        self._engines: dict[Path, Engines] = {}

    def check(
        self, fields: dict[str, Any], folder: Path, engines_folder: Path, sent: Collection[str] = ()
    ) -> dict[str, Any]:
        """Returns the fields of a request with everything filled in.

        Args:
            fields: fields of Request as plain data.
            folder: the folder of its images and clips.
            engines_folder: the folder of the version that is to make it.
            sent: names of the fields that the client sent.

        Raises:
            LtxError: it cannot be made.
        """
        engines = self._engines.get(engines_folder)
        if engines is None:
            engines = self._engines[engines_folder] = Engines(engines_folder, read_manifest(engines_folder))
        version, manifest = release_of(engines.manifest), engines.manifest
        request = request_from_fields(fields, folder)
        if not request.prompt.strip():
            raise LtxError("prompt is missing", "say what the video shows")
        _check_headers(request, self._max_frames)
        sized = request.fit == FROM_IMAGE
        _check_duration(request, version, self._max_frames)
        request, is_padded = filled(request, version, self._memory_bytes), request.pad
        # Padding that a size needs leaves the number of frames at what can be made without it.
        request = resolved(replace(request, pad=is_padded and "pad" in sent), version)
        request = replace(request, pad=is_padded)
        _check_size(request, self._max_pixels, self._max_frames)
        planned = plan(request, version, manifest.schedule, manifest.allowed_sigmas)
        for name in needed(planned, RunOptions()):
            engines.component(name)
        _check_even(planned.request)
        media = media_of(planned, self._memory_bytes, sized=sized)
        if (room := self._rooms.get(engines_folder)) is not None:
            self._check_room(planned, media, version, room)
        check_output(folder / VIDEO, request.height, request.width, planned.ending.fps, folder_exists=False)
        return fields_of_request(planned.request, folder)

    def _check_room(self, planned: Plan, media: GivenMedia, version: Version, room: Room) -> None:
        """Refuses videos that need more memory than there is, by the estimates of the plan."""
        request, options = planned.request, RunOptions(memory_bytes=self._memory_bytes)
        names = needed(planned, options)
        if not room.found.keys() >= {*names}:
            return
        size = Size(*planned.ending.size, planned.passes[-1].grid.num_frames, len(planned.passes) == 1)
        chosen = Chosen(options, size, tuple(names), room.found)
        asked = f"size {request.width}x{request.height} with {request.num_frames} frames"
        needs = max(pass_bytes(one, version.transformer, chosen, media.added_frames) for one in planned.passes)
        if needs > room.memory_bytes:
            raise LtxError(
                f"{asked} needs about {amount(needs, 0)} of memory, and the server has {amount(room.memory_bytes, 0)}",
                "ask for a smaller size or a shorter video",
            )
        try:
            chosen.check_passes(planned, media.added_frames, conditioned=bool(request.conditions))
        except LtxError as error:
            raise LtxError(f"{asked} cannot be made here: {error.problem}", error.advice) from None


def _check_headers(request: Request, max_frames: int) -> None:
    """Refuses images and clips that are too large by what their headers say, before any of their pixels is read."""
    sources = [condition.media for condition in request.conditions]
    for source in sources if request.video is None else [*sources, request.video]:
        with opened(source) as pictures:
            facts = pictures.facts
        is_image = facts.frames == 1 and facts.fps is None
        most = _MOST_IMAGE_PIXELS if is_image else _MOST_CLIP_PIXELS
        height, width = facts.stored_size or (facts.height, facts.width)
        if height * width > most:
            raise LtxError(
                f"{label_of(source)} is {width}x{height} pixels, and {most} are the most that are read of "
                f"{'an image' if is_image else 'a frame of a clip'}",
                "make it smaller",
            )
        is_counted = source is request.video and request.num_frames is None and request.duration is None
        if is_counted and facts.frames is not None and facts.frames > max_frames:
            raise LtxError(
                f"{label_of(source)} has {facts.frames} frames, and a video has at most {max_frames}", "give num-frames"
            )


def _check_duration(request: Request, version: Version, max_frames: int) -> None:
    """Refuses lengths in seconds for which there is no number of frames that the server makes."""
    fps = version.fps if request.fps is None else request.fps
    if request.duration is None or not fps > 0:
        return
    if not 0 < request.duration * fps < max_frames + TEMPORAL_SCALE / 2:
        raise LtxError(
            f"seconds must be more than 0 and at most {max_frames / fps:.4g}, which are {max_frames} frames at {fps:g} "
            f"frames a second; got {request.duration:g}",
            "ask for another length",
        )


def _check_size(request: Resolved, max_pixels: int, max_frames: int) -> None:
    """Refuses videos that are larger or longer than the server makes."""
    if request.height * request.width > max_pixels:
        raise LtxError(
            f"size {request.width}x{request.height} has {request.height * request.width} pixels, and a frame has at "
            f"most {max_pixels} here",
            "use a smaller size",
        )
    if request.num_frames > max_frames:
        raise LtxError(
            f"num-frames is {request.num_frames}, and a video has at most {max_frames} here", "ask for a shorter one"
        )


def _check_even(request: Resolved) -> None:
    """Refuses sizes that the pixels of an MP4 cannot have, in words for those who cannot choose another format."""
    if request.height % 2 or request.width % 2:
        raise LtxError(
            f"size {request.width}x{request.height} is odd, and an MP4 has an even width and height",
            f"use {request.width + request.width % 2}x{request.height + request.height % 2}",
        )
