"""Latents of drawn clips with what is said of them, computed once by the trained encoder and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ltx_export.models.vae_encoder import Encoder
from training.clips import FRAMES, Size, as_video, draw, scene_of
from training.vae.encoder import means_of
from training.vae.linear_code import with_first_cell
from training.world.scenes import Scene

Halves = NDArray[np.float16]
CELL = (8, 32, 32)  # frames, rows and columns of a latent
KEYFRAMES = (8, 12, 16, 20, 24)  # frames of a clip, of which one is encoded as an image, too


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents of the clips of a seed, and of one frame of each on its own; they stay on disk.

    Attributes:
        clips: (N, C, F, H, W) float16.
        coverage: (N, F, H, W) float16, the share of each cell that things cover.
        keyframes: (N, C, H, W) float16, each an image of its own.
        keyframe_numbers: (N,), the frame of the clip that each keyframe is.
        scenes: what the clips show.
    """

    clips: Halves
    coverage: Halves
    keyframes: Halves
    keyframe_numbers: NDArray[np.int64]
    scenes: list[Scene]


def latents_of_clips(folder: Path, encoder: Encoder, size: Size, count: int, channels: int, seed: int) -> Latents:
    """Returns latents of `count` clips of a seed, in their first `channels`, encoded if the folder lacks them."""
    path = folder / f"latents-{size.height}x{size.width}-{count}-{seed}"
    names = ("clips", "coverage", "keyframes")
    frames, rows, columns = (FRAMES - 1) // CELL[0] + 1, size.height // CELL[1], size.width // CELL[2]
    shapes = {
        "clips": (count, channels, frames, rows, columns),
        "coverage": (count, frames, rows, columns),
        "keyframes": (count, channels, rows, columns),
    }
    if not path.exists():
        temporary = path.with_name(path.name + ".part")
        temporary.mkdir(parents=True, exist_ok=True)
        arrays = [
            np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", np.float16, shapes[name]) for name in names
        ]
        for number, encoded in enumerate(_encoded(encoder, size, count, channels, seed)):
            for array, values in zip(arrays, encoded, strict=True):
                array[number] = values
        temporary.rename(path)
    clips, coverage, keyframes = (np.load(path / f"{name}.npy", mmap_mode="r") for name in names)
    numbers = np.array([_keyframe_number(seed, number) for number in range(count)])
    return Latents(clips, coverage, keyframes, numbers, [scene_of(seed, number) for number in range(count)])


def _encoded(encoder: Encoder, size: Size, count: int, channels: int, seed: int) -> Iterator[tuple[Halves, ...]]:
    """Yields latents, coverage and keyframe of each clip; other processes draw and encode them, one for each core."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as cores:
        encode = partial(_encode, encoder=encoder, size=size, channels=channels, seed=seed)
        yield from cores.map(encode, range(count), chunksize=8)


def _encode(number: int, encoder: Encoder, size: Size, channels: int, seed: int) -> tuple[Halves, ...]:
    frames, masks = draw(number, size, seed)
    keyframe = _keyframe_number(seed, number)
    clip, image = means_of(encoder, as_video(frames[None])), means_of(encoder, as_video(frames[None, [keyframe]]))
    covered = F.avg_pool3d(with_first_cell(torch.from_numpy(masks.astype(np.float32) / 255)[None, None]), CELL)
    return tuple(x.numpy().astype(np.float16) for x in (clip[0, :channels], covered[0, 0], image[0, :channels, 0]))


def _keyframe_number(seed: int, number: int) -> int:
    """Returns which frame of a clip is its keyframe."""
    return int(np.random.default_rng([seed, number, 1]).choice(KEYFRAMES))
