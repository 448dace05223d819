"""A request checked against a version before anything is loaded: sizes, passes, noise levels, guidance of every step.

Knows nothing of sessions and reads no files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.noise.noise import check_seed
from ltx_runtime.planning.request import Request, Resolved, resolved
from ltx_runtime.sampling.guidance import guidance_at
from ltx_runtime.sampling.pass_plan import PassPlan, Settings
from ltx_runtime.sampling.schedule import Sigmas, check_allowed, sigmas_of
from ltx_runtime.spec.geometry import Grid, Padding, check_fps, first_pass_size, grid_of, padded_size, padding_of
from ltx_runtime.spec.presets import STG_MODES, Guidance, Pass, Schedule, StgMode, as_one
from ltx_runtime.spec.versions import Version
from ltx_runtime.vae.saved_latents import Ending

_LARGEST_SCALE = 100.0
_STG_BLOCK = 19  # of the official presets
_RESIDUAL = "stg_r"
_STG_NAMES: dict[str, StgMode] = {
    "stg_av": "attention_values",
    "stg_as": "attention_skip",
    "stg_t": "transformer_block",
    **{mode: mode for mode in STG_MODES},
}


@dataclass(frozen=True)
class Plan:
    """Everything the road needs to know of a request.

    Attributes:
        request: what is made, with a value in every field that a version has a default for.
        passes: one or two.
        settings: what holds for every step of all passes.
        padding: pixels around images and clips that are given.
        temporal_upscale: whether the frame rate is doubled at the end.
        ending: what happens to the last latents.
    """

    request: Resolved
    passes: tuple[PassPlan, ...]
    settings: Settings
    padding: Padding
    temporal_upscale: bool
    ending: Ending

    @property
    def uses_negative_prompt(self) -> bool:
        return any(step.uses_cfg for one in self.passes for step in one.guidance)


def plan(
    request: Request,
    version: Version,
    schedule: Schedule | None = None,
    allowed_sigmas: tuple[float, ...] | None = None,
) -> Plan:
    """Checks a request before anything is loaded.

    Args:
        request: what to make.
        version: the release that makes it.
        schedule, allowed_sigmas: the checkpoint's own, instead of the version's.

    Raises:
        LtxError: something of the request cannot be used; names it, and what can.
    """
    return _plan(resolved(request, version), version, schedule, allowed_sigmas)


def _plan(
    request: Resolved, version: Version, schedule: Schedule | None, allowed_sigmas: tuple[float, ...] | None
) -> Plan:
    check_fps(request.fps)
    check_seed(request.seed)
    _check_choices(request)
    size = request.height, request.width, request.num_frames
    height, width, num_frames = padded_size(*size) if request.pad else size
    ones = _passes_of(request, version)
    grids = grids_of(grid_of(height, width, num_frames), version, single_pass=request.single_pass)
    passes = []
    for one, of_pass in zip(ones, grids, strict=True):
        sigmas = sigmas_of(schedule or version.schedule, one, of_pass.tokens)
        check_allowed(sigmas, version.allowed_sigmas if allowed_sigmas is None else allowed_sigmas)
        stochastic = one.stochastic if request.stochastic is None else request.stochastic
        passes.append(PassPlan(of_pass, sigmas, _guidance_of(one, sigmas, request, version), stochastic))
    if request.video is not None and passes[0].sigmas[0] >= 1:
        raise LtxError(
            "a video to start from needs noise levels below 1",
            "use a smaller --strength, a larger --skip-initial-steps or more --steps",
        )
    padding = padding_of(request.height, request.width, height, width)
    return Plan(
        request=request,
        passes=tuple(passes),
        settings=Settings(request.fps, _STG_NAMES[request.stg_mode], request.image_noise_scale),
        padding=padding,
        temporal_upscale=request.temporal_upscale,
        ending=_ending(request, version, (height, width), padding, ones[-1]),
    )


def grids_of(whole: Grid, version: Version, *, single_pass: bool = False) -> list[Grid]:
    """The grid of each pass: of two, the first is smaller and the second twice as large as that.

    Raises LtxError if it is too small for two passes.
    """
    if single_pass or len(version.passes) == 1:
        return [whole]
    first = grid_of(*first_pass_size(whole.height, whole.width, version.first_pass_scale), whole.num_frames)
    if first.tokens == 1:  # the deviation of a single cell, which AdaIN matches, is no number
        raise LtxError(f"one frame of {whole.width}x{whole.height} is too small for two passes", "add --single-pass")
    return [first, Grid(first.frames, 2 * first.rows, 2 * first.columns)]


def _ending(request: Resolved, version: Version, size: tuple[int, int], padding: Padding, last: Pass) -> Ending:
    timestep, noise_scale = request.decode_timestep, request.decode_noise_scale
    twice = request.temporal_upscale
    return Ending(
        version=version.name,
        size=size,
        crop=(padding.left, padding.right, padding.top, padding.bottom),
        num_frames=2 * request.num_frames - 1 if twice else request.num_frames,
        fps=2 * request.fps if twice else request.fps,
        seed=request.seed,
        tone_map=last.tone_map if request.tone_map is None else request.tone_map,
        decode_timestep=version.decode_timestep if timestep is None else timestep,
        decode_noise_scale=version.decode_noise_scale if noise_scale is None else noise_scale,
    )


def _check_choices(request: Request) -> None:
    """Raises LtxError if a number or a name cannot be used with any version."""
    for name, value, least, most, advice in (
        ("guidance-scale", request.guidance_scale, 1.0, _LARGEST_SCALE, "use 3, or 1 to turn it off"),
        ("stg-scale", request.stg_scale, 0.0, _LARGEST_SCALE, "use 1, or 0 to turn it off"),
        ("rescaling-scale", request.rescaling_scale, 0.0, 1.0, "use 0.7, or 1 to turn it off"),
        ("image-cond-noise-scale", request.image_noise_scale, 0.0, 1.0, "use 0.15"),
        ("decode-timestep", request.decode_timestep, 0.0, 1.0, "use 0.05"),
        ("decode-noise-scale", request.decode_noise_scale, 0.0, 1.0, "use 0.025"),
        ("tone-map-compression-ratio", request.tone_map, 0.0, 1.0, "use 0.6, or 0 for none"),
        ("strength", request.strength, 0.0, 1.0, "use 0.6"),
    ):
        if value is not None and not least <= value <= most:
            upper = f" and at most {most:g}" if most == 1 or value > most else ""
            raise LtxError(f"{name} must be at least {least:g}{upper}; got {value:g}", advice)
    if request.stg_mode in (_RESIDUAL, "residual"):
        raise LtxError(
            "stg-mode residual does nothing: it skips a connection that LTX-Video's attention does not have",
            f"use one of {', '.join(STG_MODES)}",
        )
    if request.stg_mode not in _STG_NAMES:
        raise LtxError(f"unknown stg-mode {request.stg_mode!r}", f"use one of {', '.join(STG_MODES)}")


def _passes_of(request: Request, version: Version) -> list[Pass]:
    """The version's passes with the request's own steps in the first."""
    ones = [as_one(version.passes)] if request.single_pass else [*version.passes]
    first = ones[0]
    if request.timesteps:
        if request.steps not in (None, len(request.timesteps)):
            raise LtxError(
                f"{len(request.timesteps)} timesteps are not {request.steps} steps", "leave --steps or --timesteps out"
            )
        first = replace(first, sigmas=request.timesteps, skip_initial_steps=0, skip_final_steps=0)
    elif request.steps is not None and first.sigmas and request.steps != len(first.sigmas):
        raise LtxError(
            f"this version is distilled to a fixed list of {len(first.sigmas)} steps; got {request.steps}",
            f"leave the steps out, use {len(first.sigmas)}, or give --timesteps",
        )
    elif request.steps is not None:
        first = replace(first, steps=request.steps)
    if request.skip_final_steps is not None:
        first = _cut(first, final=request.skip_final_steps)
    if request.video is not None:
        first = _started(first, request, len(ones))
    elif request.skip_initial_steps or request.strength is not None:
        what = "skipping initial steps" if request.strength is None else "strength"
        raise LtxError(f"{what} needs a video to start from", "add --video, or leave it out")
    return [first, *ones[1:]]


def _started(first: Pass, request: Request, passes: int) -> Pass:
    """The first pass without the steps that a video to start from makes unnecessary."""
    if passes > 1:
        raise LtxError("a video to start from is made over in one pass", "add --single-pass")
    if request.skip_initial_steps is not None:
        if request.strength is not None:
            raise LtxError("strength and skip-initial-steps say the same", "leave one of them out")
        return _cut(first, initial=request.skip_initial_steps)
    if request.timesteps and request.strength is None:
        return first
    strength = 0.6 if request.strength is None else request.strength
    steps = len(first.sigmas) or first.steps
    return _cut(first, initial=max(0, steps - max(first.skip_final_steps + 1, int(steps * strength))))


def _cut(one: Pass, *, initial: int | None = None, final: int | None = None) -> Pass:
    """The pass with so many steps skipped at its ends, whether they are listed or counted; None leaves an end."""
    initial = one.skip_initial_steps if initial is None else initial
    final = one.skip_final_steps if final is None else final
    if min(initial, final) < 0:
        raise LtxError(f"steps to skip cannot be negative; got {min(initial, final)}", "use 0")
    steps = len(one.sigmas) or one.steps
    if initial + final >= steps > 0:
        raise LtxError(f"cannot skip {initial + final} of {steps} steps", "skip fewer")
    if one.sigmas:
        return replace(one, sigmas=one.sigmas[initial : steps - final])
    return replace(one, skip_initial_steps=initial, skip_final_steps=final)


def _guidance_of(one: Pass, sigmas: Sigmas, request: Request, version: Version) -> tuple[Guidance, ...]:
    """Of every step, with what the request asks for in place of the version's own."""
    changes: dict[str, Any] = {
        "cfg_scale": request.guidance_scale,
        "stg_scale": request.stg_scale,
        "rescale": request.rescaling_scale,
        "skip_blocks": request.skip_blocks,
        "cfg_star": request.cfg_star,
    }
    asked = {name: value for name, value in changes.items() if value is not None}
    steps = tuple(replace(guidance_at(float(sigma), one.guidance), **asked) for sigma in sigmas)
    last = version.transformer.layers - 1
    usual = min(_STG_BLOCK, last)
    for block in (block for step in steps if step.uses_stg for block in step.skip_blocks):
        if not 0 <= block <= last:
            raise LtxError(f"skip-blocks must be from 0 to {last}; got {block}", f"use {usual}")
    if request.stg_scale and not any(step.skip_blocks for step in steps):
        raise LtxError("stg-scale needs blocks to skip, and a pass has none", f"add --skip-blocks {usual}")
    return steps
