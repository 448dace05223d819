"""ltx-run: parse, call, print. Imports what a command needs when it runs, so that --help answers at once."""

from __future__ import annotations

import dataclasses
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltx_runtime.errors import reported

if TYPE_CHECKING:
    from ltx_runtime.pipeline import ProgressOf, Request
    from ltx_runtime.versions import Version

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Progress = Callable[[], None]


@app.command()
@reported()
def run(
    prompt: Annotated[str, typer.Option(help="What the video shows.")],
    engines: Annotated[
        Path, typer.Option(envvar="LTX_ENGINES", help="Folder of version folders, or a version folder.")
    ] = Path("engines"),
    version: Annotated[str | None, typer.Option(help="Which version; not needed when there is one.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What it must not show.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 32.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 32.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="8n+1, e.g. 25, 97 or 121.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second; also tells the model about speed.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="CFG; 1 turns it off.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same video; random if left out.")] = None,
    output: Annotated[
        Path | None, typer.Option(help=".mp4, .webm, .gif, or NAME.png for a folder NAME of frames.")
    ] = None,
) -> None:
    """Make a video from a prompt. What is left out is the version's own default."""
    from ltx_runtime import manifest, pipeline, versions

    folder = manifest.find_folder(engines, versions.find_version(version).name if version else None)
    release = versions.find_version(manifest.read_manifest(folder).version)
    seed = secrets.randbits(32) if seed is None else seed
    asked: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "fps": fps,
        "steps": steps,
        "guidance_scale": guidance_scale,
    }
    request = pipeline.default_request(release, prompt, seed)
    request = dataclasses.replace(request, **{name: value for name, value in asked.items() if value is not None})
    _make(folder, request, release, _free_name(prompt, seed) if output is None else output)


def _make(folder: Path, request: Request, release: Version, output: Path) -> None:
    from ltx_runtime import manifest, pipeline, video

    pipeline.plan(request, release)
    target = video.target_of(output)
    seconds: dict[str, float] = {}
    with video.open_writer(output, request.fps) as write:
        progress = _progress_into(seconds)
        pipeline.generate(manifest.open_engines(folder), request, write, progress, note=_note)
    stages = ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items())
    size = f"{request.width}x{request.height}, {request.num_frames} frames at {request.fps:g} fps"
    print(f"{target}: {size}, seed {request.seed}; {stages}")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _free_name(prompt: str, seed: int) -> Path:
    """A file name from the prompt's first words that does not exist yet."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "video"
    number = 1
    while True:
        path = Path(f"{words}-{seed}{'' if number == 1 else f'-{number}'}.mp4")
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
            TextColumn("{task.description:8}"),
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
