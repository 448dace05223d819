"""Scenes as frames: where each thing is at each time, and how it is painted over the background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.world.backgrounds import Array, Colour, horizon_of, paint_background
from training.world.scenes import COLOURS, DIRECTIONS, SIZES, Scene, Thing
from training.world.shapes import OUTLINE, SHAPES, widened

FPS = 24.0
CROSSING = (0.20, 0.34)  # least and most of the frame's width or height per second
# Marks divide the frame into columns and rows like the latents of a first pass (224x160 pixels in cells of 32x32), and
# what starts at one crosses half a column or row in eight frames: latent frames show things where cells divide them in
# the same way, or in one other way.
COLUMNS, ROWS, MARKED_SPEED = 7, 5, 1.5  # columns or rows per second
MARKED_COLUMNS = (2, 3, 4, 5)  # where a thing may begin, if that leaves it inside the frame
LOW_ROW, HIGH_ROW = 3, 2  # things that can be in the air are in the higher one, unless they need the room above
MARKED_GROUND = 0.80  # of the frame's height, under things in the air
BOUNCE = 0.18  # of the frame's height
BOUNCES_PER_SECOND = 2.0
GROWTH = 0.4  # more and less than the size, within a second or within the clip if that is longer
TURNS_PER_SECOND = 0.5  # clockwise; a ball that moves rolls as fast
SWINGS_PER_SECOND = 0.75  # of legs and wings
MARGIN = 0.025  # between a thing and the edge, of the frame's shorter side
FACING = {"boat", "bird", "fox"}  # these look where they go
GROUNDED = {"ball", "box", "boat", "fox"}  # these stand on the ground, unless they rise or sink
SHADOW = 0.34  # how much darker the ground is under a thing that stands on it
SHADOW_FADES = 0.45  # height at which a thing casts no shadow any more, of the frame's height
WOOD = (0.60, 0.42, 0.26)
WHITE = (0.98, 0.98, 0.99)
VARIATION = 0.04  # of colours

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Posed:
    """A part in every frame: points (F, P, 2) of its curve and of the outline around it (None without one)."""

    paint: str
    curve: Floats
    outline: Floats | None

    def scaled(self, factor: float) -> Posed:
        """Returns the part enlarged around the origin."""
        return Posed(self.paint, factor * self.curve, None if self.outline is None else factor * self.outline)


@dataclass(frozen=True, eq=False)
class Figure:
    """A thing in every frame: its parts in pixels around its middle, that middle (F, 2), and the ground under it (F,).

    `corners` (F, all points, 2) are the points of its silhouette around the middle.
    """

    parts: list[Posed]
    corners: Floats
    middle: Floats
    ground: Floats
    palette: dict[str, Colour]


@dataclass(frozen=True, eq=False)
class _Choice:
    """What the words for a thing leave open: `across` and `down` in 0..1 are its place in the room that there is.

    `tint` (3,) is added to its colour, `scale` a factor of its size, and `crossing` (2,) are frame widths and heights
    per second.
    """

    tint: Floats
    across: float
    down: float
    crossing: Floats
    scale: float
    looks_left: bool


def render(scene: Scene, height: int, width: int, frames: int, fps: float = FPS) -> tuple[Array, Array]:
    """Returns the frames (F, H, W, 3) of a scene and the coverage of each thing (things, F, H, W), float32 in 0..1.

    Places and sizes are fractions of the frame: a scene is the same at every size of the same proportions.
    """
    times = np.arange(frames) / fps
    clip = paint_background(scene.background, scene.seed, height, width, times)
    masks = np.zeros((len(scene.things), frames, height, width), np.float32)
    figures = []
    for place, thing in enumerate(scene.things):
        random = np.random.default_rng([scene.seed, 2 + place])
        figures.append(_figure_of(thing, scene.on_marks, random, horizon_of(scene.seed), (height, width), times))
    for figure in figures:
        _paint_shadow(clip, figure)
    for figure, mask in zip(figures, masks, strict=True):
        _paint(clip, mask, figure)
    return clip, masks


def _figure_of(
    thing: Thing,
    on_marks: bool,
    random: np.random.Generator,
    horizon: float,
    frame_size: tuple[int, int],
    times: Floats,
) -> Figure:
    """Places a thing so that it stays inside the frame (height, width); what its words leave open is random."""
    choice = _choice(random, on_marks)
    height, width = frame_size
    shorter = min(height, width)
    unplaced = _pose(thing, choice.looks_left, times)
    least, most = _corners(unplaced).min((0, 1)), _corners(unplaced).max((0, 1))
    room = MARGIN * shorter * np.array([[1, 1], [-1, -1]]) + [[0, 0], [width, height]]  # for the whole thing
    room[:, 0] += width / 2 * np.array({"anywhere": (0, 0), "left": (0, -1), "right": (1, 0)}[thing.place])
    size = min(SIZES[thing.size] * choice.scale * shorter, *(np.ptp(room, 0) / (most - least)))
    parts = [part.scaled(size) for part in unplaced]
    corners = _corners(parts)

    room -= size * np.array([least, most])  # for the middle of the thing
    path = _path(thing.motion, choice.crossing, np.array([width, height]), np.ptp(room, 0), times)
    room -= np.array([path.min(0), path.max(0)])  # for its middle in the first frame
    low = corners[:, :, 1].max(1)
    standing = thing.kind in GROUNDED and thing.motion not in ("up", "down")
    if on_marks:
        deep = height * MARKED_GROUND
        start = _mark(thing, choice.across, room, np.array([width, height]))
    else:
        deep = height * (horizon + 0.12 + (0.82 - horizon) * choice.down)  # a place on the ground
        start = room[0] + np.ptp(room, 0) * [choice.across, 0.8 * choice.down]
        if standing:
            start[1] = np.clip(deep - np.median(low), *room[:, 1])
    middle = start + path
    low = middle[:, 1] + low
    ground = low - path[:, 1] if standing else np.maximum(low, deep)
    return Figure(parts, corners, middle, ground, palette_of(thing.colour, choice.tint))


def _choice(random: np.random.Generator, on_marks: bool) -> _Choice:
    """Chooses what a thing's words leave open; on marks, only its place is open."""
    tint = random.uniform(-VARIATION, VARIATION, 3)
    across, down, speed, variation, side = random.random(5)
    if on_marks:
        return _Choice(np.zeros(3), across, down, MARKED_SPEED / np.array([COLUMNS, ROWS]), 1.0, False)
    crossing = np.full(2, CROSSING[0] + speed * (CROSSING[1] - CROSSING[0]))
    return _Choice(tint, across, down, crossing, 0.95 + 0.1 * variation, side < 0.5)


def _mark(thing: Thing, across: float, room: Floats, frame: Floats) -> Floats:
    """Returns the mark (2,) where a thing begins: its row is given by kind and motion, its column is random."""
    columns = frame[0] / COLUMNS * np.array(MARKED_COLUMNS)
    fitting = columns[(columns >= room[0, 0]) & (columns <= room[1, 0])]
    nearest = columns[[np.abs(columns - room[:, 0].mean()).argmin()]]
    x = (fitting if len(fitting) else nearest)[int(across * max(1, len(fitting)))]
    is_low = thing.motion in ("up", "bounces") or (thing.kind in GROUNDED and thing.motion != "down")
    y = frame[1] / ROWS * (LOW_ROW if is_low else HIGH_ROW)
    return np.array([x, np.clip(y, *room[:, 1])])


def palette_of(colour: str, tint: Floats) -> dict[str, Colour]:
    """Returns the colours of the parts of a thing: the named one with a tint (3,), and what goes with it."""
    body = np.clip(COLOURS[colour] + tint, 0, 1)
    white = colour == "white"
    line = np.array([0.58, 0.62, 0.72]) if white else 0.62 * body
    light = np.array([0.84, 0.87, 0.93]) if white else body + 0.28 * (1 - body)
    mixed = {"body": body, "line": line, "shade": 0.80 * body, "light": light}
    palette: dict[str, Colour] = {name: (float(rgb[0]), float(rgb[1]), float(rgb[2])) for name, rgb in mixed.items()}
    return {**palette, "wood": WOOD, "white": WHITE}


def _pose(thing: Thing, looks_left: bool, times: Floats) -> list[Posed]:
    """Returns the parts of a thing of height 1 around the origin, as they swing, turn and grow over time."""
    travels = DIRECTIONS.get(thing.motion, (0, 0))[0]
    mirror = -1.0 if thing.kind in FACING and (travels < 0 or (travels == 0 and looks_left)) else 1.0
    turning = 1 if thing.motion == "turns" else travels if thing.kind == "ball" else 0
    turned = _rotations(2 * np.pi * TURNS_PER_SECOND * turning * times)
    if thing.motion == "grows" and len(times) > 1:
        turned *= 1 + GROWTH * min(times[-1], 1.0) * np.linspace(-1, 1, len(times))[:, None, None]
    turned[:, 0] *= mirror
    posed = []
    for part in SHAPES[thing.kind]:
        swing = part.swing if travels or not part.walks else 0.0
        swung = _rotations(swing * np.sin(2 * np.pi * (SWINGS_PER_SECOND * times + part.phase)))
        curves = [part.curve, widened(part.curve, OUTLINE)] if part.outlined else [part.curve]
        moved = [((curve - part.pivot) @ swung + part.pivot) @ turned for curve in curves]
        posed.append(Posed(part.paint, moved[0], moved[1] if part.outlined else None))
    return posed


def _rotations(angles: Floats) -> Floats:
    """Returns matrices (F, 2, 2) that rows of points are multiplied with to turn clockwise on the screen."""
    cosines, sines = np.cos(angles), np.sin(angles)
    return np.stack([cosines, sines, -sines, cosines], 1).reshape(-1, 2, 2)


def _corners(parts: list[Posed]) -> Floats:
    return np.concatenate([part.curve if part.outline is None else part.outline for part in parts], 1)


def _path(motion: str, crossing: Floats, frame: Floats, room: Floats, times: Floats) -> Floats:
    """Returns the way (F, 2) of a thing's middle from where it is first, no longer than the room for it (2,)."""
    if motion in DIRECTIONS:
        distance = np.minimum(crossing * frame * times[-1], room)
        path: Floats = np.linspace(0, 1, len(times))[:, None] * distance * DIRECTIONS[motion]
        return path
    path = np.zeros((len(times), 2))
    if motion == "bounces":
        path[:, 1] = -min(BOUNCE * frame[1], room[1]) * np.abs(np.sin(np.pi * BOUNCES_PER_SECOND * times))
    return path


def _paint_shadow(clip: Array, figure: Figure) -> None:
    height, width = clip.shape[1:3]
    low = figure.middle[:, 1] + figure.corners[:, :, 1].max(1)
    strength = SHADOW * np.clip(1 - (figure.ground - low) / (SHADOW_FADES * height), 0, 1)
    radius = np.stack([0.50 * np.ptp(figure.corners[:, :, 0], 1), 0.09 * np.ptp(figure.corners[:, :, 1], 1)], 1)
    middle = np.stack([figure.middle[:, 0], figure.ground - 0.4 * radius[:, 1]], 1)
    for frame, dark, centre, reach in zip(clip, strength, middle, radius, strict=True):
        (left, top), (right, bottom) = (
            np.clip(centre + sign * reach, 0, (width, height)).astype(int) for sign in (-1, 1)
        )
        x = (np.arange(left, right + 1) + 0.5 - centre[0]) / reach[0]
        y = (np.arange(top, bottom + 1) + 0.5 - centre[1]) / reach[1]
        soft = np.clip(1 - x**2 - y[:, None] ** 2, 0, 1) ** 1.5
        box = frame[top : bottom + 1, left : right + 1]
        box *= 1 - (dark * soft[: box.shape[0], : box.shape[1], None]).astype(np.float32)


def _paint(clip: Array, mask: Array, figure: Figure) -> None:
    """Paints a thing over the frames of a clip, and its coverage into its mask, both in place."""
    least, most = figure.corners.min((0, 1)), figure.corners.max((0, 1))
    columns, rows = (np.ceil(most - least) + 3).astype(int)
    finer = 4 if rows * columns < 16_000 else 3 if rows * columns < 40_000 else 2
    origins = np.floor(figure.middle + least).astype(int) - 1
    light = _light(rows, columns)
    inks = {name: (*(round(255 * value) for value in rgb), 255) for name, rgb in figure.palette.items()}
    shifts = (figure.middle - origins)[:, None]
    polygons = []
    for part in figure.parts:
        for paint, points in (("line", part.outline), (part.paint, part.curve)):
            if points is not None:
                pixels = np.rint((points + shifts) * finer - 0.5)
                polygons.append((inks[paint], pixels.reshape(len(pixels), -1).tolist()))
    for index, (column, row) in enumerate(origins):
        # Four plain channels: the mean over finer pixels is a colour times its coverage, and the coverage.
        canvas = Image.new("RGBX", (int(columns) * finer, int(rows) * finer), (0, 0, 0, 0))
        draw = ImageDraw.Draw(canvas)
        for ink, pixels in polygons:
            draw.polygon(pixels[index], fill=ink)
        painted = np.asarray(canvas.reduce(finer), np.float32) / 255
        top, left = max(row, 0), max(column, 0)
        box = clip[index, top : row + rows, left : column + columns]
        painted = painted[top - row :, left - column :][: box.shape[0], : box.shape[1]]
        lit = light[top - row :, left - column :][: box.shape[0], : box.shape[1]]
        coverage = painted[..., 3:]
        box *= 1 - coverage
        box += np.minimum(painted[..., :3] * lit, coverage)
        mask[index, top : row + rows, left : column + columns] = coverage[..., 0]


def _light(rows: int, columns: int) -> Array:
    """Returns the light that falls on a thing (H, W, 1): from above, with a soft gleam at the upper left."""
    y = np.linspace(0, 1, rows)[:, None]
    x = np.linspace(0, 1, columns)
    gleam = np.exp(-(((x - 0.34) / 0.22) ** 2) - ((y - 0.28) / 0.22) ** 2)
    return (1.06 - 0.20 * y + 0.12 * gleam)[..., None].astype(np.float32)
