"""The options of ltx-serve as one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ltx_runtime.cli.arguments import show_all
from ltx_serve.settings import Settings

_SERVING, _LIMITS, _KEEPING, _RUN = "Serving", "Limits", "Keeping", "How videos are made"


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def _expert(panel: str, text: str, *names: str, **more: Any) -> Any:
    """Returns an option that only --help-all shows."""
    return _option(panel, text, *names, hidden=True, **more)


@dataclass(frozen=True)
class Arguments:
    """The options as typed on the command line."""

    engines: Annotated[
        Path | None,
        _option(
            _RUN,
            "Folder of exported versions, or one version's folder (default: ./engines, else the user's data folder).",
            envvar="LTX_ENGINES",
        ),
    ] = None
    host: Annotated[str, _option(_SERVING, "Address to listen on; any but this machine's own needs a token.")] = (
        Settings.host
    )
    port: Annotated[int, _option(_SERVING, "Port to listen on; 0 for any free one.")] = Settings.port
    token: Annotated[
        str | None,
        _option(
            _SERVING,
            "What clients must send. Other users of this machine see it in the list of processes: use the variable.",
            envvar="LTX_TOKEN",
            show_default=False,
        ),
    ] = None
    token_file: Annotated[Path | None, _option(_SERVING, "A file whose first line is the token.")] = None
    data: Annotated[
        Path | None,
        _option(
            _KEEPING, "Folder of the queue and the videos (default: in the user's data folder).", envvar="LTX_DATA"
        ),
    ] = None
    keep_days: Annotated[float | None, _option(_KEEPING, "Remove videos this many days after they are made.")] = None
    keep_gb: Annotated[float | None, _option(_KEEPING, "Remove the oldest videos above this many GB.")] = None
    workers: Annotated[
        int | None, _option(_RUN, "Number of videos made at a time (default: one per GPU, else one).")
    ] = None
    ray: Annotated[
        str | None,
        _expert(
            _RUN,
            "Make the videos on a Ray cluster: HOST:PORT of its head node, or auto for this machine's cluster.",
            metavar="ADDRESS",
        ),
    ] = None
    backend: Annotated[
        str,
        _option(_RUN, "tensorrt, tensorrt_rtx, cuda, openvino, openvino_q8, openvino_int8 or cpu; auto: the best."),
    ] = Settings.backend
    memory: Annotated[
        float | None,
        _expert(_RUN, "GB for the VAE besides its weights; larger videos are tiled (default: as ltx-run)."),
    ] = None
    threads: Annotated[
        int | None, _expert(_RUN, "Number of CPU threads of all workers together (default: one per core).")
    ] = None
    trust_engines: Annotated[
        bool,
        _expert(
            _RUN,
            "Use engines, which are code, and links that somebody else has put into the version folders.",
            "--trust-engines",
            envvar="LTX_TRUST_ENGINES",
        ),
    ] = False
    max_queue: Annotated[int, _expert(_LIMITS, "Most videos that wait at a time.")] = Settings.max_queue
    max_upload_mb: Annotated[float, _expert(_LIMITS, "Most MB of one request, with everything that it uploads.")] = (
        Settings.max_upload_bytes / 1e6
    )
    max_pixels: Annotated[int, _expert(_LIMITS, "Most pixels of a frame.")] = Settings.max_pixels
    max_frames: Annotated[int, _expert(_LIMITS, "Most frames of a video.")] = Settings.max_frames
    max_job_s: Annotated[float, _expert(_LIMITS, "Most seconds for one video.")] = Settings.max_job_s
    max_attempts: Annotated[int, _expert(_LIMITS, "How often a video is begun whose worker dies.")] = (
        Settings.max_attempts
    )
    grace_s: Annotated[
        float,
        _expert(_LIMITS, "Seconds for running videos to finish when the server stops; then they are queued again."),
    ] = Settings.grace_s
    about: Annotated[bool, _option(_RUN, "Show the version of this program and exit.", "--about", "--version")] = False
    help_all: Annotated[
        bool, _option(_RUN, "Show every option and exit.", "--help-all", callback=show_all, is_eager=True)
    ] = False
