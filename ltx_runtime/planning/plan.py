"""Checks a request against a version before anything is loaded, and plans passes, noise levels and guidance.

This module knows nothing about sessions and reads no files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ltx_runtime.errors import LtxError
from ltx_runtime.noise.noise import check_seed
from ltx_runtime.planning.choices import check_fit, check_number, stg_mode_of
from ltx_runtime.planning.preset import Preset, check_preset
from ltx_runtime.planning.request import Request, Resolved, resolved
from ltx_runtime.sampling.guidance import guidance_at
from ltx_runtime.sampling.pass_plan import PassPlan, Settings
from ltx_runtime.sampling.schedule import Sigmas, check_allowed, sigmas_of
from ltx_runtime.spec.geometry import Grid, Padding, check_fps, first_pass_size, grid_of, padded_size, padding_of
from ltx_runtime.spec.presets import Guidance, Pass, Schedule, as_one
from ltx_runtime.spec.versions import Version
from ltx_runtime.vae.saved_latents import Ending

_STG_BLOCK = 19  # the block that STG skips in the official base preset, spec.presets.BASE
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Plan:
    """A checked request, with everything that is needed to run it.

    Attributes:
        request: the request, with the version's defaults filled in by `resolved`.
        passes: plans of the one or two passes.
        settings: settings for every step of all passes.
        padding: pixels to add around the request's images and clips.
        temporal_upscale: whether the frame rate is doubled at the end.
        ending: how the final latents become frames.
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

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts to encode by their names: the prompt and, if a step uses it, the negative prompt."""
        negative = {"negative prompt": self.request.negative_prompt} if self.uses_negative_prompt else {}
        return {"prompt": self.request.prompt, **negative}


def plan(
    request: Request,
    version: Version,
    schedule: Schedule | None = None,
    allowed_sigmas: tuple[float, ...] | None = None,
) -> Plan:
    """Checks a request and returns its plan; nothing is loaded.

    Args:
        request: the video to make.
        version: the release that makes it.
        schedule, allowed_sigmas: those of the checkpoint; None for the version's.

    Raises:
        LtxError: a value of the request cannot be used; the message names it and what to use instead.
    """
    return _plan(resolved(request, version), version, schedule, allowed_sigmas)


def _plan(
    request: Resolved, version: Version, schedule: Schedule | None, allowed_sigmas: tuple[float, ...] | None
) -> Plan:
    check_fps(request.fps)
    check_seed(request.seed)
    _check_numbers(request)
    check_fit(request.fit)
    preset = request.preset or Preset(version.passes)
    check_preset(preset)
    stg_mode = stg_mode_of(_named(request.stg_mode, preset.stg_mode, "attention_values"))
    size = request.height, request.width, request.num_frames
    height, width, num_frames = padded_size(*size) if request.pad else size
    ones = _passes_of(request, preset.passes)
    scale = _named(preset.first_pass_scale, version.first_pass_scale)
    grids = _grids(grid_of(height, width, num_frames), len(ones), scale)
    passes = []
    for one, of_pass in zip(ones, grids, strict=True):
        sigmas = sigmas_of(_named(preset.schedule, schedule, version.schedule), one, of_pass.tokens)
        allowed = version.allowed_sigmas if allowed_sigmas is None else allowed_sigmas
        check_allowed(
            sigmas, allowed, "" if request.preset is None else "use a preset of this version, or leave it out"
        )
        stochastic = _named(request.stochastic, one.stochastic)
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
        settings=Settings(request.fps, stg_mode, request.image_noise_scale),
        padding=padding,
        temporal_upscale=request.temporal_upscale,
        ending=_ending(request, preset, version, (height, width), padding, ones[-1]),
    )


def grids_of(whole: Grid, version: Version, *, single_pass: bool = False) -> list[Grid]:
    """Returns the latent grid of each pass; the second of two has twice the height and width of the first.

    Raises:
        LtxError: the video is too small for two passes.
    """
    return _grids(whole, 1 if single_pass else len(version.passes), version.first_pass_scale)


def _grids(whole: Grid, passes: int, first_pass_scale: float) -> list[Grid]:
    if passes == 1:
        return [whole]
    first = grid_of(*first_pass_size(whole.height, whole.width, first_pass_scale), whole.num_frames)
    if first.tokens == 1:  # AdaIN matches its standard deviation, which is NaN for one cell
        raise LtxError(f"one frame of {whole.width}x{whole.height} is too small for two passes", "add --single-pass")
    return [first, Grid(first.frames, 2 * first.rows, 2 * first.columns)]


def _named(*values: _Value | None) -> _Value:
    """Returns the first value that is not None; the last value never is."""
    return next(value for value in values if value is not None)


def _ending(
    request: Resolved, preset: Preset, version: Version, size: tuple[int, int], padding: Padding, last: Pass
) -> Ending:
    twice = request.temporal_upscale
    return Ending(
        version=version.name,
        size=size,
        crop=(padding.left, padding.right, padding.top, padding.bottom),
        num_frames=2 * request.num_frames - 1 if twice else request.num_frames,
        fps=2 * request.fps if twice else request.fps,
        seed=request.seed,
        tone_map=_named(request.tone_map, last.tone_map),
        decode_timestep=_named(request.decode_timestep, preset.decode_timestep, version.decode_timestep),
        decode_noise_scale=_named(request.decode_noise_scale, preset.decode_noise_scale, version.decode_noise_scale),
    )


def _check_numbers(request: Request) -> None:
    """Raises LtxError if a number is outside the limits that hold for all versions."""
    for name in ("guidance_scale", "stg_scale", "rescaling_scale", "decode_timestep", "decode_noise_scale", "strength"):
        check_number(name, getattr(request, name))
    check_number("image_cond_noise_scale", request.image_noise_scale)
    check_number("tone_map_compression_ratio", request.tone_map)


def _passes_of(request: Request, passes: tuple[Pass, ...]) -> list[Pass]:
    """Returns the passes, the first with the steps that the request asks for."""
    ones = [as_one(passes)] if request.single_pass and len(passes) > 1 else [*passes]
    first = _counted(ones[0], request)
    if request.skip_final_steps is not None:
        first = _cut(first, final=request.skip_final_steps)
    first = _from_noise(first, request) if request.video is None else _started(first, request, len(ones))
    return [first, *ones[1:]]


def _counted(first: Pass, request: Request) -> Pass:
    """Returns the first pass with the request's number of steps or its noise levels."""
    if request.timesteps:
        if request.steps not in (None, len(request.timesteps)):
            raise LtxError(
                f"steps is {request.steps}, but the number of timesteps is {len(request.timesteps)}",
                "leave --steps or --timesteps out",
            )
        return replace(first, sigmas=request.timesteps, skip_initial_steps=0, skip_final_steps=0)
    if request.steps is None:
        return first
    if first.sigmas and request.steps != len(first.sigmas):
        listed = "this version was distilled for" if request.preset is None else "the preset has"
        raise LtxError(
            f"{listed} a fixed list of {len(first.sigmas)} steps; got {request.steps}",
            f"leave the steps out, use {len(first.sigmas)}, or give --timesteps",
        )
    return replace(first, steps=request.steps)


def _from_noise(first: Pass, request: Request) -> Pass:
    """Returns the first pass of a request without an input video, which skips no initial steps."""
    if request.skip_initial_steps or request.strength is not None:
        what = "skipping initial steps" if request.strength is None else "strength"
        raise LtxError(f"{what} needs a video to start from", "add --video, or leave it out")
    if first.skip_initial_steps and request.skip_initial_steps is None:
        raise LtxError(
            f"the preset skips {first.skip_initial_steps} initial steps, which needs a video to start from",
            "add --video, or --skip-initial-steps 0",
        )
    return replace(first, skip_initial_steps=0)


def _started(first: Pass, request: Request, passes: int) -> Pass:
    """Returns the first pass without the initial steps that an input video makes unnecessary."""
    if passes > 1:
        raise LtxError("video-to-video runs in one pass only", "add --single-pass")
    if request.skip_initial_steps is not None:
        if request.strength is not None:
            raise LtxError("strength and skip-initial-steps set the same thing", "leave one of them out")
        return _cut(first, initial=request.skip_initial_steps)
    begins_later = first.skip_initial_steps > 0 or (first.sigmas and first.sigmas[0] < 1)  # possible in a preset
    if (request.timesteps or begins_later) and request.strength is None:
        return first
    strength = 0.6 if request.strength is None else request.strength
    steps = len(first.sigmas) or first.steps
    return _cut(first, initial=max(0, steps - max(first.skip_final_steps + 1, int(steps * strength))))


def _cut(one: Pass, *, initial: int | None = None, final: int | None = None) -> Pass:
    """Returns the pass with these numbers of steps skipped at its ends; None keeps the pass's own number."""
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
    """Returns the guidance of every step, with the request's values in place of the version's or preset's."""
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
        raise LtxError("stg-scale needs blocks to skip, but a pass has none", f"add --skip-blocks {usual}")
    if request.preset and not asked and any(step.uses_stg and not step.skip_blocks for step in steps):
        raise LtxError("the preset has steps with STG but no blocks to skip", f"add --skip-blocks {usual}")
    return steps
