"""Measures the shape of masks, and tells the kind of a thing from the measures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from seeing.foreground import Mask

ANGLES = 72  # sectors of the outline, of 5 degrees
MOST_MASKS = 13  # are measured of one thing; more say nothing new
FARTHEST = 3.0  # spreads; what is farther from a shape counts as this far, so that no measure decides alone

# What `measures_of` gives for each kind, to about two digits, and how far a kind strays from it: poses of wings and
# legs, rims that are soft. A disc has no waves, a square one of fourfold symmetry, a star one of fivefold, a triangle
# and so a boat under sail mostly of threefold; a balloon with its basket is an oval that is nearly convex; the fox's
# legs, head and tail leave the emptiest hull.
MEASURES = ("solidity", "disc", "elongation", "waves of 2", "3", "4", "5")
SPREADS = np.array([0.05, 0.04, 0.10, 0.03, 0.02, 0.02, 0.02])
KINDS = {
    "ball": (0.97, 1.00, 1.00, 0.00, 0.00, 0.00, 0.00),
    "box": (0.98, 0.92, 1.00, 0.00, 0.00, 0.06, 0.00),
    "star": (0.80, 0.87, 1.00, 0.00, 0.00, 0.00, 0.10),
    "boat": (0.84, 0.84, 1.11, 0.06, 0.12, 0.07, 0.03),
    "balloon": (0.90, 0.88, 1.33, 0.06, 0.07, 0.05, 0.03),
    "bird": (0.82, 0.85, 1.21, 0.05, 0.04, 0.05, 0.08),
    "fox": (0.70, 0.71, 1.50, 0.18, 0.19, 0.07, 0.05),
}


def kind_of(masks: Sequence[Mask]) -> str:
    """Names the kind whose measures are the nearest to those of the masks (h, w) of a thing over time."""
    chosen = masks[:: -(-len(masks) // MOST_MASKS)]
    apart = np.stack([measures_of(mask) for mask in chosen])[:, None] - np.array(list(KINDS.values()))
    cost = np.minimum(np.abs(apart) / SPREADS, FARTHEST) ** 2
    return list(KINDS)[int(cost.sum(axis=(0, 2)).argmin())]


def measures_of(mask: Mask) -> NDArray[np.float64]:
    """Returns the MEASURES of a mask (h, w), which neither size, place, rotation nor mirroring change.

    solidity: area over that of the convex hull; disc: part of the area inside the disc of equal area around the
    centroid; elongation: ratio of the standard deviations along the principal axes; waves of n: magnitude of the nth
    term in the Fourier series of the outermost radius over the angle, over its mean.
    """
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], axis=1).astype(float)
    centred = points - points.mean(axis=0)
    radii = np.hypot(*centred.T)
    narrow, wide = np.linalg.eigvalsh(np.cov(centred.T))
    spectrum = np.abs(np.fft.rfft(_outermost(centred, radii)))
    solidity = len(points) / _hull_area(_outline(mask))
    disc = np.mean(radii <= np.sqrt(len(points) / np.pi))
    return np.array([solidity, disc, np.sqrt(wide / max(narrow, 1e-9)), *spectrum[2:6] / spectrum[0]])


def _outline(mask: Mask) -> NDArray[np.float64]:
    """Returns the corners (n, 2) of the leftmost and rightmost pixels of all rows."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    corners = [np.stack([x, rows + y], axis=1) for x in (first, last) for y in (0, 1)]
    return np.concatenate(corners) - 0.5


def _outermost(centred: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the largest radius in each of ANGLES sectors; an empty sector takes its neighbours'."""
    sector = ((np.arctan2(centred[:, 1], centred[:, 0]) / (2 * np.pi) % 1) * ANGLES).astype(int) % ANGLES
    outermost = np.zeros(ANGLES)
    np.maximum.at(outermost, sector, radii)
    known = np.flatnonzero(outermost)
    return np.interp(np.arange(ANGLES), known, outermost[known], period=ANGLES)


def _hull_area(points: NDArray[np.float64]) -> float:
    """Returns the area of the convex hull of points (n, 2), by Andrew's monotone chain."""
    ordered = sorted({(x, y) for x, y in points.tolist()})

    def chain(sequence: list[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for x, y in sequence:
            while len(kept) > 1:
                (x1, y1), (x2, y2) = kept[-2:]
                if (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) > 0:
                    break
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    x, y = np.array(chain(ordered) + chain(ordered[::-1])).T
    return 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
