"""Latents of a run <-> a safetensors file, with all that decoding them later needs. Knows nothing of sessions."""

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
    """What happens to latents on their way to frames.

    Attributes:
        version: that the latents are of.
        size: height and width that frames are resized to.
        crop: left, right, top, bottom: pixels that are cut off after that.
        num_frames: that are kept.
        fps: of the file.
        seed: of the decoder's noise.
        tone_map: ratio, 0 for none.
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


def write_latents(path: Path, latents: dict[str, NDArray[np.float32]], ending: Ending) -> None:
    """Writes normalized latents (1, C, F, H, W) of every pass, the last one those to decode.

    Raises:
        LtxError: the place cannot be written.
    """
    described = json.dumps(asdict(ending) | {"decode": [*latents][-1]})
    write_tensors(path, latents, {_KEY: described})


def read_latents(path: Path, channels: int) -> tuple[NDArray[np.float32], Ending]:
    """The latents of a file's last pass, (1, channels, F, H, W) float32, and how they end.

    Raises:
        LtxError: the file is damaged, or was not written by `write_latents`.
    """
    try:
        described: dict[str, Any] = json.loads(read_metadata(path)[_KEY])
        name = str(described.pop("decode"))
        ending = Ending(**{**described, "size": tuple(described["size"]), "crop": tuple(described["crop"])})
        _check(ending)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise LtxError(f"{path} holds no latents of ltx-run", "give a file that --save-latents wrote") from None
    latents = read_tensors(path, [name])[name].astype(np.float32)
    if latents.ndim != 5 or latents.shape[:2] != (1, channels) or 0 in latents.shape:
        raise LtxError(
            f"{name} in {path} is of shape {list(latents.shape)}, not (1, {channels}, frames, rows, columns)",
            f"name the version it is of, {ending.version}",
        )
    if ending.num_frames > TEMPORAL_SCALE * (latents.shape[2] - 1) + 1:
        raise LtxError(f"{path} ends with {ending.num_frames} frames, more than its latents make", "save it again")
    return latents, ending


def read_initial(path: Path, grid: Grid, channels: int) -> NDArray[np.float32]:
    """A pass's initial noise (1, channels, F, H, W) float32, of a file's `initial_latents` packed as (1, N, channels).

    Raises:
        LtxError: the file is damaged, or made for another size.
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
    whole = (*ending.size, *ending.crop, ending.num_frames, ending.seed)
    levels = (ending.fps, ending.tone_map, ending.decode_timestep, ending.decode_noise_scale)
    if type(ending.version) is not str or not all(type(one) is int and one >= 0 for one in whole):
        raise ValueError("version, or a whole number")
    if not all(type(one) in (int, float) and math.isfinite(one) and one >= 0 for one in levels):
        raise ValueError("a number")
    (height, width), (left, right, top, bottom) = ending.size, ending.crop
    if not (ending.fps > 0 and ending.num_frames > 0 and ending.seed < 2**64):
        raise ValueError("fps, num_frames or seed")
    if left + right >= width or top + bottom >= height:
        raise ValueError("crop")
