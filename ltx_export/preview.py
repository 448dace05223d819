"""The linear map from latents to colours, for previews: fitted on the checkpoint's own VAE encoder; without torch.

The encoder is given made-up clips with the statistics of natural ones: opaque discs of random sizes and colours that
hide each other (the dead leaves model of Lee, Mumford and Huang, 2001) and move from frame to frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.folder.manifest import Preview
from ltx_runtime.spec.geometry import SPATIAL_SCALE, TEMPORAL_SCALE, Grid

Floats = NDArray[np.float32]
# Clips (1, 3, 8F-7, 32H, 32W) in [-1, 1] -> their normalized latents (1, C, F, H, W), all float32.
Encode = Callable[[Sequence[Floats]], Sequence[Floats]]

# Four pictures and two short clips: 356 latents, about three for every channel. Clips cost eight times more a latent.
_GRIDS = (*4 * (Grid(1, 8, 8),), *2 * (Grid(2, 5, 5),))
_DISCS, _SMALLEST, _LARGEST, _FASTEST = 250, 6.0, 120.0, 4.0  # radii in pixels, speed in pixels a frame
_RIDGE = 1e-3  # of the latents' unit variance: keeps the map small where few colours tell channels apart


def fit_preview(encode: Encode) -> Preview:
    """Fits the colours of made-up clips to their latents, by ridge regression.

    Args:
        encode: the checkpoint's VAE encoder.
    """
    clips = [dead_leaves(grid, seed) for seed, grid in enumerate(_GRIDS)]
    latents = np.concatenate([_cells(encoded) for encoded in encode(clips)]).astype(np.float64)
    colours = np.concatenate([_cells(averaged(clip)) for clip in clips]).astype(np.float64)
    mean, mean_colour = latents.mean(0), colours.mean(0)
    centred = latents - mean
    penalty = _RIDGE * len(latents) * np.eye(latents.shape[1])
    weights = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (colours - mean_colour)).T
    rounded = np.round(weights, 6)
    bias = np.round(mean_colour - rounded @ mean, 6)
    return Preview(tuple(map(tuple, rounded.tolist())), tuple(bias.tolist()))


def _cells(latents: Floats) -> Floats:
    """Turns (1, C, F, H, W) into (F*H*W, C)."""
    return latents[0].reshape(latents.shape[1], -1).T


def averaged(clip: Floats) -> Floats:
    """Average colour of every latent's pixels: (1, 3, 8F-7, 32H, 32W) to (1, 3, F, H, W)."""
    _, channels, frames, height, width = clip.shape
    rows, columns = height // SPATIAL_SCALE, width // SPATIAL_SCALE
    small = clip.reshape(channels, frames, rows, SPATIAL_SCALE, columns, SPATIAL_SCALE).mean((3, 5))
    later = small[:, 1:].reshape(channels, -1, TEMPORAL_SCALE, rows, columns).mean(2)
    return np.concatenate([small[:, :1], later], axis=1)[None]


def dead_leaves(grid: Grid, seed: int) -> Floats:
    """Makes a clip (1, 3, 8F-7, 32H, 32W) float32 in [-1, 1] of moving discs, the later in front of the earlier."""
    random = np.random.RandomState(seed)
    clip = np.empty((3, grid.num_frames, grid.height, grid.width), np.float32)
    clip[:] = random.uniform(-1, 1, (3, 1, 1, 1))
    rows, columns = np.mgrid[: grid.height, : grid.width]
    # Areas are spread so that every scale covers as much: radii have a density of r^-3.
    ends = _SMALLEST**-2, _LARGEST**-2
    for radius in random.uniform(*ends, _DISCS) ** -0.5:
        colour = random.uniform(-1, 1, (3, 1))
        row, column = random.uniform(0, grid.height), random.uniform(0, grid.width)
        down, across = random.uniform(-_FASTEST, _FASTEST, 2)
        for frame in range(grid.num_frames):
            inside = (rows - row - frame * down) ** 2 + (columns - column - frame * across) ** 2 < radius**2
            clip[:, frame, inside] = colour
    return clip[None]
