"""The options of ltx-run as one table. None means that an option was left out and the version's default applies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

_WHAT, _SIZE, _STEPS, _GUIDANCE = "What it shows", "Size", "Steps", "Guidance"
_NOISE, _DECODING, _FILES, _RUN = "Noise", "Decoding", "Files", "How it runs"


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def _expert(panel: str, text: str, *names: str, **more: Any) -> Any:
    """Returns an option that only --help-all shows."""
    return _option(panel, text, *names, hidden=True, **more)


def show_all(context: typer.Context, wanted: bool) -> bool:
    """Prints the help with every option and exits."""
    if wanted:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit
    return wanted


@dataclass(frozen=True)
class Arguments:
    """The options as typed on the command line."""

    words: Annotated[
        str | None,
        typer.Argument(help="What the video shows.", metavar="PROMPT", show_default=False, rich_help_panel=_WHAT),
    ] = None
    prompt: Annotated[str | None, _option(_WHAT, "The prompt, given as an option.", "--prompt", "-p")] = None
    prompts: Annotated[
        Path | None,
        _option(
            _WHAT,
            "Make many videos: a prompt a line, or .jsonl or .csv with fields of a video in every row; - for standard "
            "input.",
            metavar="FILE",
        ),
    ] = None
    negative_prompt: Annotated[str | None, _option(_WHAT, "What the video must not show.")] = None
    from_file: Annotated[
        Path | None,
        _option(_WHAT, "Make a video of ltx-run again, from what its file says; other options change it.", "--from"),
    ] = None
    image: Annotated[Path | None, _option(_WHAT, "Image for the first frame; same as --condition FILE@0.")] = None
    condition: Annotated[
        list[str] | None,
        _option(
            _WHAT,
            "FILE@FRAME[:STRENGTH]: show this image or clip from that frame on; STRENGTH is 0 to 1. Can be repeated.",
            metavar="FILE@FRAME",
        ),
    ] = None
    video: Annotated[Path | None, _option(_WHAT, "A clip to change (video-to-video).")] = None
    lora: Annotated[
        list[str] | None,
        _expert(_WHAT, "FILE[:SCALE]: a LoRA for the transformer. Can be repeated.", metavar="FILE[:SCALE]"),
    ] = None
    strength: Annotated[float | None, _expert(_WHAT, "How much of --video may change, 0 to 1 (default: 0.6).")] = None
    fit: Annotated[
        str, _option(_WHAT, "How images get the video's shape: crop, pad (black bars), or size-from-image.")
    ] = "crop"
    image_cond_noise_scale: Annotated[
        float, _expert(_WHAT, "Noise added to given images at every step, which helps motion.")
    ] = 0.15
    crf: Annotated[
        int,
        _expert(
            _WHAT,
            "How strongly given images and clips are compressed, to resemble training videos (H.264 CRF); 0 for none.",
        ),
    ] = 29
    sample_posterior: Annotated[
        bool,
        _expert(_WHAT, "Encode given images and clips with random variation, as the official code does."),
    ] = False

    height: Annotated[int | None, _option(_SIZE, "Height in pixels, a multiple of 32.")] = None
    width: Annotated[int | None, _option(_SIZE, "Width in pixels, a multiple of 32.")] = None
    num_frames: Annotated[int | None, _option(_SIZE, "Frames, a multiple of 8 plus 1, e.g. 97.")] = None
    duration: Annotated[float | None, _option(_SIZE, "Length in seconds, in place of --num-frames.")] = None
    fps: Annotated[float | None, _option(_SIZE, "Frames per second; also affects motion.", "--fps", "--frame-rate")] = (
        None
    )
    pad: Annotated[bool, _expert(_SIZE, "Allow any size and length: make a slightly larger video and crop it.")] = False
    single_pass: Annotated[bool, _expert(_SIZE, "Use one pass at full size instead of the version's two.")] = False
    temporal_upscale: Annotated[bool, _expert(_SIZE, "Double the frame rate at the end.")] = False

    preset: Annotated[
        Path | None,
        _expert(
            _STEPS, "YAML file in the official format, with steps and guidance of every pass.", metavar="FILE.yaml"
        ),
    ] = None
    steps: Annotated[int | None, _option(_STEPS, "Number of denoising steps in the first pass.")] = None
    timesteps: Annotated[
        str | None, _expert(_STEPS, "Noise levels of the first pass, from high to low, e.g. 1.0,0.975,0.725.")
    ] = None
    skip_initial_steps: Annotated[
        int | None, _expert(_STEPS, "Number of steps to skip at the start (needs --video).")
    ] = None
    skip_final_steps: Annotated[int | None, _expert(_STEPS, "Number of steps to skip at the end.")] = None
    stochastic_sampling: Annotated[bool | None, _expert(_STEPS, "Add fresh noise at every step.")] = None

    guidance_scale: Annotated[
        float | None, _option(_GUIDANCE, "How closely every step follows the prompt (CFG); 1 turns it off.")
    ] = None
    stg_scale: Annotated[
        float | None, _expert(_GUIDANCE, "Strength of spatiotemporal guidance (STG) at every step; 0 turns it off.")
    ] = None
    rescaling_scale: Annotated[
        float | None, _expert(_GUIDANCE, "Rescaling of the prediction after STG; 1 turns it off.")
    ] = None
    stg_mode: Annotated[
        str | None,
        _expert(
            _GUIDANCE,
            "Part of a block that STG skips: attention_values (default), attention_skip or transformer_block.",
        ),
    ] = None
    skip_blocks: Annotated[str | None, _expert(_GUIDANCE, "Blocks that STG skips, e.g. 11,25.")] = None
    cfg_star: Annotated[
        bool | None, _expert(_GUIDANCE, "Scale the negative prediction to match the positive one (CFG-star).")
    ] = None

    seed: Annotated[int | None, _option(_NOISE, "Same seed, same video; random if left out.")] = None
    seeds: Annotated[
        str | None, _expert(_NOISE, "Make every prompt with each of these seeds, e.g. 1,2,3.", metavar="SEED,SEED")
    ] = None
    count: Annotated[int | None, _expert(_NOISE, "Make every prompt so many times, with successive seeds.")] = None
    rng: Annotated[
        str,
        _expert(
            _NOISE, "Source of random noise: numpy, or torch or diffusers to reproduce their seeds (docs/noise.md)."
        ),
    ] = "numpy"
    noise_file: Annotated[Path | None, _expert(_NOISE, "Read all random noise from this file.")] = None
    save_noise: Annotated[Path | None, _expert(_NOISE, "Save all random noise to this file.")] = None
    initial_latents_file: Annotated[Path | None, _expert(_NOISE, "Read the initial noise from this file.")] = None

    decode_timestep: Annotated[float | None, _expert(_DECODING, "Noise level that the decoder assumes, 0 to 1.")] = None
    decode_noise_scale: Annotated[
        float | None, _expert(_DECODING, "How much noise is mixed in before decoding, 0 to 1.")
    ] = None
    tone_map_compression_ratio: Annotated[
        float | None, _expert(_DECODING, "How strongly to compress large latent values, 0 (off) to 1.")
    ] = None
    memory: Annotated[
        float | None,
        _option(
            _DECODING,
            "GB for the VAE besides its weights; larger videos are tiled (default: 8, or what the GPU has left).",
        ),
    ] = None
    vae_tiling: Annotated[bool, _expert(_DECODING, "Use tiles even if the whole video fits into memory.")] = False
    vae_slicing: Annotated[bool, _expert(_DECODING, "Has no effect; accepted for compatibility.", "--vae-slicing")] = (
        False
    )

    embeddings_file: Annotated[Path | None, _expert(_FILES, "Read the encoded prompts from this file.")] = None
    cache: Annotated[
        bool, _expert(_FILES, "Use prompts that were encoded before, and keep new ones.", "--cache/--no-cache")
    ] = True
    save_embeddings: Annotated[Path | None, _expert(_FILES, "Save the encoded prompts to this file.")] = None
    latents: Annotated[Path | None, _expert(_FILES, "Only decode a file that --save-latents wrote.")] = None
    save_latents: Annotated[
        Path | None, _expert(_FILES, "Save the latents of every pass to this file, before decoding.")
    ] = None
    output: Annotated[
        Path | None,
        _option(
            _FILES,
            "Save as .mp4, .webm, .gif, or NAME.png for a folder NAME of frames (default: named after the prompt).",
            "--output",
            "-o",
        ),
    ] = None
    output_dir: Annotated[Path | None, _option(_FILES, "Folder for a file named automatically.")] = None
    overwrite: Annotated[bool, _option(_FILES, "Replace files that exist.", "--overwrite")] = False
    metadata: Annotated[
        bool, _expert(_FILES, "Store in the file how it was made, for --from.", "--metadata/--no-metadata")
    ] = True
    resume: Annotated[
        Path | None,
        _expert(_FILES, "Go on with an interrupted run, from its .unfinished file, or with many, from their results."),
    ] = None

    engines: Annotated[
        Path | None,
        _option(
            _RUN,
            "Folder of exported versions, or one version's folder (default: ./engines, else the user's data folder).",
            envvar="LTX_ENGINES",
        ),
    ] = None
    trust_engines: Annotated[
        bool,
        _expert(
            _RUN,
            "Use engines, which are code, and links that somebody else has put into the version folder.",
            "--trust-engines",
            envvar="LTX_TRUST_ENGINES",
        ),
    ] = False
    version: Annotated[
        str | None, _option(_RUN, "Version to use, if there are several.", "--version", "--ltxv-version")
    ] = None
    backend: Annotated[
        str,
        _option(_RUN, "tensorrt, tensorrt_rtx, cuda, openvino, openvino_q8, openvino_int8 or cpu; auto: the best."),
    ] = "auto"
    cpu_mode: Annotated[
        str, _option(_RUN, "On a CPU: exact; bf16 or q8 (about 1 % off); int8 after calibration; auto: not int8.")
    ] = "auto"
    gpu_memory: Annotated[
        float | None,
        _expert(_RUN, "GPU memory to plan with, in GB (default: all that is free)."),
    ] = None
    threads: Annotated[int | None, _expert(_RUN, "Number of CPU threads (default: one per core).")] = None
    low_memory: Annotated[bool, _expert(_RUN, "Use less memory: compute the predictions for guidance one by one.")] = (
        False
    )
    ray: Annotated[
        str | None,
        _expert(
            _RUN,
            "Make many videos on a Ray cluster: HOST:PORT of its head node, or auto for this machine's cluster.",
            metavar="ADDRESS",
        ),
    ] = None
    ray_cpus: Annotated[
        int | None,
        _expert(_RUN, "CPU cores for each video on nodes without a GPU (default: all cores of a node)."),
    ] = None
    send_engines: Annotated[
        bool, _expert(_RUN, "Have Ray copy the version folder to its nodes, up to 500 MB.", "--send-engines")
    ] = False
    output_uri: Annotated[
        str | None,
        _expert(_RUN, "Where --ray stores the videos, e.g. s3://bucket/folder (default: --output-dir).", metavar="URI"),
    ] = None
    fetch: Annotated[
        str | None,
        _option(
            _RUN,
            "Download a published version folder from Hugging Face into the folder of versions.",
            metavar="OWNER/NAME",
        ),
    ] = None
    plan: Annotated[bool, _option(_RUN, "Show what would be done; do nothing.", "--plan")] = False
    doctor: Annotated[
        bool,
        _option(_RUN, "Check this machine: what it has, which engines fit, and what to install or build.", "--doctor"),
    ] = False
    json: Annotated[bool, _expert(_RUN, "Print result, plan or report as JSON.", "--json")] = False

    about: Annotated[bool, _expert(_RUN, "Show the versions of this program and its backends.", "--about")] = False
    help_all: Annotated[
        bool, _option(_RUN, "Show every option and exit.", "--help-all", callback=show_all, is_eager=True)
    ] = False


_Table = TypeVar("_Table")
# Names of the options that were typed, or set by the environment, while a command runs.
_TYPED: ContextVar[frozenset[str] | None] = ContextVar("_TYPED", default=None)


def is_typed(arguments: Any, name: str) -> bool:
    """Returns whether an option was typed, even with its default; outside of a command, whether it differs from it."""
    typed = _TYPED.get()
    if typed is not None:
        return name in typed
    return bool(getattr(arguments, name) != next(one.default for one in fields(arguments) if one.name == name))


def command_of(run: Callable[[_Table], None], table: type[_Table]) -> Callable[..., None]:
    """Returns a function for typer, with one argument per field of a dataclass, that calls `run` with an instance."""
    hints = get_type_hints(table, include_extras=True)

    def command(_context: typer.Context, **typed: Any) -> None:
        sources = {name: _context.get_parameter_source(name) for name in typed}
        given = [name for name, source in sources.items() if source is not None and "DEFAULT" not in source.name]
        token = _TYPED.set(frozenset(given))
        try:
            run(table(**typed))
        finally:
            _TYPED.reset(token)

    command.__doc__ = run.__doc__
    command.__annotations__ = {"_context": typer.Context, **hints}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        + [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(table)  # type: ignore[arg-type]
        ]
    )
    return command
