"""Converts typed options to a request and to run options. Messages here name the options that are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ltx_runtime.cli.arguments import Arguments
from ltx_runtime.errors import LtxError
from ltx_runtime.planning.preset import read_preset
from ltx_runtime.planning.request import Condition, Request

_Parsed = TypeVar("_Parsed", int, float)
_PLACE = re.compile(r"(?P<frame>-?\d{1,9})(?::(?P<strength>[^:@]*))?", re.ASCII)
# Fields of Request that have the same name as their option.
_SAME_NAMES = (
    *("height", "width", "num_frames", "fps", "seed"),
    *("steps", "skip_initial_steps", "skip_final_steps", "guidance_scale", "stg_scale", "rescaling_scale", "stg_mode"),
    *("cfg_star", "single_pass", "pad", "video", "strength", "fit", "decode_timestep", "decode_noise_scale"),
    "temporal_upscale",
)
# Options that matter for saved latents.
_FOR_LATENTS = (
    *("latents", "rng", "noise_file", "save_noise", "memory", "vae_tiling", "vae_slicing", "output", "output_dir"),
    *("engines", "version", "backend", "cpu_mode", "gpu_memory", "threads", "plan", "json"),
)


def request_of(typed: Arguments) -> Request:
    """Returns the request that was typed; None for what was left out.

    Raises:
        LtxError: a list, a condition or a preset cannot be read, or a prompt is not valid text.
    """
    given = [parse_condition(one) for one in typed.condition or ()]
    if typed.image is not None:
        given.insert(0, Condition(typed.image))
    return Request(
        prompt=_text("prompt", typed.prompt or ""),
        negative_prompt=None if typed.negative_prompt is None else _text("negative prompt", typed.negative_prompt),
        preset=None if typed.preset is None else read_preset(typed.preset),
        timesteps=_timesteps(typed.timesteps),
        skip_blocks=None if typed.skip_blocks is None else tuple(_numbers("skip-blocks", typed.skip_blocks, int)),
        stochastic=typed.stochastic_sampling,
        conditions=tuple(given),
        image_noise_scale=typed.image_cond_noise_scale,
        tone_map=typed.tone_map_compression_ratio,
        **{name: getattr(typed, name) for name in _SAME_NAMES},
    )


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


def pipeline_options_of(typed: Arguments) -> dict[str, Any]:
    """Returns the options of the whole Pipeline, by the names of its arguments."""
    return {name: getattr(typed, name) for name in ("backend", "cpu_mode", "memory", "gpu_memory", "threads")}


def run_options_of(typed: Arguments) -> dict[str, Any]:
    """Returns the options of a single run, by the names of the fields of RunOptions."""
    renamed = {"tiled": "vae_tiling", "embeddings": "embeddings_file", "noise": "noise_file"}
    renamed |= {"initial_latents": "initial_latents_file"}
    same = ("rng", "low_memory", "crf", "sample_posterior", "cache", "save_embeddings", "save_latents", "save_noise")
    return {name: getattr(typed, option) for name, option in (renamed | dict(zip(same, same, strict=True))).items()}


def decode_options_of(typed: Arguments) -> dict[str, Any]:
    """Returns the options of decoding saved latents, by the names of the fields of RunOptions.

    Raises:
        LtxError: an option was typed that has no effect on latents that were saved.
    """
    for field in fields(Arguments):
        if field.name not in _FOR_LATENTS and getattr(typed, field.name) != field.default:
            option = "the prompt" if field.name == "prompt" else f"--{field.name.replace('_', '-')}"
            raise LtxError(f"{option} has no effect on saved latents, which are only decoded", "leave it out")
    names = {"rng": "rng", "noise": "noise_file", "tiled": "vae_tiling", "save_noise": "save_noise"}
    return {name: getattr(typed, option) for name, option in names.items()}


def _text(option: str, typed: str) -> str:
    """Returns the typed text. Raises LtxError if it has bytes that Python could not decode."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise LtxError(f"the {option} is not in the terminal's encoding", "type it in UTF-8") from None
    return typed


def _timesteps(typed: str | None) -> tuple[float, ...]:
    listed = tuple(_numbers("timesteps", typed, float))
    if typed is not None and not listed:
        raise LtxError(f"timesteps must be comma-separated numbers; got {typed!r}", "use e.g. 1.0,0.975,0.725")
    return listed


def _numbers(name: str, typed: str | None, number: Callable[[str], _Parsed]) -> list[_Parsed]:
    try:
        return [number(one) for one in (typed or "").replace(",", " ").split()]
    except ValueError:
        kind = "whole numbers" if number is int else "numbers"
        raise LtxError(f"{name} must be comma-separated {kind}; got {typed!r}", "use e.g. 1,2") from None
