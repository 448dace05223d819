"""ltx-run: parse, call, print. Modules are imported only when a command needs them, so that --help is fast."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltx_runtime.cli.arguments import Arguments, command_of
from ltx_runtime.cli.streams import answer, folder_for, note, resuming, run, told_of
from ltx_runtime.errors import LtxError, printable, reported
from ltx_runtime.files import engines_folder

if TYPE_CHECKING:
    from ltx_runtime.outputs.record import Recorded
    from ltx_runtime.video import Video

app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


@reported("no half-written video was left")
def _run(typed: Arguments) -> None:
    """Make a video from a prompt and optional images and clips: ltx-run "A red fox runs through deep snow" -o fox.mp4

    Options that you leave out use the version's defaults. More options, for experts: --help-all.
    """
    from ltx_runtime.cli import batch
    from ltx_runtime.cli.request_from_arguments import check_no_cluster_options
    from ltx_runtime.spec.versions import find_version

    typed = _at_home(typed)
    if typed.about:
        answer(_about())
        return
    if typed.doctor:
        from ltx_runtime.doctor import lines

        wanted = find_version(typed.version).name if typed.version else None
        folder, trust = engines_folder(typed.engines), typed.trust_engines
        answer(lines.run(folder, wanted, as_json=typed.json, trust=trust))
        return
    if typed.fetch is not None:
        from ltx_runtime.hub.version_folder import fetch_version

        if typed.words is not None or typed.prompt is not None:
            raise LtxError("--fetch only downloads a version and makes no video", "leave the prompt out")
        print(f"{fetch_version(typed.fetch, engines_folder(typed.engines), print)} is complete")
        return
    if typed.resume is not None and (ended := _ended_run(typed.resume)) is not None:
        told = f"{printable(str(ended))} is whole: its run has ended"
        answer(json.dumps({"file": str(ended)}) if typed.json else told)
        return
    if typed.resume is not None and typed.resume.suffix == batch.SUFFIX:
        batch.go_on(typed)
        return
    if typed.words is not None and typed.prompt is not None:
        raise LtxError("the prompt was given twice", "leave --prompt out")
    typed = replace(typed, prompt=typed.prompt if typed.words is None else typed.words, words=None)
    if typed.prompts is not None or typed.count is not None or typed.seeds is not None:
        batch.make(typed)
        return
    check_no_cluster_options(typed)
    sources = (typed.prompt, typed.embeddings_file, typed.latents, typed.from_file, typed.resume)
    if all(source is None for source in sources):
        raise LtxError("there is no prompt", "give a prompt in quotes, or --embeddings-file FILE")
    _make(typed)


def _at_home(typed: Arguments) -> Arguments:
    """Returns the arguments with the home folder for `~`, which shells leave in --output=~/fox.mp4."""
    changes: dict[str, Any] = {}
    for field in fields(typed):
        if isinstance(value := getattr(typed, field.name), Path):
            with suppress(RuntimeError):  # a user without a home
                changes[field.name] = value.expanduser()
    return replace(typed, **changes)


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


def _ended_run(resumed: Path) -> Path | None:
    """Returns the video of a run that was to go on but has ended; None if it has not."""
    from ltx_runtime.outputs.unfinished import SUFFIX

    target = resumed.with_suffix("")  # for fox.mp4.unfinished, and for fox.unfinished of a folder of frames
    return target if resumed.suffix == SUFFIX and not resumed.exists() and target.exists() else None


def _make(typed: Arguments) -> None:
    """Writes the video of a request, of saved latents or of an interrupted run; with --plan, only prints the plan."""
    from ltx_runtime.media.video import TakenError

    with _planned(typed) as (video, outputs):
        output = next(outputs)
        if typed.plan:
            with suppress(TakenError) if typed.output is None else nullcontext():  # then the next name would be taken
                video.check_output(output, folder_exists=typed.output_dir is None)
            answer(json.dumps(video.report(), indent=1) if typed.json else "\n".join(video.report_lines()))
            return
        with folder_for(typed.output_dir):
            target = _save(video, chain([output], outputs))
    result = video.result(target)
    answer(json.dumps(result) if typed.json else told_of(result), f"the video is {target}")


@contextmanager
def _planned(typed: Arguments) -> Iterator[tuple[Video, Iterator[Path]]]:
    """Yields the video that was asked for, and the names for it in the order in which they are tried."""
    from ltx_runtime.cli import batch
    from ltx_runtime.cli import request_from_arguments as asked
    from ltx_runtime.outputs.record import Recorded, read_record
    from ltx_runtime.outputs.unfinished import open_unfinished
    from ltx_runtime.pipeline import Pipeline

    trust = typed.trust_engines  # never of what is recorded, which a stranger may have written
    if typed.resume is not None:
        batch.check_is_no_batch(typed.resume, typed.output_dir or Path())
    if typed.embeddings_file is not None and (typed.prompt or typed.negative_prompt):
        note("the prompt only names the video: --embeddings-file holds encoded ones")
    if typed.output is not None and typed.output_dir is not None:
        raise LtxError("--output and --output-dir cannot be combined", "leave one of them out")
    if typed.resume is not None:
        changes, unfinished = asked.resumed_options_of(typed), open_unfinished(typed.resume)
        engines = typed.engines or unfinished.engines
        options = asked.pipeline_options_of(typed, unfinished.options)
        with Pipeline(engines, **options, trust_engines=trust, note=note) as pipe:
            yield pipe.resume(unfinished, **changes), iter([typed.output or unfinished.output])
    elif typed.latents is not None:
        changes, options = asked.decode_options_of(typed), asked.pipeline_options_of(typed)
        folder = engines_folder(typed.engines)
        with Pipeline(folder, typed.version, **options, trust_engines=trust, note=note) as pipe:
            video = pipe.decode(typed.latents, **changes)
            yield video, _outputs_of(typed, typed.latents.stem, video)
    else:
        recorded = Recorded() if typed.from_file is None else read_record(typed.from_file)
        request, options = asked.request_of(typed, recorded.request), recorded.options
        version = typed.version or recorded.version or None
        folder, options_of = engines_folder(typed.engines), asked.pipeline_options_of(typed, options)
        with Pipeline(folder, version, **options_of, trust_engines=trust, note=note) as pipe:
            video = pipe(request, **asked.run_options_of(typed, options))
            if typed.preset is not None:
                video.reads_also("the preset", typed.preset)
            _tell_changes(recorded, video)
            yield video, _outputs_of(typed, request.prompt or "video", video)


def _outputs_of(typed: Arguments, title: str, video: Video) -> Iterator[Path]:
    """Yields the file that was typed, or names after a title."""
    from ltx_runtime.outputs.names import names_for

    if typed.output is not None:
        return iter([typed.output])
    return names_for(typed.output_dir or Path(), title, video.ending.seed)


def _tell_changes(recorded: Recorded, video: Video) -> None:
    """Notes what is no longer as it was when a video was made for the first time."""
    for path in recorded.changed_inputs():
        note(f"{path} is not what it was for the first video")
    for name in recorded.changed_weights(video.weights):
        note(f"{name} is another one than for the first video, so the new one will differ")


def _save(video: Video, outputs: Iterator[Path]) -> Path:
    """Makes a video and saves it under the first name that is free; tells how to go on if this is interrupted.

    Raises:
        TakenError: none of the names is free.
    """
    from ltx_runtime.cli.progress import display
    from ltx_runtime.media.video import TakenError

    kept: list[Path] = []

    def tell(path: Path) -> None:
        kept.append(path)
        note(f"if this is interrupted, go on with: {resuming(path)}")

    try:
        with display(video.work()) as progress:
            for output in outputs:
                try:
                    return video.save(output, progress, unfinished=tell)
                except TakenError as error:
                    refused = error
        raise refused
    except BaseException:
        if kept and kept[-1].exists():
            again = ("--overwrite",) if video.has_unkept_files else ()
            note(f"what is finished is kept; go on with: {resuming(kept[-1], *again)}")
        raise


def main() -> None:
    """Runs the `ltx-run` command."""
    # NumPy's BLAS would start a thread for every further core, each of which spins for 0.05 s. No stage multiplies
    # matrices in NumPy, and the backends have threads of their own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run(app, "ltx-run", sys.argv[1:])
