"""ltx-run: parse, call, print. Modules are imported only when a command needs them, so that --help is fast."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltx_runtime.cli.arguments import Arguments, command_of
from ltx_runtime.errors import LtxError, printable, reported
from ltx_runtime.files import engines_folder

if TYPE_CHECKING:
    from ltx_runtime.pipeline import Video

app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


@reported()
def _run(typed: Arguments) -> None:
    """Make a video from a prompt and optional images and clips: ltx-run "A red fox runs through deep snow" -o fox.mp4

    Options that you leave out use the version's defaults. More options, for experts: --help-all.
    """
    from ltx_runtime.spec.versions import find_version

    if typed.about:
        print(_about())
        return
    if typed.doctor:
        from ltx_runtime.doctor import lines

        wanted = find_version(typed.version).name if typed.version else None
        print(lines.run(engines_folder(typed.engines), wanted, as_json=typed.json))
        return
    if typed.fetch is not None:
        from ltx_runtime.hub.version_folder import fetch_version

        if typed.words is not None or typed.prompt is not None:
            raise LtxError("--fetch only downloads a version and makes no video", "leave the prompt out")
        print(f"{fetch_version(typed.fetch, engines_folder(typed.engines), print)} is complete")
        return
    if typed.words is not None and typed.prompt is not None:
        raise LtxError("the prompt was given twice", "leave --prompt out")
    typed = replace(typed, prompt=typed.prompt if typed.words is None else typed.words, words=None)
    if typed.prompt is None and typed.embeddings_file is None and typed.latents is None:
        raise LtxError("there is no prompt", "give a prompt in quotes, or --embeddings-file FILE")
    _make(typed)


app.command()(command_of(_run, Arguments))


def _about() -> str:
    """Returns the program's version and, for each backend, the version of its library or how to install it."""
    from importlib import metadata

    from ltx_runtime import __version__
    from ltx_runtime.packages import install_command
    from ltx_runtime.sessions import BACKENDS

    packages = {"gpu": "onnxruntime-gpu", "cpu": "onnxruntime"}  # by extra; the others are called like their extra
    lines = [f"ltx-run {__version__}"]
    for name, backend in BACKENDS.items():
        package = packages.get(backend.extra, backend.extra)
        try:
            lines.append(f"{name}: {package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            absent = LtxError(f"{name}: not installed", command=install_command(backend.extra))
            lines.append(str(absent))
    return "\n".join(lines)


def _make(typed: Arguments) -> None:
    """Writes the video of a request or of saved latents to a file; with --plan, only prints the plan."""
    from ltx_runtime.cli import request_from_arguments as asked
    from ltx_runtime.cli.progress import display
    from ltx_runtime.pipeline import Pipeline

    request = asked.request_of(typed)
    with Pipeline(engines_folder(typed.engines), typed.version, **asked.pipeline_options_of(typed), note=_note) as pipe:
        if typed.latents is None:
            video = pipe(request, **asked.run_options_of(typed))
        else:
            video = pipe.decode(typed.latents, **asked.decode_options_of(typed))
        title = (typed.prompt or "video") if typed.latents is None else typed.latents.stem
        output = _output_of(typed, title, video.ending.seed)
        target = video.check_output(output, folder_exists=typed.output_dir is None)
        if typed.plan:
            print(json.dumps(video.report(), indent=1) if typed.json else "\n".join(video.report_lines()))
            return
        with _folder_of(output) if typed.output_dir else nullcontext(), display(video.work()) as progress:
            video.save(output, progress)
    print(json.dumps(_result(video, target)) if typed.json else _told(video, target))


def _result(video: Video, target: Path) -> dict[str, Any]:
    """Returns the result as plain data, for programs."""
    height, width = video.size
    return {
        "file": str(target),
        "width": width,
        "height": height,
        "frames": video.ending.num_frames,
        "fps": video.ending.fps,
        "seed": video.ending.seed,
        "seconds": video.seconds,
        "backends": video.backends,
    }


def _told(video: Video, target: Path) -> str:
    """Returns the result in one line, for people."""
    (height, width), ending = video.size, video.ending
    seconds = ", ".join(f"{name} {took:.1f} s" for name, took in video.seconds.items())
    size = f"{width}x{height}, {ending.num_frames} frames at {ending.fps:g} fps"
    return f"{printable(str(target))}: {size}, seed {ending.seed}; {seconds}"


def _output_of(typed: Arguments, title: str, seed: int) -> Path:
    """Returns the file to write: the one that was typed, or one named after the title."""
    if typed.output is not None:
        if typed.output_dir is not None:
            raise LtxError("--output and --output-dir cannot be combined", "leave one of them out")
        return typed.output
    return _free_name(typed.output_dir or Path(), title, seed)


@contextmanager
def _folder_of(output: Path) -> Iterator[None]:
    """Creates the folder of the output, and removes it at the end if it is still empty."""
    new = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    for folder in reversed(new):
        folder.mkdir()
    try:
        yield
    finally:
        for folder in new:
            if not any(folder.iterdir()):
                folder.rmdir()


def _note(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)


def _free_name(folder: Path, prompt: str, seed: int) -> Path:
    """Returns a file that does not exist yet, named after the prompt's first words and the seed."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "video"
    number = 1
    while True:
        path = folder / (f"{words}-{seed}{'' if number == 1 else f'-{number}'}.mp4")
        if not path.exists():
            return path
        number += 1


def main() -> None:
    """Runs the `ltx-run` command."""
    # NumPy's BLAS would start a thread for every further core, each of which spins for 0.05 s. No stage multiplies
    # matrices in NumPy, and the backends have threads of their own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app()
