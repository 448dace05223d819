"""Drawn clips on disk, and windows of them that things move through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.world.painting import render
from training.world.scenes import Scene, random_scene

FRAMES = 25
AROUND_THINGS = 0.75  # the share of windows that have a thing in or near their middle

Bytes = NDArray[np.uint8]
Batches = Callable[[int], tuple[Tensor, Tensor]]  # step -> video and coverage


@dataclass(frozen=True)
class Size:
    """Height and width of clips in pixels."""

    height: int
    width: int


def scene_of(seed: int, number: int) -> Scene:
    """Returns one of the endless scenes that belong to a seed; none of them is held out."""
    return random_scene(np.random.default_rng([seed, number]))


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips (N, F, H, W, 3) and the coverage of all their things together (N, F, H, W), as bytes that stay on disk."""

    frames: Bytes
    masks: Bytes

    def some(self, count: int) -> Iterator[Tensor]:
        """Yields the videos of the first clips: `count` of them, or all."""
        return map(self.video, range(min(count, len(self.frames))))

    def video(self, number: int) -> Tensor:
        """Returns a clip as the encoder takes it, (1, 3, F, H, W) float32 in [-1, 1]."""
        return as_video(self.frames[number : number + 1])

    def coverage(self, number: int) -> Tensor:
        """Returns where the things of a clip are, (1, 1, F, H, W) float32 in 0..1."""
        return torch.from_numpy(self.masks[number].astype(np.float32) / 255)[None, None]


def as_video(frames: Bytes) -> Tensor:
    """Converts frames (B, F, H, W, 3) to video (B, 3, F, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(0, 4, 1, 2, 3).contiguous()


def drawn_clips(folder: Path, size: Size, count: int, seed: int) -> Clips:
    """Returns `count` clips of a seed, drawn by all cores if the folder does not have them already."""
    name = f"{size.height}x{size.width}-{count}-{seed}"
    paths = [folder / f"{what}-{name}.npy" for what in ("frames", "masks")]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        partial_paths = [path.with_suffix(".part") for path in paths]
        shape = (count, FRAMES, size.height, size.width)
        frames = np.lib.format.open_memmap(partial_paths[0], "w+", np.uint8, (*shape, 3))
        masks = np.lib.format.open_memmap(partial_paths[1], "w+", np.uint8, shape)
        with ProcessPoolExecutor(os.cpu_count()) as cores:
            drawn = cores.map(partial(draw, size=size), (scene_of(seed, n) for n in range(count)), chunksize=16)
            for number, (clip, mask) in enumerate(drawn):
                frames[number], masks[number] = clip, mask
        for part, path in zip(partial_paths, paths, strict=True):
            part.rename(path)
    return Clips(*(np.load(path, mmap_mode="r") for path in paths))


def draw(scene: Scene, size: Size, frames: int = FRAMES) -> tuple[Bytes, Bytes]:
    """Draws a clip (F, H, W, 3), and the coverage of all its things together (F, H, W)."""
    clip, masks = render(scene, size.height, size.width, frames)
    return _as_bytes(clip), _as_bytes(masks.max(0))


def _as_bytes(values: NDArray[np.float32]) -> Bytes:
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def windows(
    clips: tuple[Clips, ...], shares: tuple[float, ...], batch: int, side: int, frames: int, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Returns the video (B, 3, F, side, side) of a batch of windows, and its coverage (B, 1, F, side, side).

    Args:
        clips: clips of several sizes.
        shares: how many of the windows are from each of them.
        batch: number of windows B.
        side: height and width in pixels.
        frames: number of frames F, from the first one on.
        seed: decides which windows are taken.
    """
    random = np.random.default_rng(seed)
    taken = [_window(clips[random.choice(len(clips), p=shares)], side, frames, random) for _ in range(batch)]
    video, masks = (np.stack(arrays) for arrays in zip(*taken, strict=True))
    return as_video(video), torch.from_numpy(masks.astype(np.float32) / 255)[:, None]


def _window(clips: Clips, side: int, frames: int, random: np.random.Generator) -> tuple[Bytes, Bytes]:
    number = int(random.integers(len(clips.frames)))
    most = np.array(clips.frames.shape[2:4]) - side
    corner = random.integers(most + 1)
    if random.random() < AROUND_THINGS:
        covered = np.argwhere(clips.masks[number, random.integers(frames)] > 127)
        if len(covered):
            near = random.integers(-side // 3, side // 3, 2)
            corner = np.clip(covered[random.integers(len(covered))] + near - side // 2, 0, most)
    rows, columns = (slice(int(start), int(start) + side) for start in corner)
    return clips.frames[number, :frames, rows, columns], clips.masks[number, :frames, rows, columns]
