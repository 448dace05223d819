"""Shapes of the seven kinds of things: closed curves, in the order in which they are painted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]  # (points, 2): to the right, downwards

OUTLINE = 0.032  # width of outlines, as a fraction of the height of the thing


@dataclass(frozen=True, eq=False)
class Part:
    """A closed curve of one colour. Parts that swing turn to and fro around a pivot.

    `paint` is a name of the palette in painting.py; `swing` is in radians, `phase` in turns. A part that `walks` swings
    only while the thing moves left or right.
    """

    curve: Curve
    paint: str = "body"
    outlined: bool = True
    pivot: tuple[float, float] = (0.0, 0.0)
    swing: float = 0.0
    phase: float = 0.0
    walks: bool = False


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Curve:
    """Returns an ellipse around (x, y)."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], 1)


def smooth(*points: tuple[float, float]) -> Curve:
    """Returns the closed Catmull-Rom spline through points."""
    before, start, end, after = (np.roll(np.array(points, float), shift, 0)[:, None] for shift in (1, 0, -1, -2))
    t = np.linspace(0, 1, 6, endpoint=False)[None, :, None]
    curve = 2 * start + (end - before) * t
    curve = curve + (2 * before - 5 * start + 4 * end - after) * t**2 + (3 * start - before - 3 * end + after) * t**3
    return np.reshape(curve / 2, (-1, 2))


def rounded(radius: float, *points: tuple[float, float]) -> Curve:
    """Returns a polygon whose corners are quadratic curves, which begin `radius` before the corner."""
    corner = np.array(points, float)
    sides = [np.roll(corner, shift, 0) - corner for shift in (1, -1)]
    shares = [np.minimum(radius / np.linalg.norm(side, axis=1, keepdims=True), 0.45) for side in sides]
    start, stop = (corner + share * side for share, side in zip(shares, sides, strict=True))
    t = np.linspace(0, 1, 7)[None, :, None]
    curve = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * corner[:, None] + t**2 * stop[:, None]
    return np.reshape(curve, (-1, 2))


def widened(curve: Curve, width: float) -> Curve:
    """Returns the curve moved outwards by a width, along its normals."""
    x, y = curve.T
    clockwise = np.sign(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    along = np.roll(curve, -1, 0) - np.roll(curve, 1, 0)
    normal = clockwise * np.stack([along[:, 1], -along[:, 0]], 1)
    moved: Curve = curve + width * normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return moved


def _ball() -> list[Part]:
    band = smooth((2, 40), (27, 53), (73, 53), (98, 40), (98, 60), (73, 75), (27, 75), (2, 60))
    return [Part(ellipse(50, 50, 50, 50)), Part(band, "light", outlined=False)]


def _box() -> list[Part]:
    lid = rounded(8, (18, 18), (82, 18), (82, 82), (18, 82))
    return [Part(rounded(14, (0, 0), (100, 0), (100, 100), (0, 100))), Part(lid, "light", outlined=False)]


def _star() -> list[Part]:
    angles = [math.pi * (step / 5 - 0.5) for step in range(10)]
    radii = [55 if step % 2 == 0 else 29 for step in range(10)]
    points = [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]
    return [Part(rounded(10, *points))]


def _boat() -> list[Part]:
    mast = rounded(2, (62, -4), (68, -4), (68, 72), (62, 72))
    sail = rounded(6, (60, 0), (60, 59), (2, 59), (14, 40), (36, 17))
    hull = rounded(16, (-4, 66), (116, 66), (98, 92), (82, 100), (30, 100), (12, 92))
    stripe = rounded(3, (5, 75), (107, 75), (103, 81), (9, 81))
    return [Part(mast, "wood"), Part(sail), Part(hull), Part(stripe, "light", outlined=False)]


def _balloon() -> list[Part]:
    right = ((67, 7), (80, 32), (70, 54), (50, 72))
    envelope = smooth((40, -2), *right, *((80 - x, y) for x, y in reversed(right)))
    gore = smooth((40, 0), (52, 15), (55, 35), (45, 71), (35, 71), (25, 35), (28, 15))
    basket = rounded(5, (27, 86), (53, 86), (50, 102), (30, 102))
    strings = [rounded(1, (24, 70), (28, 70), (34, 88), (30, 88)), rounded(1, (52, 70), (56, 70), (50, 88), (46, 88))]
    return [
        *(Part(string, "line", outlined=False) for string in strings),
        Part(basket, "wood"),
        Part(envelope),
        Part(gore, "light", outlined=False),
    ]


def _bird() -> list[Part]:
    far_wing = smooth((58, 62), (62, 30), (80, 4), (98, -2), (98, 18), (90, 40), (84, 62))
    tail = rounded(6, (46, 62), (2, 50), (10, 66), (0, 82), (46, 78))
    beak = rounded(5, (114, 42), (140, 54), (112, 62))
    body = smooth((24, 66), (46, 54), (76, 50), (102, 54), (106, 70), (88, 88), (60, 88), (36, 78))
    chest = smooth((102, 66), (100, 80), (86, 86), (66, 85), (80, 78))
    wing = smooth((86, 62), (74, 30), (50, 4), (28, -4), (28, 20), (38, 48), (56, 68), (76, 74))
    shoulder = (68, 60)
    return [
        Part(far_wing, "shade", pivot=shoulder, swing=0.22, phase=0.5),
        Part(tail, "shade"),
        Part(beak, "line", outlined=False),
        Part(body),
        Part(ellipse(102, 52, 20, 19)),  # head
        Part(chest, "light", outlined=False),
        Part(ellipse(109, 47, 3.4, 3.8), "line", outlined=False),  # eye
        Part(wing, pivot=shoulder, swing=0.22),
    ]


def _fox() -> list[Part]:
    tail = smooth((52, 60), (38, 68), (20, 66), (5, 52), (-2, 30), (5, 12), (20, 22), (30, 38), (44, 50))
    tip = smooth((-1, 36), (-1, 25), (5, 12), (16, 19), (24, 29), (15, 31), (11, 40), (5, 35))
    body = smooth((42, 60), (50, 50), (68, 47), (88, 46), (102, 56), (98, 74), (84, 79), (56, 79), (44, 73))
    chest = smooth((94, 52), (105, 54), (101, 68), (93, 74), (88, 64))
    back, front, snout = ((90, 51), (84, 34), (92, 20)), ((106, 15), (120, 24), (132, 38)), ((143, 43), (140, 49))
    head = smooth(*back, *front, *snout, (126, 54), (108, 58))
    cheek = smooth((140, 47), (126, 43), (112, 43), (94, 50), (108, 56.5), (126, 52.5))
    return [
        Part(tail, pivot=(50, 60), swing=0.1),
        Part(tip, "white", outlined=False, pivot=(50, 60), swing=0.1),
        _leg(62, "shade", 0.5),
        _leg(86, "shade", 0.0),
        Part(body),
        _leg(53, "body", 0.0),
        _leg(94, "body", 0.5),
        Part(chest, "white", outlined=False),
        Part(rounded(5, (104, 24), (115, -2), (124, 26)), "shade"),  # far ear
        Part(head),
        Part(cheek, "white", outlined=False),
        Part(rounded(5, (87, 28), (92, -4), (106, 20))),  # ear
        Part(rounded(3, (91.5, 21), (93.5, 6), (100, 18)), "line", outlined=False),
        Part(ellipse(141, 43.5, 4.2, 3.6), "line", outlined=False),  # nose
        Part(ellipse(114, 34.5, 3.4, 4.2), "line", outlined=False),  # eye
    ]


def _leg(x: float, paint: str, phase: float) -> Part:
    leg = rounded(6, (x - 7.5, 62), (x + 7.5, 62), (x + 6, 100), (x - 6, 100))
    return Part(leg, paint, pivot=(x, 66), swing=0.42, phase=phase, walks=True)


def _of_height_one(parts: list[Part]) -> tuple[Part, ...]:
    """Returns parts that are together one high with their outlines, around the origin."""
    points = np.concatenate([part.curve for part in parts])
    middle = (points.min(0) + points.max(0)) / 2
    scale = (1 - 2 * OUTLINE) / float(np.ptp(points[:, 1]))
    placed = []
    for part in parts:
        x, y = scale * (np.array(part.pivot) - middle)
        placed.append(replace(part, curve=scale * (part.curve - middle), pivot=(float(x), float(y))))
    return tuple(placed)


# Kind -> its parts, facing right. They are drawn here in hundredths, and brought to a height of 1.
SHAPES = {
    "ball": _of_height_one(_ball()),
    "box": _of_height_one(_box()),
    "star": _of_height_one(_star()),
    "boat": _of_height_one(_boat()),
    "balloon": _of_height_one(_balloon()),
    "bird": _of_height_one(_bird()),
    "fox": _of_height_one(_fox()),
}
