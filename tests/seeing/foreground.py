"""Finds the things of a clip: what stands before a background that the camera does not leave.

Everything happens on small frames, in OKLab, with numpy alone. The background of the clips is a function of the height,
plus hills that are lower than a thing; it stands still. So a first guess compares every pixel with the left and right
edges of the frame at about its height, and a second one with the average over the frames in which nothing stood there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHORTER_SIDE = 96  # least pixels that the shorter side of a small frame keeps
EDGE = 0.03  # width of the edges that show the background, of the frame's width
REACH = 0.08  # how far up and down a colour of the edges may be found again, of the frame's height
FAR = (0.05, 0.10)  # OKLab distance from the edges' colours at which a pixel is not theirs: without noise, and at most
CLOSED = 2  # pixels; lines as thin as that do not part a thing, where they have the colour of the background
SHADOW = 0.25  # most darkening of the ground, in OKLab; 0.32 of its sRGB values is 0.25 here
SOFT = 0.25  # of a thing's median distance from the background, what its rim has at least
PALE = 0.07  # most chroma of white things
NOT_CLOUD = 0.2  # least part of a white thing that is left without clouds: its outline, and where it is whiter
STEP = 0.015  # OKLab distance between rows of the edges from which on colours between them are looked for as well
NEAR = 0.035  # OKLab distance from the averaged background at which a pixel is not its, in a clip without noise
LEAST_AREA = 0.008  # of the squared shorter side; a small star that begins to grow has 0.011, a flake has 0.001
MOON_AREA = (0.006, 0.023)  # least and most area of the moon, of the squared shorter side

Rgb = tuple[float, float, float]

# Background -> colours of the upper third and of the lowest fifth.
BACKGROUNDS: dict[str, tuple[Rgb, Rgb]] = {
    "meadow": ((0.60, 0.82, 0.97), (0.40, 0.68, 0.28)),
    "sea": ((0.65, 0.85, 0.97), (0.14, 0.45, 0.70)),
    "night": ((0.08, 0.11, 0.30), (0.09, 0.14, 0.24)),
    "desert": ((0.48, 0.74, 0.93), (0.90, 0.74, 0.47)),
    "snow": ((0.73, 0.82, 0.91), (0.91, 0.94, 0.98)),
    "sunset": ((0.58, 0.36, 0.45), (0.10, 0.22, 0.13)),
}
WHITE_CLOUD, PINK_CLOUD = ((1.0, 1.0, 1.0), 0.87), ((0.93, 0.55, 0.50), 1.0)
WAVE = ((0.80, 0.93, 0.98), 0.6)
MOON, SUN = ((0.97, 0.95, 0.84), 1.0), ((1.0, 0.86, 0.45), 1.0)
# Background -> what is in its sky and is no thing: a colour, and how much of it there is at most. The sky shines
# through clouds, and not through white things.
IN_THE_SKY: dict[str, tuple[tuple[Rgb, float], ...]] = {
    "meadow": (WHITE_CLOUD,),
    "sea": (WHITE_CLOUD,),
    "night": (MOON,),
    "desert": (WHITE_CLOUD,),
    "snow": (),
    "sunset": (SUN, PINK_CLOUD),
}

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Blob:
    """A connected region of a small frame: its mask (h, w), its centroid (x, y) and its area, in pixels."""

    mask: Mask
    centroid: tuple[float, float]
    area: int


def small(frames: NDArray[np.uint8]) -> Array:
    """Returns frames (F, H, W, 3) averaged over squares, in 0..1, so that the shorter side has about 100 pixels."""
    factor = max(1, min(frames.shape[1:3]) // SHORTER_SIDE)
    rows, columns = (size // factor * factor for size in frames.shape[1:3])
    total = np.zeros((len(frames), rows // factor, columns // factor, 3), np.float32)
    for row in range(factor):
        for column in range(factor):
            total += frames[:, row:rows:factor, column:columns:factor]
    return total / (255 * factor**2)


def oklab(rgb: Array) -> Array:
    """Turns sRGB in 0..1 (..., 3) into OKLab (L, a, b), in which distances are about those that people see.

    Source of the matrices: Björn Ottosson, "A perceptual color space for image processing" (2020).
    """
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_cones.append([0.0883024619, 0.2817188376, 0.6299787005])
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
    cones = np.cbrt(linear.astype(np.float32) @ np.asarray(to_cones, np.float32).T)
    return cones @ np.asarray(to_lab, np.float32).T


def smoothed(values: Array) -> Array:
    """Averages (F, h, w, ...) over neighbours with the weights 1, 2, 1 along both axes; the edge repeats."""
    for axis in (1, 2):
        before, after = (np.roll(values, step, axis) for step in (1, -1))
        first, last = ((slice(None),) * axis + (place,) for place in (0, -1))
        before[first], after[last] = values[first], values[last]
        values = (before + 2 * values + after) / 4
    return values


def grown(mask: Mask, steps: int) -> Mask:
    """Dilates masks (F, h, w) by `steps` pixels, alternately with a diamond and a square, which is nearly a disc."""
    for step in range(steps):
        wider = mask.copy()
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        across = wider.copy() if step % 2 else mask
        wider[:, :, 1:] |= across[:, :, :-1]
        wider[:, :, :-1] |= across[:, :, 1:]
        mask = wider
    return mask


def shrunk(mask: Mask, steps: int) -> Mask:
    """Erodes masks (F, h, w) by `steps` pixels; outside the frame counts as inside the mask."""
    return ~grown(~mask, steps)


def distances(lab: Array, reference: Array) -> Array:
    """Returns the distances (...) between OKLab colours (..., 3)."""
    difference = lab - reference
    return np.sqrt(np.einsum("...c,...c->...", difference, difference))


def foreground(lab: Array) -> tuple[list[list[Blob]], str]:
    """Returns what is not background in each of the OKLab frames (F, h, w, 3), and the background's name."""
    edges = _edges(lab)
    noise = float(np.median(distances(lab, np.median(lab, axis=0))))
    covered = grown(_unlike(edges, lab, float(np.clip(4 * noise, *FAR))), 3)
    background = _uncovered(lab, covered, edges)
    name = name_of(background)
    away = distances(lab, background)
    mask = away > max(NEAR, 3 * noise)
    _remove_scenery(mask, lab, background, name, max(NEAR, 2 * noise))
    mask = shrunk(grown(mask, CLOSED), CLOSED)
    for frame, contrast in zip(mask, away, strict=True):
        for blob in blobs(frame):
            frame[blob.mask] = contrast[blob.mask] > SOFT * np.median(contrast[blob.mask])
    return [blobs(frame) for frame in shrunk(grown(mask, CLOSED), CLOSED)], name


def name_of(background: Array) -> str:
    """Names the background (h, w, 3) in OKLab whose sky and ground have the nearest colours."""
    height = len(background)
    bands = [background[: height // 3], background[-height // 5 :]]
    found = np.stack([np.median(band, axis=(0, 1)) for band in bands])
    known = oklab(np.array(list(BACKGROUNDS.values()), np.float32))
    return list(BACKGROUNDS)[int(np.linalg.norm(known - found, axis=-1).sum(axis=-1).argmin())]


def horizon_of(background: Array) -> int:
    """Returns the row of a background (h, w, 3) at which the ground begins: the largest step about its middle."""
    rows, height = np.median(background, axis=1), len(background)
    step = max(1, height // 32)
    steps = np.linalg.norm(rows[2 * step :] - rows[: -2 * step], axis=1)
    first, last = int(0.38 * height), int(0.68 * height)
    return first + int(steps[first - step : last - step].argmax())


def _remove_scenery(mask: Mask, lab: Array, background: Array, name: str, tolerance: float) -> None:
    """Takes shadows on the ground, clouds, the sun and the moon out of masks (F, h, w), in place.

    They have no outline, and their colours lie between that of the background and another one: shadows towards black,
    clouds towards white or pink. So does the inside of a white thing before the sky, but its outline does not.
    """
    horizon = horizon_of(background)
    shadows = mask.copy()
    shadows[:, : horizon + len(background) // 50] = False
    mask &= ~_mixed(shadows, lab, background, (0, 0, 0), SHADOW, tolerance)
    if name == "sea":
        mask &= ~_mixed(shadows, lab, background, *WAVE, tolerance)
    sky = mask.copy()
    sky[:, horizon + len(background) // 50 :] = False
    before = sky.copy()
    if name == "night":
        sky &= _around_the_moon(lab)
    reach = round(REACH * len(background)) if name == "sunset" else 0  # where the sun is, hills were filled in
    for shift in range(-reach, reach + 1, 3):
        rows = np.clip(np.arange(len(background)) + shift, 0, len(background) - 1)
        for colour, most in IN_THE_SKY[name]:
            mask &= ~_mixed(sky & mask, lab, background[rows], colour, most, tolerance)
    if WHITE_CLOUD in IN_THE_SKY[name]:
        mask |= _white_things(before, mask, lab)


def _white_things(before: Mask, after: Mask, lab: Array) -> Mask:
    """Returns those regions of masks that lost their inside with the clouds, and of which pale lines are left.

    They are white things with soft outlines, which do not enclose them any more.
    """
    white = np.zeros_like(before)
    for index, frame in enumerate(before):
        for blob in blobs(frame):
            left = after[index] & blob.mask
            if left.sum() > NOT_CLOUD * blob.area and np.median(np.hypot(*lab[index, left, 1:].T)) < PALE:
                inside, kept = (shrunk(mask[None], 2).sum() for mask in (blob.mask, _filled(left)))
                white[index] |= blob.mask & (kept < NOT_CLOUD * inside)
    return white


def _mixed(among: Mask, lab: Array, background: Array, colour: Rgb, most: float, tolerance: float) -> Mask:
    """Returns those pixels that are the background mixed with at most a part `most` of a colour."""
    frames, rows, columns = np.nonzero(among)
    pixels, behind = lab[frames, rows, columns], background[rows, columns]
    mixture = _mixture(pixels, behind, oklab(np.array(colour, np.float32)), most)
    mixed = np.zeros_like(among)
    mixed[frames, rows, columns] = distances(pixels, mixture) < tolerance
    return mixed


def _around_the_moon(lab: Array) -> Mask:
    """Returns the disc (h, w) of the moon with its glow: pale, round, as small as no thing, high up and at rest."""
    height, width = lab.shape[1:3]
    pale = (lab[..., 0] > 0.75) & (np.hypot(lab[..., 1], lab[..., 2]) < 0.08)
    y, x = np.mgrid[:height, :width] + 0.5
    around = np.zeros((height, width), bool)
    for blob in blobs(pale.mean(axis=0) > 0.4, MOON_AREA[0]):
        distance = np.hypot(x - blob.centroid[0], y - blob.centroid[1])
        radius = (blob.area / np.pi) ** 0.5
        is_round = np.mean(distance[blob.mask] <= radius + 0.5) > 0.85
        if is_round and blob.area < MOON_AREA[1] * min(height, width) ** 2 and blob.centroid[1] < 0.3 * height:
            around |= distance < 1.8 * radius
    return around


def _edges(lab: Array) -> tuple[Array, Array]:
    """Returns the colours (h, 3) of the left and the right edge of frames (F, h, w, 3), over all times."""
    margin = max(1, round(EDGE * lab.shape[2]))
    return np.median(lab[:, :, :margin], axis=(0, 2)), np.median(lab[:, :, -margin:], axis=(0, 2))


def _unlike(edges: tuple[Array, Array], lab: Array, far: float) -> Mask:
    """Returns masks of pixels that are far from every colour of the frame's left and right edge at about their height.

    Looks at every second pixel of both axes, and fills what is closed: a pale thing in a pale sky has an outline.
    """
    coarse = np.ascontiguousarray(lab[:, ::2, ::2])
    height = coarse.shape[1]
    reach = max(1, round(REACH * height))
    nearest = np.full(coarse.shape[:3], np.inf, np.float32)
    for edge in edges:
        for shift in range(-reach, reach + 1):
            rows = np.clip(np.arange(height) + shift, 0, height - 1)
            nearest = np.minimum(nearest, distances(coarse, edge[::2][rows][:, None]))
        for row in np.flatnonzero(np.linalg.norm(np.diff(edge, axis=0), axis=1) > STEP):
            near = slice(max(0, row // 2 - reach), row // 2 + reach + 1)
            mixture = _mixture(coarse[:, near], edge[row], edge[row + 1], 1.0)
            nearest[:, near] = np.minimum(nearest[:, near], distances(coarse[:, near], mixture))
    unlike = np.stack([_filled(mask) for mask in grown(nearest > far, 1)])
    return unlike.repeat(2, axis=1).repeat(2, axis=2)[:, : lab.shape[1], : lab.shape[2]]


def _mixture(pixels: Array, behind: Array, colour: Array, most: float) -> Array:
    """Returns the mixtures (..., 3) of two colours, of the second one at most a part, that are nearest to pixels."""
    towards = colour - behind
    part = ((pixels - behind) * towards).sum(axis=-1) / np.maximum((towards * towards).sum(axis=-1), 1e-6)
    return behind + np.clip(part, 0, most)[..., None] * towards


def _uncovered(lab: Array, covered: Mask, edges: tuple[Array, Array]) -> Array:
    """Averages every pixel over the frames in which it is not covered; fills what always is from left and right."""
    free = (~covered)[..., None]
    times = free.sum(axis=0)
    background = (lab * free).sum(axis=0) / np.maximum(times, 1)
    columns = np.arange(-1, lab.shape[2] + 1)
    known = np.pad(times[..., 0] > 0, ((0, 0), (1, 1)), constant_values=True)
    for row, of_row, left, right in zip(background, known, *edges, strict=True):
        ends = np.vstack([left, row, right])
        for channel in range(3):
            row[:, channel] = np.interp(columns, columns[of_row], ends[of_row, channel])[1:-1]
    return background


def blobs(mask: Mask, least_area: float = LEAST_AREA) -> list[Blob]:
    """Returns the connected regions of a mask (h, w), without holes, that are large enough; the largest first."""
    least = least_area * min(mask.shape) ** 2
    labels = _labels(_filled(mask))
    areas = np.bincount(labels.ravel())
    regions = [(int(areas[label]), labels == label) for label in range(1, len(areas)) if areas[label] >= least]
    return [_blob(area, region) for area, region in sorted(regions, key=lambda pair: -pair[0])]


def _blob(area: int, region: Mask) -> Blob:
    rows, columns = np.nonzero(region)
    return Blob(region, (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5), area)


def _filled(region: Mask) -> Mask:
    """Fills the holes of a region: what is outside it and does not reach the edge of the frame."""
    outside = _labels(np.pad(~region, 1, constant_values=True))
    return (outside != outside[0, 0])[1:-1, 1:-1]


def _labels(mask: Mask) -> NDArray[np.int32]:
    """Returns numbers from 1 for the 4-connected regions of a mask (h, w): runs that touch are joined (union-find)."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    first_of_row = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for row in range(1, mask.shape[0]):
        above, below = first_of_row[row - 1], first_of_row[row]
        while above < first_of_row[row] and below < first_of_row[row + 1]:
            if starts[above] < ends[below] and starts[below] < ends[above]:
                parents[root(below)] = root(above)
            if ends[above] < ends[below]:
                above += 1
            else:
                below += 1
    roots = np.array([root(run) for run in range(len(rows))], int)
    labels = np.zeros(mask.shape, np.int32)
    for row, start, end, label in zip(rows, starts, ends, roots, strict=True):
        labels[row, start:end] = label + 1
    return labels
