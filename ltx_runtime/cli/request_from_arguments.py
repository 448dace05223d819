"""Converts typed options to a request and to run options. Messages here name the options that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from ltx_runtime.batch.tasks import Seeds, check_seeds
from ltx_runtime.cli.arguments import Arguments, is_typed
from ltx_runtime.errors import LtxError
from ltx_runtime.planning.preset import read_preset
from ltx_runtime.planning.request import Condition, Request, parse_condition
from ltx_runtime.weights.lora import parse_lora

_Parsed = TypeVar("_Parsed", int, float)
# Fields of Request that have the same name as their option.
_SAME_NAMES = (
    *("height", "width", "num_frames", "duration", "fps", "seed"),
    *("steps", "skip_initial_steps", "skip_final_steps", "guidance_scale", "stg_scale", "rescaling_scale", "stg_mode"),
    *("cfg_star", "single_pass", "pad", "video", "strength", "fit", "decode_timestep", "decode_noise_scale"),
    "temporal_upscale",
)
# Options that matter for saved latents.
_FOR_LATENTS = (
    *("latents", "rng", "noise_file", "save_noise", "memory", "vae_tiling", "vae_slicing", "output", "output_dir"),
    *("engines", "version", "backend", "cpu_mode", "gpu_memory", "threads", "plan", "json", "overwrite", "metadata"),
    "trust_engines",
)
# Options that can be changed for a run that goes on.
_FOR_RESUMED = (
    *("resume", "memory", "vae_tiling", "vae_slicing", "output", "engines", "gpu_memory", "threads", "low_memory"),
    *("plan", "json", "overwrite", "metadata", "trust_engines"),
)
# Options that cannot be given beside many prompts: those of one video, and of commands that make none.
_NOT_FOR_BATCH = (
    *("words", "prompt", "from_file", "embeddings_file", "save_embeddings", "noise_file", "save_noise"),
    *("initial_latents_file", "latents", "save_latents", "output", "resume"),
)
# Options that can be changed for a batch that goes on.
_FOR_RESUMED_BATCH = (
    *("resume", "memory", "engines", "gpu_memory", "threads", "plan", "json", "ray", "ray_cpus", "send_engines"),
    "trust_engines",
)
# Files of a recorded run that make no sense beside what is typed: they hold what that would change.
_REPLACES = {
    "embeddings": ("words", "prompt", "negative_prompt"),
    "noise": ("seed", "rng"),
    "initial_latents": ("seed", "rng", "height", "width", "num_frames", "duration"),
}
# Fields of Request that say the same thing in different ways: one that is typed replaces all of its group.
_ALTERNATIVES = (("num_frames", "duration"), ("steps", "timesteps"), ("strength", "skip_initial_steps"))


def request_of(typed: Arguments, recorded: Request = Request()) -> Request:
    """Returns the request that was typed.

    Args:
        typed: the options.
        recorded: a request that the typed options change.

    Raises:
        LtxError: a list, a condition, a LoRA or a preset cannot be read, or a prompt is not valid text.
    """
    return replace(recorded, **typed_fields(typed))


def typed_fields(typed: Arguments) -> dict[str, Any]:
    """Returns the fields of Request that were typed, by name; see `request_of`."""
    given = [parse_condition(one) for one in typed.condition or ()]
    if typed.image is not None:
        given.insert(0, Condition(typed.image))
    options = {name: (name, getattr(typed, name)) for name in _SAME_NAMES}
    options |= {
        "prompt": ("prompt", _text("prompt", typed.prompt or "")),
        "preset": ("preset", None if typed.preset is None else read_preset(typed.preset)),
        "timesteps": ("timesteps", _timesteps(typed.timesteps)),
        "stochastic": ("stochastic_sampling", typed.stochastic_sampling),
        "image_noise_scale": ("image_cond_noise_scale", typed.image_cond_noise_scale),
        "tone_map": ("tone_map_compression_ratio", typed.tone_map_compression_ratio),
    }
    if typed.negative_prompt is not None:
        options["negative_prompt"] = ("negative_prompt", _text("negative prompt", typed.negative_prompt))
    if typed.skip_blocks is not None:
        options["skip_blocks"] = ("skip_blocks", tuple(_numbers("skip-blocks", typed.skip_blocks, int)))
    changes = {name: value for name, (option, value) in options.items() if is_typed(typed, option)}
    if is_typed(typed, "words"):  # the prompt, typed without its option
        changes["prompt"] = options["prompt"][1]
    if given:
        changes["conditions"] = tuple(given)
    if typed.lora:
        changes["loras"] = tuple(map(parse_lora, typed.lora))
    for group in _ALTERNATIVES:
        if changes.keys() & {*group}:
            changes = {name: getattr(Request(), name) for name in group} | changes
    return changes


def pipeline_options_of(typed: Arguments, recorded: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Returns the options of the whole Pipeline, by the names of its arguments.

    Args:
        typed: the options.
        recorded: fields of RunOptions by name, for those that were not typed.
    """
    names = ("backend", "cpu_mode", "memory", "gpu_memory", "threads")
    options = _recorded_unless_typed(typed, dict(zip(names, names, strict=True)), recorded)
    for name in ("memory", "gpu_memory"):
        if options[name] is None and (size := recorded.get(f"{name}_bytes")) is not None:
            options[name] = size / 1e9
    return options


def run_options_of(typed: Arguments, recorded: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Returns the options of a single run, by the names of the fields of RunOptions; see `pipeline_options_of`."""
    renamed = {"tiled": "vae_tiling", "embeddings": "embeddings_file", "noise": "noise_file"}
    renamed |= {"initial_latents": "initial_latents_file"}
    same = (
        *("rng", "low_memory", "crf", "sample_posterior", "cache", "save_embeddings", "save_latents", "save_noise"),
        *("overwrite", "metadata"),
    )
    return _recorded_unless_typed(typed, renamed | dict(zip(same, same, strict=True)), recorded)


def _recorded_unless_typed(typed: Arguments, options: Mapping[str, str], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by the name of their field; `options` has the name of the option for each field."""
    values = {}
    for name, option in options.items():
        value = getattr(typed, option)
        is_replaced = is_typed(typed, option) or any(is_typed(typed, other) for other in _REPLACES.get(name, ()))
        values[name] = value if is_replaced else recorded.get(name, value)
    return values


def decode_options_of(typed: Arguments) -> dict[str, Any]:
    """Returns the options of decoding saved latents, by the names of the fields of RunOptions.

    Raises:
        LtxError: an option was typed that has no effect on latents that were saved.
    """
    _refuse_others(typed, _FOR_LATENTS, "saved latents, which are only decoded")
    names = {"rng": "rng", "noise": "noise_file", "tiled": "vae_tiling", "save_noise": "save_noise"}
    names |= {"overwrite": "overwrite", "metadata": "metadata"}
    return {name: getattr(typed, option) for name, option in names.items()}


def resumed_options_of(typed: Arguments) -> dict[str, Any]:
    """Returns the typed options of a run that goes on, by the names of the fields of RunOptions.

    Raises:
        LtxError: an option was typed that would make it another run.
    """
    _refuse_others(typed, _FOR_RESUMED, "a run that goes on")
    names = {"tiled": "vae_tiling", "low_memory": "low_memory", "overwrite": "overwrite", "metadata": "metadata"}
    return {name: getattr(typed, option) for name, option in names.items() if is_typed(typed, option)}


def seeds_of(typed: Arguments) -> Seeds:
    """Returns the seeds of every prompt.

    Raises:
        LtxError: seeds cannot be read, or two options set them.
    """
    for one, other in (("seeds", "count"), ("seeds", "seed")):
        if getattr(typed, one) is not None and getattr(typed, other) is not None:
            raise LtxError(f"--{one} and --{other} both set the seeds", "leave one of them out")
    in_a_row = "use e.g. 1,2,3, or --seed 1 --count 3 for seeds in a row"
    listed = tuple(_numbers("seeds", typed.seeds, int, in_a_row))
    if typed.seeds is not None and not listed:
        raise LtxError("seeds has no seed", "use e.g. 1,2,3")
    seeds = Seeds(listed, 1 if typed.count is None else typed.count)
    check_seeds(seeds)
    return seeds


def check_batch_options(typed: Arguments) -> None:
    """Raises LtxError if an option was typed that cannot be given beside many prompts, or beside a batch that goes on.

    A single prompt, of which several videos are made, and its output may be typed.
    """
    if typed.ray is None:
        check_no_cluster_options(typed)
    if typed.resume is not None:
        advice = "leave it out: rows and settings are in its file of results"
        _refuse_others(typed, _FOR_RESUMED_BATCH, "a batch that goes on", advice)
        return
    if typed.prompts is not None:
        others = [one.name for one in fields(Arguments) if one.name != "output"]
        _refuse_others(typed, others, "many videos", "use --output-dir FOLDER, or an output in every row")
    refused = {*_NOT_FOR_BATCH} - ({"words", "prompt", "output"} if typed.prompts is None else set())
    _refuse_others(typed, [one.name for one in fields(Arguments) if one.name not in refused], "many videos")


def check_no_cluster_options(typed: Arguments) -> None:
    """Raises LtxError if an option of a cluster was typed, for what this machine makes itself."""
    names = [one.name for one in fields(Arguments) if one.name not in ("ray", "ray_cpus", "send_engines", "output_uri")]
    _refuse_others(typed, names, "videos that this machine makes")


def _refuse_others(typed: Arguments, names: Sequence[str], what: str, advice: str = "leave it out") -> None:
    """Raises LtxError if an option was typed that is not in `names`, and so has no effect."""
    for field in fields(Arguments):
        if field.name not in names and is_typed(typed, field.name):
            spelled = {"prompt": "the prompt", "words": "the prompt", "from_file": "--from"}
            option = spelled.get(field.name, f"--{field.name.replace('_', '-')}")
            raise LtxError(f"{option} has no effect on {what}", advice)


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


def _numbers(
    name: str, typed: str | None, number: Callable[[str], _Parsed], advice: str = "use e.g. 1,2"
) -> list[_Parsed]:
    try:
        return [number(one) for one in (typed or "").replace(",", " ").split()]
    except ValueError:
        kind = "whole numbers" if number is int else "numbers"
        raise LtxError(f"{name} must be comma-separated {kind}; got {typed!r}", advice) from None
