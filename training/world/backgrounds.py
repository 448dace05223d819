"""Backgrounds of drawn clips: sky and ground that stand still, and what drifts over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """Colours of a background from top to bottom, and how hilly its ground is (a fraction of the height)."""

    sky: tuple[Colour, Colour]
    ground: tuple[Colour, Colour]
    far_hills: Colour | None = None
    hilliness: float = 0.0


LOOKS = {
    "meadow": Look(
        ((0.50, 0.77, 0.96), (0.87, 0.95, 0.99)), ((0.53, 0.80, 0.36), (0.33, 0.63, 0.24)), (0.66, 0.86, 0.60), 0.035
    ),
    "sea": Look(((0.55, 0.81, 0.97), (0.91, 0.96, 0.98)), ((0.24, 0.60, 0.82), (0.08, 0.36, 0.64))),
    "night": Look(
        ((0.04, 0.06, 0.20), (0.16, 0.20, 0.44)), ((0.13, 0.20, 0.33), (0.06, 0.10, 0.19)), (0.10, 0.14, 0.30), 0.03
    ),
    "desert": Look(
        ((0.33, 0.65, 0.92), (0.82, 0.91, 0.95)), ((0.96, 0.84, 0.59), (0.86, 0.67, 0.40)), (0.90, 0.74, 0.49), 0.03
    ),
    "snow": Look(
        ((0.66, 0.77, 0.88), (0.87, 0.91, 0.95)), ((0.98, 0.98, 1.00), (0.84, 0.90, 0.96)), (0.78, 0.85, 0.92), 0.035
    ),
    "sunset": Look(
        ((0.36, 0.20, 0.52), (0.99, 0.64, 0.32)), ((0.17, 0.31, 0.18), (0.07, 0.16, 0.10)), (0.36, 0.22, 0.33), 0.03
    ),
}
MOON = (0.97, 0.95, 0.84)
SUN = (1.00, 0.86, 0.45)
HORIZON = (0.45, 0.60)  # lowest and highest place of the horizon, from the top, as a fraction of the height


@dataclass(frozen=True, eq=False)
class Layer:
    """A coverage (H, W) in a colour that drifts over the frame and comes in again on the other side.

    The drift is in frame widths and frame heights per second; only one of them may be other than 0.
    """

    coverage: Array
    colour: Colour
    drift: tuple[float, float] = (0.0, 0.0)


def horizon_of(seed: int) -> float:
    """Returns the height of the horizon of a scene, from the top, as a fraction of the height."""
    return float(np.random.default_rng([seed, 0]).uniform(*HORIZON))


def paint_background(name: str, seed: int, height: int, width: int, times: NDArray[np.float64]) -> Array:
    """Returns the frames of a background without things, (F, H, W, 3) in 0..1, at times in seconds."""
    random = np.random.default_rng([seed, 1])
    frames = np.repeat(_still(name, random, height, width, horizon_of(seed))[None], len(times), 0)
    for layer in DRIFTING[name](random, height, width, horizon_of(seed)) if name in DRIFTING else ():
        rows = np.flatnonzero(layer.coverage.any(1))
        top, bottom = (int(rows[0]), int(rows[-1]) + 1) if not layer.drift[1] else (0, height)
        coverage = layer.coverage[top:bottom]
        for frame, time in zip(frames, times, strict=True):
            blend(frame[top:bottom], _drifted(coverage, layer.drift, float(time), height, width), layer.colour)
    return frames


def blend(picture: Array, coverage: NDArray[np.floating], colour: Colour | Array) -> None:
    """Paints a colour over a picture (H, W, 3), in place, where the coverage (H, W) says so."""
    picture += coverage[..., None] * (np.asarray(colour, np.float32) - picture)


def _still(name: str, random: np.random.Generator, height: int, width: int, horizon: float) -> Array:
    look = LOOKS[name]
    y = ((np.arange(height) + 0.5) / height).astype(np.float32)[:, None]
    x = ((np.arange(width) + 0.5) / width).astype(np.float32)
    picture = np.repeat(_gradient(look.sky, y / horizon)[:, None], width, 1)
    for layer in IN_THE_SKY[name](random, height, width, horizon) if name in IN_THE_SKY else ():
        blend(picture, layer.coverage, layer.colour)
    if look.far_hills is not None:
        ridge = horizon - 0.02 - look.hilliness * (1 + _waviness(random, x, 1.5))
        blend(picture, np.clip((y - ridge) * height + 0.5, 0, 1), look.far_hills)
    edge = horizon + look.hilliness * _waviness(random, x, 0.9)
    ground = np.repeat(_gradient(look.ground, (y - horizon) / (1 - horizon))[:, None], width, 1)
    blend(picture, np.clip((y - edge) * height + 0.5, 0, 1), ground)
    if name in DUNES:
        crest = horizon + 0.16 + 0.06 * _waviness(random, x, 1.0)
        below = np.clip((y - crest) * height + 0.5, 0, 1) * np.clip(1 - (y - crest) / 0.22, 0, 1)
        blend(picture, below, DUNES[name])
    return picture


def _gradient(colours: tuple[Colour, Colour], t: Array) -> Array:
    top, bottom = np.array(colours, np.float32)
    mixed: Array = top + (bottom - top) * np.clip(t, 0, 1)
    return mixed


def _waviness(random: np.random.Generator, x: Array, waves: float) -> Array:
    """Returns a smooth line in -1..1 along the frame, of two sines."""
    first, second = random.uniform(0, 2 * np.pi, 2)
    angle = 2 * np.pi * waves * x
    line: Array = (0.7 * np.sin(angle + first) + 0.3 * np.sin(1.7 * angle + second)).astype(np.float32)
    return line


def _drifted(coverage: Array, drift: tuple[float, float], time: float, height: int, width: int) -> Array:
    axis = 1 if drift[0] else 0
    whole, rest = divmod(time * drift[1 - axis] * (height, width)[axis], 1.0)
    moved = np.roll(coverage, int(whole), axis)
    return moved + np.float32(rest) * (np.roll(moved, 1, axis) - moved) if rest else moved


def _spot(coverage: Array, x: float, y: float, radius_x: float, radius_y: float, softness: float) -> None:
    """Adds an ellipse to a coverage, in place; all in pixels. It comes in again where it leaves the frame."""
    margin = softness / 2 + 1
    rows = np.arange(int(y - radius_y - margin), int(y + radius_y + margin) + 1)
    columns = np.arange(int(x - radius_x - margin), int(x + radius_x + margin) + 1)
    distance = np.hypot((columns + 0.5 - x) / radius_x, ((rows + 0.5 - y) / radius_y)[:, None])
    inside = np.clip((1 - distance) * min(radius_x, radius_y) / softness + 0.5, 0, 1)
    cells = np.ix_(rows % coverage.shape[0], columns % coverage.shape[1])
    coverage[cells] = np.maximum(coverage[cells], inside)


def _stars_and_moon(random: np.random.Generator, height: int, width: int, horizon: float) -> list[Layer]:
    unit = min(height, width)
    stars, moon, glow = np.zeros((3, height, width), np.float32)
    for _ in range(16):
        radius = random.uniform(0.007, 0.012) * unit
        _spot(
            stars, random.random() * width, random.uniform(0.02, horizon - 0.1) * height, radius, radius, max(1, radius)
        )
    x, y, radius = random.uniform(0.12, 0.88) * width, random.uniform(0.14, 0.22) * height, 0.075 * unit
    _spot(moon, x, y, radius, radius, 1)
    _spot(glow, x, y, 1.3 * radius, 1.3 * radius, 2.6 * radius)
    return [Layer(stars * 0.9, (1.0, 0.98, 0.88)), Layer(glow**2 * 0.3, MOON), Layer(moon, MOON)]


def _half_sun(random: np.random.Generator, height: int, width: int, horizon: float) -> list[Layer]:
    unit = min(height, width)
    x, radius = random.uniform(0.2, 0.8) * width, random.uniform(0.13, 0.16) * unit
    sun, glow = np.zeros((2, height, width), np.float32)
    _spot(glow, x, (horizon - 0.04) * height, 1.5 * radius, 1.5 * radius, 3.0 * radius)
    _spot(sun, x, (horizon - 0.04) * height, radius, radius, 1)
    return [Layer(glow**1.5 * 0.6, SUN), Layer(sun, SUN)]


def _clouds(colour: Colour, number: int) -> Callable[[np.random.Generator, int, int, float], list[Layer]]:
    def clouds(random: np.random.Generator, height: int, width: int, horizon: float) -> list[Layer]:
        unit = min(height, width)
        coverage = np.zeros((height, width), np.float32)
        for cloud in range(number):
            x = (cloud + random.uniform(0.2, 0.8)) / number * width
            y, size = random.uniform(0.08, horizon - 0.20) * height, random.uniform(0.05, 0.075) * unit
            for shift, radius in ((-1.25, 0.62), (0, 1.0), (1.2, 0.72)):
                _spot(coverage, x + shift * size, y + (1 - radius) * size, 1.25 * radius * size, radius * size, 2)
            for shift in (-1.5, -0.75, 0, 0.75, 1.5):
                _spot(coverage, x + shift * size, y + 0.62 * size, 0.6 * size, 0.4 * size, 2)
        return [Layer(coverage * 0.75, colour, (random.choice([-1, 1]) * random.uniform(0.01, 0.03), 0))]

    return clouds


def _sea(random: np.random.Generator, height: int, width: int, horizon: float) -> list[Layer]:
    unit = min(height, width)
    coverage = np.zeros((height, width), np.float32)
    for row in range(5):
        depth = (row + 0.6) / 5.2
        y = (horizon + depth * (1 - horizon)) * height
        for wave in range(3):
            x = (wave + random.random()) / 3 * width
            _spot(coverage, x, y, (0.06 + 0.09 * depth) * unit, (0.006 + 0.006 * depth) * unit, 1.5)
    waves = Layer(coverage * 0.5, (0.80, 0.93, 0.98), (random.choice([-1, 1]) * random.uniform(0.03, 0.05), 0))
    return [*_clouds((1.0, 1.0, 1.0), 2)(random, height, width, horizon), waves]


def _flakes(random: np.random.Generator, height: int, width: int, horizon: float) -> list[Layer]:
    unit = min(height, width)
    coverage = np.zeros((height, width), np.float32)
    for _ in range(24):
        radius = random.uniform(0.011, 0.018) * unit
        _spot(coverage, random.random() * width, random.random() * height, radius, radius, max(1.5, radius))
    return [Layer(coverage * 0.9, (1.0, 1.0, 1.0), (0, random.uniform(0.10, 0.16)))]


# Background -> what stands in its sky, behind the hills; what drifts in front of all of it; and the colour of a dune.
IN_THE_SKY = {"night": _stars_and_moon, "sunset": _half_sun}
DRIFTING = {
    "meadow": _clouds((1.0, 1.0, 1.0), 3),
    "sea": _sea,
    "desert": _clouds((1.0, 1.0, 1.0), 1),
    "snow": _flakes,
    "sunset": _clouds((0.93, 0.55, 0.50), 2),
}
DUNES = {"desert": (0.80, 0.60, 0.36)}
