"""The options of ltx-run as one table. What is left out, None, is the version's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

_WHAT, _SIZE, _STEPS, _GUIDANCE = "What it shows", "Size", "Steps", "Guidance"
_NOISE, _DECODING, _FILES, _RUN = "Noise", "Decoding", "Files", "How it runs"


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def _expert(panel: str, text: str, *names: str, **more: Any) -> Any:
    """An option that only --help-all shows."""
    return _option(panel, text, *names, hidden=True, **more)


def _show_all(context: typer.Context, wanted: bool) -> bool:
    """Prints the help with every option and ends."""
    if wanted:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit
    return wanted


@dataclass(frozen=True)
class Arguments:
    """The options as they were typed."""

    words: Annotated[
        str | None,
        typer.Argument(help="What the video shows.", metavar="PROMPT", show_default=False, rich_help_panel=_WHAT),
    ] = None
    prompt: Annotated[str | None, _option(_WHAT, "The same, as an option.", "--prompt", "-p")] = None
    negative_prompt: Annotated[str | None, _option(_WHAT, "What it must not show.")] = None
    image: Annotated[Path | None, _option(_WHAT, "An image for the first frame: the same as --condition FILE@0.")] = (
        None
    )
    condition: Annotated[
        list[str] | None,
        _option(_WHAT, "FILE@FRAME[:STRENGTH]: an image or clip from that frame on. Repeatable.", metavar="FILE@FRAME"),
    ] = None
    video: Annotated[Path | None, _option(_WHAT, "A clip to make over.")] = None
    strength: Annotated[float | None, _option(_WHAT, "How much of --video is made anew, 0 to 1 (default: 0.6).")] = None
    image_cond_noise_scale: Annotated[
        float, _expert(_WHAT, "Noise on given images at every step; keeps things moving.")
    ] = 0.15
    crf: Annotated[int, _expert(_WHAT, "H.264 compression of given images and clips; 0 for none.")] = 29
    sample_posterior: Annotated[
        bool, _expert(_WHAT, "Draw latents of given media as the official code does.", "--sample-posterior")
    ] = False

    height: Annotated[int | None, _option(_SIZE, "Pixels, a multiple of 32.")] = None
    width: Annotated[int | None, _option(_SIZE, "Pixels, a multiple of 32.")] = None
    num_frames: Annotated[int | None, _option(_SIZE, "8n+1, e.g. 25, 97 or 121.")] = None
    fps: Annotated[
        float | None, _option(_SIZE, "Frames per second; also tells the model about speed.", "--fps", "--frame-rate")
    ] = None
    pad: Annotated[bool, _expert(_SIZE, "Any size: make the next larger one and crop it.", "--pad")] = False
    single_pass: Annotated[
        bool, _expert(_SIZE, "One pass at full size instead of the version's two.", "--single-pass")
    ] = False
    temporal_upscale: Annotated[bool, _expert(_SIZE, "Double the frame rate at the end.", "--temporal-upscale")] = False

    preset: Annotated[
        Path | None,
        _expert(_STEPS, "Steps and guidance of every pass from an official YAML file.", metavar="FILE.yaml"),
    ] = None
    steps: Annotated[int | None, _option(_STEPS, "Denoising steps of the first pass.")] = None
    timesteps: Annotated[
        str | None, _expert(_STEPS, "The first pass's noise levels themselves, e.g. 1.0,0.975,0.725.")
    ] = None
    skip_initial_steps: Annotated[int | None, _expert(_STEPS, "Steps to leave out at the start; needs --video.")] = None
    skip_final_steps: Annotated[int | None, _expert(_STEPS, "Steps to leave out at the end.")] = None
    stochastic_sampling: Annotated[bool | None, _expert(_STEPS, "Noise anew at every step.")] = None

    guidance_scale: Annotated[float | None, _option(_GUIDANCE, "CFG at every step; 1 turns it off.")] = None
    stg_scale: Annotated[float | None, _expert(_GUIDANCE, "STG at every step; 0 turns it off.")] = None
    rescaling_scale: Annotated[float | None, _expert(_GUIDANCE, "Rescaling with STG; 1 turns it off.")] = None
    stg_mode: Annotated[
        str | None, _expert(_GUIDANCE, "attention_values (default), attention_skip or transformer_block.")
    ] = None
    skip_blocks: Annotated[str | None, _expert(_GUIDANCE, "Blocks that STG skips, e.g. 11,25.")] = None
    cfg_star: Annotated[bool | None, _expert(_GUIDANCE, "Scale the negative prediction onto the positive one.")] = None

    seed: Annotated[int | None, _option(_NOISE, "Same seed, same video; random if left out.")] = None
    rng: Annotated[str, _expert(_NOISE, "numpy, or torch or diffusers to repeat their seeds (docs/noise.md).")] = (
        "numpy"
    )
    noise_file: Annotated[Path | None, _expert(_NOISE, "Take every random draw from this file.")] = None
    save_noise: Annotated[Path | None, _expert(_NOISE, "Keep every random draw in this file.")] = None
    initial_latents_file: Annotated[Path | None, _expert(_NOISE, "Take the initial noise from this file.")] = None

    decode_timestep: Annotated[float | None, _expert(_DECODING, "Noise level that the decoder is told.")] = None
    decode_noise_scale: Annotated[float | None, _expert(_DECODING, "Noise mixed in before decoding.")] = None
    tone_map_compression_ratio: Annotated[float | None, _expert(_DECODING, "Tone mapping of latents; 0 for none.")] = (
        None
    )
    memory: Annotated[
        float | None,
        _option(
            _DECODING,
            "GB that the VAE may take beside its weights; tiles are cut to fit (default: 8, or what the GPU has).",
        ),
    ] = None
    vae_tiling: Annotated[bool, _expert(_DECODING, "Tiles even where all would fit.", "--vae-tiling")] = False
    vae_slicing: Annotated[
        bool, _expert(_DECODING, "One video at a time is decoded, with or without it.", "--vae-slicing")
    ] = False

    embeddings_file: Annotated[Path | None, _expert(_FILES, "Take the encoded prompts from this file.")] = None
    save_embeddings: Annotated[Path | None, _expert(_FILES, "Keep the encoded prompts in this file.")] = None
    latents: Annotated[Path | None, _expert(_FILES, "Decode latents that --save-latents kept, and nothing else.")] = (
        None
    )
    save_latents: Annotated[Path | None, _expert(_FILES, "Keep the latents of every pass in this file.")] = None
    output: Annotated[
        Path | None,
        _option(
            _FILES,
            ".mp4, .webm, .gif, or NAME.png for a folder NAME of frames (default: named after the prompt).",
            "--output",
            "-o",
        ),
    ] = None
    output_dir: Annotated[Path | None, _option(_FILES, "Folder of the file where --output is left out.")] = None

    engines: Annotated[Path, _option(_RUN, "Folder of version folders, or a version folder.", envvar="LTX_ENGINES")] = (
        Path("engines")
    )
    version: Annotated[
        str | None, _option(_RUN, "Which version; not needed when there is one.", "--version", "--ltxv-version")
    ] = None
    backend: Annotated[
        str, _option(_RUN, "tensorrt, tensorrt_rtx, cuda or cpu; auto takes the first that can, and says why.")
    ] = "auto"
    gpu_memory: Annotated[
        float | None,
        _expert(_RUN, "GB of the GPU to plan with: what fits, is streamed and is tiled (default: all)."),
    ] = None
    threads: Annotated[int | None, _expert(_RUN, "Threads of the CPU (default: one a core).")] = None
    low_memory: Annotated[bool, _expert(_RUN, "Run guidance's conditions one after another.", "--low-memory")] = False
    plan: Annotated[bool, _option(_RUN, "Say what would be done, and do nothing.", "--plan")] = False
    doctor: Annotated[
        bool, _option(_RUN, "Say what this machine has, which engines fit, and what to install or build.", "--doctor")
    ] = False
    json: Annotated[bool, _option(_RUN, "Print result, plan or doctor's report for programs.", "--json")] = False

    about: Annotated[bool, _option(_RUN, "Say which version this is, and which backends it has.", "--about")] = False
    help_all: Annotated[
        bool, _option(_RUN, "Show every option and exit.", "--help-all", callback=_show_all, is_eager=True)
    ] = False


_Table = TypeVar("_Table")


def command_of(run: Callable[[_Table], None], table: type[_Table]) -> Callable[..., None]:
    """A function with an argument for every field of a dataclass, as typer reads them, that hands them over as one."""
    hints = get_type_hints(table, include_extras=True)

    def command(**typed: Any) -> None:
        run(table(**typed))

    command.__doc__ = run.__doc__
    command.__annotations__ = hints
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
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
