"""The request for a video. Everything but the prompt may be left out: None means the version's default."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.media.pictures import Source
from ltx_runtime.media.prepare import CROP
from ltx_runtime.planning.preset import Preset
from ltx_runtime.spec.geometry import TEMPORAL_SCALE
from ltx_runtime.spec.versions import Version
from ltx_runtime.weights.lora import LoraFile

IMAGE_NOISE_SCALE = 0.15
_MOST_FRAMES = 1e6
_PLACE = re.compile(r"(?P<frame>-?\d{1,9})(?::(?P<strength>[^:@]*))?", re.ASCII)
_RANDOM_SEED_BITS = 32  # few enough digits to type the seed again


@dataclass(frozen=True)
class Condition:
    """An image or clip that the video shows from a certain frame on.

    Attributes:
        media: the path of a file, a PIL image, or an array of frames (F, H, W, 3) or of one picture (H, W, 3), uint8
            or float in 0..1; a fourth channel is opacity. A file is read by what it contains, whatever its suffix.
        frame: the frame of the video at which it begins.
        strength: conditioning strength in 0..1; at 1 it is shown unchanged, below 1 it may change.
    """

    media: Source
    frame: int = 0
    strength: float = 1.0


@dataclass(frozen=True)
class Request:
    """A video to make; None means the version's default.

    Attributes:
        prompt: what the video shows.
        negative_prompt: what it must not show; used only by steps with CFG.
        height, width, num_frames: size of the video that is written, in pixels and frames.
        fps: frames per second, which also tells the model about speed.
        seed: 0 to 2^64-1; the same seed makes the same video. None draws a random seed.
        steps, timesteps, skip_initial_steps, skip_final_steps: denoising steps of the first pass.
        guidance_scale, stg_scale, rescaling_scale, skip_blocks, cfg_star, stochastic: guidance and sampling of every
            step of all passes.
        stg_mode: the part of a layer that STG skips: attention_values (the default of every version), attention_skip
            or transformer_block.
        single_pass: use one pass at full size, even if the version has two passes.
        pad: make the next larger size that the model supports, and crop it to the requested size.
        conditions: images and clips that condition parts of the video.
        video: a clip to start from instead of noise, in any form that Condition.media takes; `strength` (0 to 1) is
            how far it is moved towards noise.
        fit: how images and clips get the shape of the video: crop cuts off what is too much, as the official code does;
            pad scales them to fit into the video and adds black; size-from-image makes a video of the shape of the
            first one, for which height and width must be None.
        image_noise_scale: scale of the noise that fully conditioned tokens get before every step.
        decode_timestep, decode_noise_scale: noise level passed to the decoder, and how much noise is mixed into the
            latents before decoding.
        tone_map: how strongly large latent values are compressed before decoding, 0 to 1.
        temporal_upscale: double the frame rate at the end.
        preset: passes and their settings, in place of the version's; the fields above take precedence over it.
        duration: length in seconds, in place of `num_frames`; the nearest that can be made is taken.
        loras: LoRAs that are merged into the transformer, in this order.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    seed: int | None = None
    steps: int | None = None
    timesteps: tuple[float, ...] = ()
    skip_initial_steps: int | None = None
    skip_final_steps: int | None = None
    guidance_scale: float | None = None
    stg_scale: float | None = None
    rescaling_scale: float | None = None
    stg_mode: str | None = None
    skip_blocks: tuple[int, ...] | None = None
    cfg_star: bool | None = None
    stochastic: bool | None = None
    single_pass: bool = False
    pad: bool = False
    conditions: tuple[Condition, ...] = ()
    video: Source | None = None
    strength: float | None = None
    fit: str = CROP
    image_noise_scale: float = IMAGE_NOISE_SCALE
    decode_timestep: float | None = None
    decode_noise_scale: float | None = None
    tone_map: float | None = None
    temporal_upscale: bool = False
    preset: Preset | None = None
    duration: float | None = None
    loras: tuple[LoraFile, ...] = ()


@dataclass(frozen=True)
class Resolved(Request):
    """A request with its size, number of frames, frame rate, seed and negative prompt filled in by `resolved`."""

    negative_prompt: str = ""
    height: int = 0
    width: int = 0
    num_frames: int = 0
    fps: float = 0.0
    seed: int = 0


def resolved(request: Request, version: Version) -> Resolved:
    """Returns the request with the version's size, number of frames, frame rate and negative prompt where it has none.

    A request without a seed gets a random seed of 32 bits.

    Raises:
        LtxError: the duration cannot be used.
    """
    defaults: dict[str, Any] = {
        name: getattr(version, name) for name in ("negative_prompt", "height", "width", "num_frames", "fps")
    }
    given = {one.name: getattr(request, one.name) for one in fields(Request)}
    if request.duration is not None:
        fps = defaults["fps"] if request.fps is None else request.fps
        given |= {"num_frames": _frames_in(request.duration, fps, request), "duration": None}
    for name, value in defaults.items():
        given[name] = value if given[name] is None else given[name]
    if given["seed"] is None:
        given["seed"] = random_seed()
    return Resolved(**given)


def _frames_in(duration: float, fps: float, request: Request) -> int:
    """Returns the number of frames nearest to a duration; one of a multiple of 8 plus 1, unless `pad` allows any."""
    if request.num_frames is not None:
        raise LtxError("duration and num-frames set the same thing", "leave one of them out")
    if not 0 < duration * fps <= _MOST_FRAMES:
        most = _MOST_FRAMES / fps if fps > 0 else _MOST_FRAMES
        raise LtxError(f"duration must be more than 0 and at most {most:g} seconds; got {duration:g}", "use 4")
    if request.pad:
        return max(1, round(duration * fps))
    return TEMPORAL_SCALE * round((duration * fps - 1) / TEMPORAL_SCALE) + 1


def random_seed() -> int:
    """Draws a seed of 32 bits."""
    return secrets.randbits(_RANDOM_SEED_BITS)


def parse_condition(text: str) -> Condition:
    """Parses `FILE@FRAME` or `FILE@FRAME:STRENGTH`; the file name itself may contain @ and colons.

    Raises:
        LtxError: the frame is missing or negative, or the strength is not in 0..1.
    """
    name, _, place = text.rpartition("@")
    found = _PLACE.fullmatch(place)
    if not name or not found:
        raise LtxError(
            f"a condition is FILE@FRAME or FILE@FRAME:STRENGTH; got {text!r}", "write image.png@0 for example"
        )
    frame, strength = int(found["frame"]), found["strength"]
    if frame < 0:
        raise LtxError(f"the frame of a condition must be at least 0; got {frame} in {text!r}", "use 0 or more")
    try:
        value = 1.0 if strength is None else float(strength)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise LtxError(f"the strength of a condition must be from 0 to 1; got {strength!r} in {text!r}", "use 1")
    return Condition(Path(name), frame, value)
