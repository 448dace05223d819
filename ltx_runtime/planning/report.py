"""Describes a plan for people and for programs: what would run, and how much memory it would need. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from ltx_runtime.files import amount
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.release import release_of
from ltx_runtime.planning.backends import Chosen
from ltx_runtime.planning.media import NO_MEDIA, Given, GivenMedia
from ltx_runtime.planning.plan import Plan
from ltx_runtime.sampling.pass_plan import PassPlan
from ltx_runtime.sessions import BACKENDS
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.processor import total_memory
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.presets import Guidance
from ltx_runtime.spec.versions import TransformerSize, Version
from ltx_runtime.text.encode import tokenizer_of
from ltx_runtime.vae.tile_sizes import peak_bytes
from ltx_runtime.weights.merging import Merging

_FLOAT_BYTES, _HALF_PRECISIONS = 4, ("bf16", "fp16")
_WIDE = 12  # (tokens, width) tensors that a block holds at once; the feed-forward's hidden tensor counts as four


@dataclass(frozen=True)
class Memory:
    """Estimated memory of what runs on the CPU, besides weights, which are mapped from their files.

    Attributes:
        needed_bytes: of the pass, the decoding or the media that need most; 0 if all of them are on a GPU.
        machine_bytes: memory that the machine has, or this container.
    """

    needed_bytes: int
    machine_bytes: int

    def lines(self) -> Iterator[str]:
        """Yields a warning, if the machine has less than is needed."""
        if self.needed_bytes > self.machine_bytes:
            yield (
                f"about {amount(self.needed_bytes)} of memory are needed, but this machine has only "
                f"{amount(self.machine_bytes)} - ask for a smaller size or fewer frames"
            )


def memory_of(planned: Plan, version: Version, chosen: Chosen, media: GivenMedia = NO_MEDIA) -> Memory:
    """Returns how much memory a plan needs, and how much there is; see `describe` for the arguments."""
    needed = [media.peak_bytes]
    if chosen.found["transformer"].gpu_bytes is None:
        needed += [pass_bytes(one, version.transformer, chosen, media.added_frames) for one in planned.passes]
    if chosen.found["vae_decoder"].gpu_bytes is None:
        needed.append(_decoding_bytes(_decoded(planned), chosen))
    return Memory(max(needed), total_memory())


def _decoded(planned: Plan) -> Grid:
    last = planned.passes[-1].grid
    return replace(last, frames=2 * last.frames - 1) if planned.temporal_upscale else last


def _decoding_bytes(decoded: Grid, chosen: Chosen) -> int:
    bytes_per_pixel = chosen.bytes_per_pixel("vae_decoder")
    return peak_bytes(decoded, chosen.tiling(decoded), bytes_per_pixel=bytes_per_pixel)


def describe(planned: Plan, chosen: Chosen, engines: Engines, media: GivenMedia = NO_MEDIA) -> dict[str, Any]:
    """Returns the plan as plain data: the output, every step of every pass, backends, and memory in bytes.

    Args:
        planned: the plan of the request.
        chosen: the backend of each component.
        engines: the version folder, whose tokenizer reads the prompts.
        media: what is used of the request's images and clips.

    Raises:
        LtxError: the tokenizer cannot be read.
    """
    request, decoded = planned.request, _decoded(planned)
    version = release_of(engines.manifest)
    tile = chosen.tiling(decoded).window(decoded)
    return {
        "version": version.name,
        "seed": request.seed,
        "output": {
            "width": request.width,
            "height": request.height,
            "frames": planned.ending.num_frames,
            "fps": planned.ending.fps,
        },
        "prompts": _prompts(planned, chosen, engines, version) if "text_encoder" in chosen.names else [],
        "components": {name: _component(chosen.found[name]) for name in chosen.names},
        "loras": _loras(chosen.found["transformer"].merging),
        "given": [
            {"frame": one.condition.frame, "strength": one.condition.strength} | _given(one, request.fps)
            for one in media.conditions
        ],
        "video": None if media.video is None else _given(media.video, request.fps),
        "media_bytes": media.peak_bytes,
        "passes": [_pass(one, version.transformer, chosen, media.added_frames) for one in planned.passes],
        "decode": {
            "tiles": None if tile == decoded else [tile.frames, tile.rows, tile.columns],
            "activation_bytes": _decoding_bytes(decoded, chosen),
            "tone_map": planned.ending.tone_map,
        },
        "memory": asdict(memory_of(planned, version, chosen, media)),
    }


def _given(one: Given, fps: float) -> dict[str, Any]:
    """Returns what an image or clip has, what is used of it, and what differs; `fps` is that of the video."""
    facts = one.facts
    return {
        "file": one.label,
        "frames": one.frames,
        "stored_frames": facts.frames,
        "stored_frames_estimated": facts.about,
        "width": facts.width,
        "height": facts.height,
        "pixel_aspect_ratio": float(facts.pixel_aspect),
        "fps": facts.fps,
        "fps_varies": facts.varying,
        "speed": facts.speed_at(fps) if one.frames > 1 else 1.0,
        "sound": facts.sound,
        "interlaced": facts.interlaced,
        "bits": facts.bits,
        "hdr": facts.transfer or None,
        "transparent": facts.transparent,
        "converted_profile": facts.profile or None,
        "kept_bytes": one.kept_bytes,
        "read_bytes": one.read_bytes,
        "remarks": list(one.remarks),
    }


def _prompts(planned: Plan, chosen: Chosen, engines: Engines, version: Version) -> list[dict[str, Any]]:
    """Returns how much of each prompt the text encoder reads, with the notes that a run would print."""
    tokenizer = tokenizer_of(engines, chosen.found["text_encoder"], version.text_tokens)
    readings = {name: tokenizer.read(prompt) for name, prompt in planned.prompts.items()}
    return [
        {"name": name, **asdict(one), "unknown": [*one.unknown], "notes": [*one.notes(name)]}
        for name, one in readings.items()
    ]


def _component(found: Found) -> dict[str, Any]:
    """Returns a component's backend, precision and size of weight files, which components may share."""
    return {"backend": found.backend, "precision": found.precision, "weights_bytes": found.weights_bytes}


def _loras(merging: Merging | None) -> dict[str, Any] | None:
    """Returns the LoRAs that are merged into the transformer, and where the merged weights are; None for no LoRAs."""
    if merging is None:
        return None
    return {
        "files": [{"file": str(lora.file), "scale": lora.scale} for lora in merging.loras],
        "weights": len(merging.changed),
        "merged_bytes": merging.size_bytes,
        "merged_file": None if merging.path is None else str(merging.path),
        "is_merged": merging.is_kept,
    }


def _pass(one: PassPlan, size: TransformerSize, chosen: Chosen, added_frames: int) -> dict[str, Any]:
    steps = [_step(float(sigma), guidance) for sigma, guidance in zip(one.sigmas, one.guidance, strict=True)]
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
        "activation_bytes": pass_bytes(one, size, chosen, added_frames),
    }


def pass_bytes(one: PassPlan, size: TransformerSize, chosen: Chosen, added_frames: int) -> int:
    """Estimates the bytes of activations of the transformer in a pass.

    Args:
        one: plan of the pass.
        size: size of the transformer.
        chosen: the backend of each component.
        added_frames: number of latent frames that images and clips add to the video's own.
    """
    rows = 1 if chosen.options.low_memory else max(1 + step.uses_cfg + step.uses_stg for step in one.guidance)
    tokens = one.grid.tokens + added_frames * one.grid.rows * one.grid.columns
    return rows * _transformer_bytes(tokens, size, chosen.found["transformer"])


def _transformer_bytes(tokens: int, size: TransformerSize, found: Found) -> int:
    """Estimates the bytes of activations per batch row: the tensors of a layer and perhaps its attention scores.

    Only ONNX Runtime on a CPU stores the scores of all pairs of tokens.
    """
    values = _WIDE * tokens * size.width
    if found.gpu_bytes is None and BACKENDS[found.backend].stores_scores:
        return _FLOAT_BYTES * (size.heads * tokens * tokens + values)
    return values * (_FLOAT_BYTES // 2 if found.precision in _HALF_PRECISIONS else _FLOAT_BYTES)


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


def lines_of(described: dict[str, Any]) -> Iterator[str]:
    """Yields the plan that `describe` returned, as lines for people."""
    output = described["output"]
    yield (
        f"{described['version']}: {output['width']}x{output['height']}, {output['frames']} frames at "
        f"{output['fps']:g} fps, seed {described['seed']}"
    )
    for prompt in described["prompts"]:
        yield f"{prompt['name']}: {prompt['tokens']} of at most {prompt['most']} tokens"
        yield from (f"  {note}" for note in prompt["notes"])
    for given in described["given"]:
        yield f"condition: {given['file']} from frame {given['frame']}, strength {given['strength']:g}"
        yield from _remarks(given)
    if described["video"]:
        yield f"video-to-video from: {described['video']['file']}"
        yield from _remarks(described["video"])
    if described["media_bytes"]:
        yield f"images and clips: about {amount(described['media_bytes'])} while they are read"
    if described["loras"]:
        yield from _lora_lines(described["loras"])
    for number, one in enumerate(described["passes"], start=1):
        yield (
            f"pass {number}: {one['width']}x{one['height']}, {one['tokens']}{_added(one)} tokens, {len(one['steps'])} "
            f"{'stochastic ' if one['stochastic'] else ''}steps, {_predictions(one['forwards'])}, about "
            f"{amount(one['activation_bytes'])} of activations"
        )
        yield from _step_lines(one["steps"])
    decode = described["decode"]
    tiles = (
        "without tiles"
        if decode["tiles"] is None
        else "in tiles of {} latent frames, {} rows, {} columns".format(*decode["tiles"])
    )
    yield f"decode: {tiles}, about {amount(decode['activation_bytes'])} of activations"
    yield from Memory(**described["memory"]).lines()
    for name, one in described["components"].items():
        yield f"{name}: {one['backend']} in {one['precision']}, {amount(one['weights_bytes'])} of weights on disk"


def _lora_lines(loras: dict[str, Any]) -> Iterator[str]:
    for one in loras["files"]:
        yield f"LoRA: {one['file']} at {one['scale']:g}"
    if loras["merged_file"] is None:
        place = "merged in memory for every run, as there is no cache"
    else:
        place = f"{'kept' if loras['is_merged'] else 'merged once'} in {loras['merged_file']}"
    yield f"  {loras['weights']} weights of the transformer change, {amount(loras['merged_bytes'])}, {place}"


def _remarks(given: dict[str, Any]) -> Iterator[str]:
    yield from (f"  {remark}" for remark in given["remarks"])


def _step_lines(steps: list[dict[str, Any]]) -> Iterator[str]:
    """Yields one line for each run of consecutive steps with the same guidance."""
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
    return f"{', '.join(words) or 'no guidance'}; {_predictions(step['forwards'])}"


def _predictions(forwards: int) -> str:
    """Returns how many predictions the transformer computes: one, or several with guidance."""
    return f"{forwards} prediction{'s' if forwards > 1 else ''}"


def _added(one: dict[str, Any]) -> str:
    return f" + {one['extra_tokens']}" if one["extra_tokens"] else ""
