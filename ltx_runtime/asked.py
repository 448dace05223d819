"""What was typed -> what to make, and how. Knows option names, so that messages can name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ltx_runtime.arguments import Arguments
from ltx_runtime.conditioning import Condition, parse_condition
from ltx_runtime.errors import LtxError
from ltx_runtime.geometry import TEMPORAL_SCALE
from ltx_runtime.noise import RNGS
from ltx_runtime.options import Options
from ltx_runtime.plan import Request
from ltx_runtime.versions import Version

_Parsed = TypeVar("_Parsed", int, float)
_LARGEST_CRF = 51
_MOST_MEMORY_GB = 1e6
# Of Request, under the names that were typed.
_SAME_NAMES = (
    *("steps", "skip_initial_steps", "skip_final_steps", "guidance_scale", "stg_scale", "rescaling_scale", "stg_mode"),
    *("cfg_star", "single_pass", "pad", "video", "strength", "decode_timestep", "decode_noise_scale"),
    "temporal_upscale",
)


def request_of(typed: Arguments, version: Version, seed: int, clip_frames: int | None) -> Request:
    """What was asked for, with the version's own size, length, speed and negative prompt where nothing was typed.

    Args:
        typed: the options.
        version: that makes it.
        seed: typed or drawn.
        clip_frames: how many frames a clip to make over has; it sets the length unless that was typed.

    Raises:
        LtxError: a list or a condition cannot be read.
    """
    given = [parse_condition(one) for one in typed.condition or ()]
    if typed.image is not None:
        given.insert(0, Condition(typed.image, 0, 1.0))
    num_frames = typed.num_frames
    if num_frames is None and clip_frames is not None:
        num_frames = max(1, (clip_frames - 1) // TEMPORAL_SCALE * TEMPORAL_SCALE + 1)

    def or_default(value: int | None, default: int) -> int:
        return default if value is None else value

    return Request(
        prompt=_text("prompt", typed.prompt or ""),
        negative_prompt=_text(
            "negative prompt", version.negative_prompt if typed.negative_prompt is None else typed.negative_prompt
        ),
        height=or_default(typed.height, version.height),
        width=or_default(typed.width, version.width),
        num_frames=or_default(num_frames, version.num_frames),
        fps=version.fps if typed.fps is None else typed.fps,
        seed=seed,
        timesteps=_timesteps(typed.timesteps),
        skip_blocks=None if typed.skip_blocks is None else tuple(_numbers("skip-blocks", typed.skip_blocks, int)),
        stochastic=typed.stochastic_sampling,
        conditions=tuple(given),
        image_noise_scale=typed.image_cond_noise_scale,
        tone_map=typed.tone_map_compression_ratio,
        **{name: getattr(typed, name) for name in _SAME_NAMES},
    )


def options_of(typed: Arguments) -> Options:
    """How the request is run.

    Raises:
        LtxError: the memory is no positive number, or the generator has no such name.
    """
    for name, given, advice in (("memory", typed.memory, "use 8"), ("gpu-memory", typed.gpu_memory, "leave it out")):
        if given is not None and not 0 < given <= _MOST_MEMORY_GB:
            raise LtxError(f"{name} must be a positive number of GB; got {given:g} - {advice}")
    if typed.rng not in RNGS:
        raise LtxError(f"unknown rng {typed.rng!r}; use one of {', '.join(RNGS)}")
    if not 0 <= typed.crf <= _LARGEST_CRF:
        raise LtxError(f"crf must be from 0 to {_LARGEST_CRF}; got {typed.crf} - use 29, or 0 for no compression")
    return Options(
        backend=typed.backend,
        rng=typed.rng,
        gpu_memory_bytes=None if typed.gpu_memory is None else int(typed.gpu_memory * 1e9),
        low_memory=typed.low_memory,
        memory_bytes=None if typed.memory is None else int(typed.memory * 1e9),
        tiled=typed.vae_tiling,
        crf=typed.crf,
        sample_posterior=typed.sample_posterior,
        embeddings=typed.embeddings_file,
        initial_latents=typed.initial_latents_file,
        noise=typed.noise_file,
        save_embeddings=typed.save_embeddings,
        save_latents=typed.save_latents,
        save_noise=typed.save_noise,
    )


def _text(option: str, typed: str) -> str:
    """Raises LtxError for what a terminal hands over that is no text."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise LtxError(f"the {option} is not in the terminal's encoding - type it in UTF-8") from None
    return typed


def _timesteps(typed: str | None) -> tuple[float, ...]:
    listed = tuple(_numbers("timesteps", typed, float))
    if typed is not None and not listed:
        raise LtxError(f"timesteps must be numbers with commas between them; got {typed!r} - use e.g. 1.0,0.975,0.725")
    return listed


def _numbers(name: str, typed: str | None, number: Callable[[str], _Parsed]) -> list[_Parsed]:
    try:
        return [number(one) for one in (typed or "").replace(",", " ").split()]
    except ValueError:
        raise LtxError(f"{name} must be numbers with commas between them; got {typed!r} - use e.g. 1,2") from None
