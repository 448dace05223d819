"""ltx-run: parse, call, print. Imports what a command needs when it runs, so that --help answers at once."""

from __future__ import annotations

import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ltx_runtime.arguments import Arguments, command_of
from ltx_runtime.errors import LtxError, printable, reported

if TYPE_CHECKING:
    from ltx_runtime.manifest import Engines
    from ltx_runtime.pipeline import ProgressOf

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Progress = Callable[[], None]


@reported()
def _run(typed: Arguments) -> None:
    """Make a video from a prompt, and from images and clips. What is left out is the version's own default."""
    from ltx_runtime import doctor_lines, manifest, versions

    if typed.doctor:
        wanted = versions.find_version(typed.version).name if typed.version else None
        print(doctor_lines.run(typed.engines, wanted, as_json=typed.json))
        return
    folder = manifest.find_folder(typed.engines, versions.find_version(typed.version).name if typed.version else None)
    if typed.latents is not None:
        _decode(typed, manifest.open_engines(folder))
        return
    if typed.prompt is None and typed.embeddings_file is None:
        raise LtxError("nothing says what the video shows - add --prompt TEXT, or --embeddings-file FILE")
    _make(typed, folder)


app.command()(command_of(_run, Arguments))


def _make(typed: Arguments, folder: Path) -> None:
    """From a request to a file; with --plan, only the plan."""
    from ltx_runtime import asked, manifest, media, pipeline, plan, plan_lines, start, versions, video

    seed = secrets.randbits(32) if typed.seed is None else typed.seed
    found = manifest.read_manifest(folder)
    release = versions.find_version(found.version)
    clip_frames = None
    if typed.video is not None and typed.num_frames is None:
        clip_frames = media.count_frames(typed.video)
    request = asked.request_of(typed, release, seed, clip_frames)
    options = asked.options_of(typed)
    if typed.plan or typed.json:
        planned = plan.plan(request, release, found.schedule, found.allowed_sigmas)
        frames = start.frames_of(request, planned)
        print(plan_lines.told(planned, request, options, found, frames, as_json=typed.json))
        return
    output = _output_of(typed, typed.prompt or "video", seed)
    target = video.target_of(output)
    video.check_size(output, request.height, request.width)
    engines = manifest.open_engines(folder)
    ending = pipeline.ready(engines, request, options).planned.ending
    seconds: dict[str, float] = {}
    made = _folder_of(output) if typed.output_dir else nullcontext()
    with made, video.open_writer(output, ending.fps) as write:
        pipeline.generate(engines, request, write, _progress_into(seconds), options, _note)
    size = f"{request.width}x{request.height}, {ending.num_frames} frames at {ending.fps:g} fps"
    print(f"{printable(str(target))}: {size}, seed {seed}; {_told(seconds)}")


def _decode(typed: Arguments, engines: Engines) -> None:
    """From latents to a file; with --plan, only how they end."""
    import dataclasses
    import json

    from ltx_runtime import asked, pipeline, video

    assert typed.latents is not None
    options = asked.options_of(typed)
    ending = pipeline.saved_of(engines, typed.latents)[1]
    said = f"{ending.num_frames} frames at {ending.fps:g} fps, seed {ending.seed}"
    if typed.plan or typed.json:
        print(json.dumps(dataclasses.asdict(ending), indent=1) if typed.json else f"decode: {said}")
        return
    output = _output_of(typed, typed.latents.stem, ending.seed)
    target = video.target_of(output)
    left, right, top, bottom = ending.crop
    video.check_size(output, ending.size[0] - top - bottom, ending.size[1] - left - right)
    seconds: dict[str, float] = {}
    made = _folder_of(output) if typed.output_dir else nullcontext()
    with made, video.open_writer(output, ending.fps) as write:
        pipeline.decode_saved(engines, typed.latents, write, _progress_into(seconds), options, _note)
    print(f"{printable(str(target))}: {said}; {_told(seconds)}")


def _told(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items())


def _output_of(typed: Arguments, title: str, seed: int) -> Path:
    """The file to write: as typed, or called after the title."""
    if typed.output is not None:
        if typed.output_dir is not None:
            raise LtxError("output and output-dir both say where the video goes - leave one of them out")
        return typed.output
    return _free_name(typed.output_dir or Path(), title, seed)


@contextmanager
def _folder_of(output: Path) -> Iterator[None]:
    """Makes the folder of the output, and takes it away again where nothing came into it."""
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
    """A file name from the prompt's first words that does not exist yet."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "video"
    number = 1
    while True:
        path = folder / (f"{words}-{seed}{'' if number == 1 else f'-{number}'}.mp4")
        if not path.exists():
            return path
        number += 1


def _progress_into(seconds: dict[str, float]) -> ProgressOf:
    """Progress bars on standard error that show the time per unit; `seconds` gets the time of each stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Progress]:
        columns = (
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        started = last = time.perf_counter()
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(name, total=total, pace="")

            def done() -> None:
                nonlocal last
                now = time.perf_counter()
                bars.update(task, advance=1, pace=f"{now - last:.2f} s each")
                last = now

            yield done
        seconds[name] = time.perf_counter() - started

    return stage


def main() -> None:
    """The `ltx-run` command."""
    app()
