"""Writes and reads the latents of a run as a safetensors file, with all settings that are needed to decode them later.

This module knows nothing about sessions.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.geometry import TEMPORAL_SCALE, Grid, latents_of
from ltx_runtime.tensors import read_metadata, read_tensors, write_tensors

_KEY = "ltx"


@dataclass(frozen=True)
class Ending:
    """Settings with which latents are turned into a video.

    Attributes:
        version: name of the version that made the latents.
        size: height and width to which frames are resized.
        crop: numbers of pixels cut off after resizing: left, right, top, bottom.
        num_frames: number of frames that are kept.
        fps: frame rate of the video.
        seed: seed of the decoder's noise.
        tone_map: compression ratio of the tone map; 0 for no tone map.
        decode_timestep: timestep input of the decoder, if it has one.
        decode_noise_scale: share of noise mixed into the latents of a decoder that has a timestep input.
    """

    version: str
    size: tuple[int, int]
    crop: tuple[int, int, int, int]
    num_frames: int
    fps: float
    seed: int
    tone_map: float
    decode_timestep: float
    decode_noise_scale: float


def write_latents(path: Path, latents: dict[str, NDArray[np.float32]], ending: Ending, *, replace: bool = True) -> Path:
    """Writes the normalized latents (1, C, F, H, W) of every pass by name; the last ones are those to decode.

    Returns the file, see `write_tensors`.

    Raises:
        LtxError: the file cannot be written.
    """
    settings = json.dumps(asdict(ending) | {"decode": [*latents][-1]})
    return write_tensors(path, latents, {_KEY: settings}, replace=replace)


def read_latents(path: Path, channels: int) -> tuple[NDArray[np.float32], Ending]:
    """Returns the latents to decode from a file, (1, channels, F, H, W) float32, and their Ending.

    Raises:
        LtxError: the file is damaged, was not written by `write_latents`, or has another number of channels.
    """
    try:
        settings: dict[str, Any] = json.loads(read_metadata(path)[_KEY])
        name = str(settings.pop("decode"))
        ending = Ending(**{**settings, "size": tuple(settings["size"]), "crop": tuple(settings["crop"])})
        _check(ending)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise LtxError(
            f"{path} contains no latents saved by ltx-run", "give a file that --save-latents wrote"
        ) from None
    latents = read_tensors(path, [name])[name].astype(np.float32)
    if latents.ndim != 5 or latents.shape[:2] != (1, channels) or 0 in latents.shape:
        raise LtxError(
            f"{name} in {path} is of shape {list(latents.shape)}, not (1, {channels}, frames, rows, columns)",
            f"use the version that made it, {ending.version}",
        )
    if ending.num_frames > TEMPORAL_SCALE * (latents.shape[2] - 1) + 1:
        raise LtxError(f"{path} asks for {ending.num_frames} frames, more than its latents decode to", "save it again")
    return latents, ending


def read_initial(path: Path, grid: Grid, channels: int) -> NDArray[np.float32]:
    """Returns a pass's initial noise (1, channels, F, H, W) float32, from `initial_latents` (1, N, channels) in a file.

    Raises:
        LtxError: the file is damaged, or the noise is for another size.
    """
    packed = read_tensors(path, ["initial_latents"])["initial_latents"].astype(np.float32)
    if packed.shape != (1, grid.tokens, channels):
        raise LtxError(
            f"initial_latents in {path} are of shape {list(packed.shape)}, not [1, {grid.tokens}, {channels}]",
            f"make them for {grid.width}x{grid.height} and {grid.num_frames} frames, which the first pass has",
        )
    return latents_of(packed, grid)


def _check(ending: Ending) -> None:
    """Raises ValueError or TypeError if a field has a value that `write_latents` never writes."""
    integers = (*ending.size, *ending.crop, ending.num_frames, ending.seed)
    numbers = (ending.fps, ending.tone_map, ending.decode_timestep, ending.decode_noise_scale)
    if type(ending.version) is not str or not all(type(number) is int and number >= 0 for number in integers):
        raise ValueError("version, or a whole number")
    if not all(type(number) in (int, float) and math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError("a number")
    (height, width), (left, right, top, bottom) = ending.size, ending.crop
    if not (ending.fps > 0 and ending.num_frames > 0 and ending.seed < 2**64):
        raise ValueError("fps, num_frames or seed")
    if left + right >= width or top + bottom >= height:
        raise ValueError("crop")
