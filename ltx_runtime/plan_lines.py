"""A plan for people and for programs: what would be run, and what memory it would take. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Any

from ltx_runtime.chosen import needed
from ltx_runtime.conditioning import added_frames
from ltx_runtime.errors import LtxError
from ltx_runtime.manifest import Manifest, export_command
from ltx_runtime.options import Options
from ltx_runtime.passes import Guidance
from ltx_runtime.plan import PassPlan, Plan, Request
from ltx_runtime.tile_sizes import peak_bytes
from ltx_runtime.versions import TransformerSize, find_version

_FLOAT_BYTES = 4
_SMALL_BYTES = 100_000_000
_WIDE = 12  # tensors of a block, the feed-forward's four times as wide one among them, that live at once


def told(
    planned: Plan, request: Request, options: Options, manifest: Manifest, frames: Sequence[int] = (), *, as_json: bool
) -> str:
    """The plan as lines, or as JSON; `frames` are those used of each image and clip."""
    described = describe(planned, request, options, manifest, frames)
    return json.dumps(described, indent=1) if as_json else "\n".join(_lines(described))


def describe(
    planned: Plan, request: Request, options: Options, manifest: Manifest, frames: Sequence[int] = ()
) -> dict[str, Any]:
    """The plan as plain data: what comes out, every step of every pass, what is decoded how, and memory in bytes."""
    last = planned.passes[-1].grid
    decoded = 2 * last.frames - 1 if planned.temporal_upscale else last.frames
    whole = [decoded, last.rows, last.columns]
    tiling = options.tiling(*whole)
    tiles = [*tiling.window(*whole)]
    names = needed(planned, request, options)
    added = added_frames((one.frame, count) for one, count in zip(request.conditions, frames, strict=False))
    return {
        "version": manifest.version,
        "seed": request.seed,
        "output": {
            "width": request.width,
            "height": request.height,
            "frames": planned.ending.num_frames,
            "fps": planned.ending.fps,
        },
        "components": {name: _weights_bytes(manifest, name) for name in names},
        "given": [
            {"file": str(one.path), "frame": one.frame, "frames": count, "strength": one.strength}
            for one, count in zip_longest(request.conditions, frames)
        ],
        "video": None if request.video is None else str(request.video),
        "passes": [_pass(one, find_version(manifest.version).transformer, options, added) for one in planned.passes],
        "decode": {
            "tiles": None if tiles == whole else tiles,
            "activation_bytes": peak_bytes(decoded, last.rows, last.columns, tiling),
            "tone_map": planned.ending.tone_map,
        },
    }


def _weights_bytes(manifest: Manifest, name: str) -> int:
    """Of the files that a component's graphs point into; networks of one checkpoint share them."""
    if name not in manifest.components:
        raise LtxError(f"this version has no {name} - {export_command(manifest.version)}")
    return sum(manifest.files[file].size_bytes for file in manifest.components[name].weights if file in manifest.files)


def _pass(one: PassPlan, size: TransformerSize, options: Options, added_frames: int) -> dict[str, Any]:
    steps = [_step(float(sigma), guidance) for sigma, guidance in zip(one.sigmas, one.guidance, strict=True)]
    rows = 1 if options.low_memory else max(step["forwards"] for step in steps)
    extra = added_frames * one.grid.rows * one.grid.columns
    return {
        "width": one.grid.width,
        "height": one.grid.height,
        "frames": one.grid.num_frames,
        "tokens": one.grid.tokens,
        "extra_tokens": extra,
        "stochastic": one.stochastic,
        "steps": steps,
        "forwards": sum(step["forwards"] for step in steps),
        "activation_bytes": rows * _transformer_bytes(one.grid.tokens + extra, size),
    }


def _transformer_bytes(tokens: int, size: TransformerSize) -> int:
    """Of one row in fp32 on a CPU: a layer's scores of every token with every other, and what else lives with them."""
    return _FLOAT_BYTES * (size.heads * tokens * tokens + _WIDE * tokens * size.width)


def _step(sigma: float, guidance: Guidance) -> dict[str, Any]:
    return {
        "sigma": round(sigma, 6),
        "guidance_scale": guidance.cfg_scale,
        "stg_scale": guidance.stg_scale,
        "rescaling_scale": guidance.rescale if guidance.uses_stg else 1.0,
        "skip_blocks": list(guidance.skip_blocks) if guidance.uses_stg else [],
        "cfg_star": guidance.cfg_star and guidance.uses_cfg,
        "forwards": 1 + guidance.uses_cfg + guidance.uses_stg,
    }


def _lines(described: dict[str, Any]) -> Iterator[str]:
    output = described["output"]
    yield (
        f"{described['version']}: {output['width']}x{output['height']}, {output['frames']} frames at "
        f"{output['fps']:g} fps, seed {described['seed']}"
    )
    for given in described["given"]:
        yield f"given: {given['file']} from frame {given['frame']}, strength {given['strength']:g}"
    if described["video"]:
        yield f"made over: {described['video']}"
    for number, one in enumerate(described["passes"], start=1):
        yield (
            f"pass {number}: {one['width']}x{one['height']}, {one['tokens']}{_added(one)} tokens, {len(one['steps'])} "
            f"{'stochastic ' if one['stochastic'] else ''}steps, {one['forwards']} forwards, about "
            f"{_gigabytes(one['activation_bytes'])} of activations"
        )
        yield from _step_lines(one["steps"])
    decode = described["decode"]
    tiles = (
        "whole"
        if decode["tiles"] is None
        else "in tiles of {} latent frames, {} rows, {} columns".format(*decode["tiles"])
    )
    yield f"decode: {tiles}, about {_gigabytes(decode['activation_bytes'])} of activations"
    for name, size_bytes in described["components"].items():
        yield f"{name}: {_gigabytes(size_bytes)} of weights on disk"


def _step_lines(steps: list[dict[str, Any]]) -> Iterator[str]:
    """One line for steps in a row that have the same guidance."""
    for _, alike in groupby(steps, lambda step: {**step, "sigma": 0}):
        run = list(alike)
        first, last = run[0]["sigma"], run[-1]["sigma"]
        sigmas = f"sigma {first:g}" if len(run) == 1 else f"sigma {first:g} to {last:g} ({len(run)} steps)"
        yield f"  {sigmas}: {_guidance_words(run[0])}"


def _guidance_words(step: dict[str, Any]) -> str:
    words = []
    if step["guidance_scale"] > 1:
        words.append(f"CFG {step['guidance_scale']:g}{' (star)' if step['cfg_star'] else ''}")
    if step["stg_scale"] > 0:
        blocks = ", ".join(map(str, step["skip_blocks"])) or "none"
        words.append(f"STG {step['stg_scale']:g} skipping {blocks}")
    if step["rescaling_scale"] != 1:
        words.append(f"rescale {step['rescaling_scale']:g}")
    return f"{', '.join(words) or 'no guidance'}; {step['forwards']} forward{'s' if step['forwards'] > 1 else ''}"


def _added(one: dict[str, Any]) -> str:
    return f" + {one['extra_tokens']}" if one["extra_tokens"] else ""


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= _SMALL_BYTES else f"{size_bytes / 1e6:.1f} MB"
