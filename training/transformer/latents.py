"""Latents of drawn clips with what is said of them, computed once by the trained encoder and kept on disk."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ltx_export.models.vae_encoder import Encoder
from training.clips import Size, as_video, draw, scene_of
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
        keyframes: (N, C, H, W) float16, each an image of its own; none if clips have one frame.
        keyframe_numbers: (N,), the frame of the clip that each keyframe is.
        scenes: what the clips show.
    """

    clips: Halves
    coverage: Halves
    keyframes: Halves
    keyframe_numbers: NDArray[np.int64]
    scenes: list[Scene]


def latents_of_clips(
    folder: Path, encoder: Encoder, size: Size, frames: int, count: int, channels: int, seed: int
) -> Latents:
    """Returns latents of `count` clips of a seed, in their first `channels`, encoded if the folder lacks them.

    Things are on marks: a transformer learns places that words say nothing about much faster if they are few.
    """
    path = folder / f"latents-{size.height}x{size.width}x{frames}-{count}-{seed}"
    scenes = [replace(scene_of(seed, number), on_marks=True) for number in range(count)]
    numbers = [_keyframe_number(seed, number) for number in range(count)] if frames > 1 else []
    cells, rows, columns = (frames - 1) // CELL[0] + 1, size.height // CELL[1], size.width // CELL[2]
    shapes = {
        "clips": (count, channels, cells, rows, columns),
        "coverage": (count, cells, rows, columns),
        "keyframes": (len(numbers), channels, rows, columns),
    }
    if not path.exists():
        temporary = path.with_name(path.name + ".part")
        temporary.mkdir(parents=True, exist_ok=True)
        arrays = {
            name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", np.float16, shape)
            for name, shape in shapes.items()
        }
        encode = partial(_encode, encoder=encoder, size=size, frames=frames, channels=channels)
        with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as cores:
            for number, encoded in enumerate(cores.map(encode, scenes, numbers or repeat(None), chunksize=8)):
                for name, values in encoded.items():
                    arrays[name][number] = values
        temporary.rename(path)
    clips, coverage, keyframes = (np.load(path / f"{name}.npy", mmap_mode="r") for name in shapes)
    return Latents(clips, coverage, keyframes, np.array(numbers), scenes)


def _encode(
    scene: Scene, keyframe: int | None, encoder: Encoder, size: Size, frames: int, channels: int
) -> dict[str, Halves]:
    """Returns clip, coverage and, where a frame is said, keyframe of a scene; another process does this."""
    drawn, masks = draw(scene, size, frames)
    covered = F.avg_pool3d(with_first_cell(torch.from_numpy(masks.astype(np.float32) / 255)[None, None]), CELL)
    encoded = {"clips": means_of(encoder, as_video(drawn[None]))[0, :channels], "coverage": covered[0, 0]}
    if keyframe is not None:
        encoded["keyframes"] = means_of(encoder, as_video(drawn[None, [keyframe]]))[0, :channels, 0]
    return {name: values.numpy().astype(np.float16) for name, values in encoded.items()}


def _keyframe_number(seed: int, number: int) -> int:
    """Returns which frame of a clip is its keyframe."""
    return int(np.random.default_rng([seed, number, 1]).choice(KEYFRAMES))
