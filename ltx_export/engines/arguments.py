"""The options of `ltx-export engine`, as one data class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

AUTO = "auto"


@dataclass(frozen=True)
class Asked:
    """The options as the user typed them."""

    version: Annotated[str, typer.Argument(metavar="VERSION", help="A release, e.g. 0.9.8-2b-distilled, or demo.")]
    engines: Annotated[
        Path | None,
        typer.Option(
            envvar="LTX_ENGINES",
            help="Folder of exported versions, or one version's folder (default: ./engines, else the user's data "
            "folder).",
        ),
    ] = None
    builder: Annotated[str, typer.Option(help="Library that builds the engines: auto, tensorrt or tensorrt_rtx.")] = (
        AUTO
    )
    precision: Annotated[str, typer.Option(help="Precision of the graphs to build from: bf16 or fp16.")] = "bf16"
    component: Annotated[
        list[str] | None, typer.Option(help="Build only this component. Can be repeated (default: all).")
    ] = None
    weights: Annotated[
        str,
        typer.Option(
            help="Where the weights are: embedded (in the engine), inputs (read from the checkpoint at load), "
            "refit (TensorRT only), or auto."
        ),
    ] = AUTO
    max_height: Annotated[int | None, typer.Option(help="Largest height of a video in pixels (at most 1600).")] = None
    max_width: Annotated[int | None, typer.Option(help="Largest width of a video in pixels (at most 1600).")] = None
    max_frames: Annotated[int | None, typer.Option(help="Largest number of frames of a video (at most 257).")] = None
    static: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTHxFRAMES: build for this one size only, for the fastest engine.")
    ] = None
    single_pass: Annotated[
        bool, typer.Option("--single-pass", help="The sizes above are of videos made with ltx-run --single-pass.")
    ] = False
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Stream weights from main memory if they do not fit on the GPU.")
    ] = False
    reuse: Annotated[
        Path | None,
        typer.Option(
            help="Version folder whose engines to reuse if only weights outside them differ, e.g. after merging a LoRA."
        ),
    ] = None
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild existing engines, and keep engines that fail the accuracy check.")
    ] = False
    check: Annotated[
        bool, typer.Option("--check", help="Build nothing; fail if an engine is missing or does not fit.")
    ] = False
    trust_engines: Annotated[
        bool,
        typer.Option(
            "--trust-engines",
            envvar="LTX_TRUST_ENGINES",
            help="Use links and engines that somebody else has put into the folder.",
        ),
    ] = False
    if_possible: Annotated[
        bool,
        typer.Option(
            "--if-possible",
            help="Skip building, without an error, if there is no builder or too little disk space or memory.",
        ),
    ] = False
