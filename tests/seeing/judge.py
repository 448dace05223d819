"""Tells what a clip shows: the background, and of each thing its colour, its path, its growth and its kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from seeing.foreground import Array, Blob, Mask, foreground, oklab, shrunk, small, smoothed
from seeing.kinds import kind_of

COLOURS = {
    "red": (0.86, 0.16, 0.14),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.97, 0.83, 0.18),
    "green": (0.15, 0.62, 0.25),
    "blue": (0.16, 0.36, 0.86),
    "purple": (0.55, 0.20, 0.70),
}
WHITE_CHROMA = 0.07  # OKLab chroma below which a thing is white; the six colours have 0.16 to 0.25

MOST_THINGS = 2
LEAST_MEDIAN_AREA = 0.017  # of the squared shorter side, over time; a small star has 0.03
CROSSING = 0.10  # of the frame's height in 25 frames; a thing that moves crosses 0.2 at least
FRAMES_OF_A_CROSSING = 24
BOUNCE = 0.10  # of the frame's height; a thing that bounces reaches 0.18
ROUND_TRIPS = 1.25  # least number; a thing that bounces makes two in 25 frames
STATIONS = 6  # places along a path that are compared, each the median of some frames
STRAIGHT = 0.8  # of the way's length, least distance between its ends; 1 is a line, an arc of 216 degrees has 0.5


@dataclass(frozen=True)
class SeenThing:
    """A thing of a clip, in units of the frame's height.

    kind, colour: of the tables; direction: left, right, up, down or none; bounces: goes up and down more than once;
    growth: last area over first; path: centroids (F, 2), to the right and downwards; area: (F,).
    """

    colour: str
    kind: str
    direction: str
    bounces: bool
    growth: float
    path: NDArray[np.float64]
    area: NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What a clip shows: its background and its things, from left to right."""

    background: str
    things: tuple[SeenThing, ...]


def see(frames: NDArray[np.uint8]) -> Seen:
    """Judges frames (F, H, W, 3) uint8; knows the six backgrounds, seven colours and seven kinds, and nothing else."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames are (F, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    lab = smoothed(oklab(small(frames)))
    found, background = foreground(lab)
    tracks = tracks_of(found)
    things = [_thing(track, lab) for track in tracks[:MOST_THINGS]]
    return Seen(background, tuple(sorted(things, key=lambda thing: float(thing.path[:, 0].mean()))))


def tracks_of(frames: Sequence[Sequence[Blob]]) -> list[dict[int, Blob]]:
    """Links the blobs of successive frames to tracks (frame -> blob), the largest first; keeps what stays for long."""
    tracks: list[dict[int, Blob]] = []
    for index, found in enumerate(frames):
        free = list(tracks)
        for blob in found:
            near = [(distance_to(track, blob), place) for place, track in enumerate(free)]
            if near and min(near)[0] < 0.15 * blob.mask.shape[0]:
                free.pop(min(near)[1])[index] = blob
            else:
                tracks.append({index: blob})
    least = LEAST_MEDIAN_AREA * min(next(iter(tracks[0].values())).mask.shape) ** 2 if tracks else 0.0
    lasting = [track for track in tracks if len(track) > 0.6 * len(frames) and median_area(track) >= least]
    return sorted(lasting, key=lambda track: -median_area(track))


def distance_to(track: dict[int, Blob], blob: Blob) -> float:
    """Returns the distance of a blob from the last one of a track, in pixels; a change of area counts as well."""
    last = track[max(track)]
    return float(np.hypot(*np.subtract(last.centroid, blob.centroid)) + 0.5 * abs(last.area**0.5 - blob.area**0.5))


def median_area(track: dict[int, Blob]) -> float:
    """Returns the median area of the blobs of a track."""
    return float(np.median([blob.area for blob in track.values()]))


def _thing(track: dict[int, Blob], lab: Array) -> SeenThing:
    height, times = lab.shape[1], np.arange(len(lab))
    seen = sorted(track)
    centroids = np.array([track[time].centroid for time in seen]) / height
    areas = np.array([track[time].area for time in seen]) / height**2
    path = np.stack([np.interp(times, seen, axis) for axis in centroids.T], axis=1)
    area = np.interp(times, seen, areas)
    return SeenThing(
        colour=colour_of(np.concatenate([lab[time][inner(track[time].mask)] for time in seen])),
        kind=kind_of([track[time].mask for time in seen]),
        direction=direction_of(path),
        bounces=is_bouncing(path),
        growth=float(np.median(area[-3:]) / np.median(area[:3])),
        path=path,
        area=area,
    )


def inner(mask: Mask) -> Mask:
    """Returns the innermost part of a mask, without dark outlines and what motion mixed with the background."""
    core = mask
    while 2 * core.sum() > mask.sum() and (smaller := shrunk(core[None], 1)[0]).any():
        core = smaller
    return core


def colour_of(pixels: Array) -> str:
    """Names the colour of OKLab pixels (n, 3): white if most have little chroma, else the nearest hue of the others."""
    chroma = np.hypot(pixels[:, 1], pixels[:, 2])
    coloured = pixels[chroma >= WHITE_CHROMA]
    if 2 * len(coloured) < len(pixels):
        return "white"
    known = oklab(np.array(list(COLOURS.values()), np.float32))
    hue = np.arctan2(*np.median(coloured[:, :0:-1], axis=0))
    hues = np.arctan2(known[:, 2], known[:, 1])
    return list(COLOURS)[int(np.cos(hues - hue).argmax())]


def direction_of(path: Array) -> str:
    """Names the direction of a path (F, 2) that ends far from its start, and is straight.

    The centroid of a thing that turns goes along an arc, and that of one that bounces goes back.
    """
    stations = np.array([np.median(part, axis=0) for part in np.array_split(path, min(len(path), STATIONS))])
    steps = np.diff(stations, axis=0)
    net = steps.sum(axis=0)
    way = np.hypot(*steps.T).sum()
    least = CROSSING * min(len(path) - 1, FRAMES_OF_A_CROSSING) / FRAMES_OF_A_CROSSING
    if way == 0 or np.abs(net).max() < least or np.hypot(*net) < STRAIGHT * way:
        return "none"
    axis = int(np.abs(net).argmax())
    return ("left", "right", "up", "down")[2 * axis + int(net[axis] > 0)]


def is_bouncing(path: Array) -> bool:
    """Tells whether a path (F, 2) goes up and down more than once, and not as far sideways."""
    across, down = np.ptp(path, axis=0)
    return bool(down > max(BOUNCE, 2 * across) and np.abs(np.diff(path[:, 1])).sum() > ROUND_TRIPS * 2 * down)
