"""The options of `ltx-export engine` as one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

AUTO = "auto"


@dataclass(frozen=True)
class Asked:
    """The options as they were typed."""

    version: Annotated[str, typer.Argument(metavar="VERSION", help="A release, e.g. 0.9.8-2b-distilled, or demo.")]
    engines: Annotated[Path, typer.Option(envvar="LTX_ENGINES", help="Root of the version folders.")] = Path("engines")
    builder: Annotated[str, typer.Option(help="auto, tensorrt or tensorrt_rtx.")] = AUTO
    precision: Annotated[str, typer.Option(help="bf16 or fp16: which graphs.")] = "bf16"
    component: Annotated[list[str] | None, typer.Option(help="Only this one; can be repeated (all there are).")] = None
    weights: Annotated[
        str, typer.Option(help="auto, embedded, inputs (read from the checkpoint at load), or refit (TensorRT).")
    ] = AUTO
    max_height: Annotated[int | None, typer.Option(help="Serve videos up to this (up to 1600).")] = None
    max_width: Annotated[int | None, typer.Option(help="The same for the width.")] = None
    max_frames: Annotated[int | None, typer.Option(help="The same for the number of frames.")] = None
    static: Annotated[str | None, typer.Option(help="HEIGHTxWIDTHxFRAMES: serve this size alone, fastest.")] = None
    single_pass: Annotated[bool, typer.Option("--single-pass", help="Those sizes are for ltx-run --single-pass.")] = (
        False
    )
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Let weights stay in the machine's memory.")
    ] = False
    reuse: Annotated[
        Path | None, typer.Option(help="Version folder whose engines to take where only weights outside them differ.")
    ] = None
    force: Annotated[
        bool, typer.Option("--force", help="Build even where a fitting engine exists, and keep it if it is inexact.")
    ] = False
    check: Annotated[
        bool, typer.Option("--check", help="Build nothing; fail if an engine is missing or does not fit.")
    ] = False
    if_possible: Annotated[
        bool, typer.Option("--if-possible", help="Build nothing, without an error, where there is no builder or room.")
    ] = False
