"""ltx-serve: parse, check, serve. Modules are imported only when the command needs them, so that --help is fast."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from ltx_runtime.cli.arguments import command_of
from ltx_runtime.cli.streams import run
from ltx_runtime.errors import LtxError, explaining, reported
from ltx_runtime.files import data_folder, engines_folder
from ltx_runtime.packages import RELEASE, need
from ltx_serve.cli.arguments import Arguments
from ltx_serve.settings import Settings, check_settings

app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})
_DATA, _TOKEN = "serve", "LTX_TOKEN"
_SAME_NAMES = tuple({option.name for option in fields(Arguments)} & {setting.name for setting in fields(Settings)})
_MOST_TOKEN_BYTES = 10_000


@reported("videos that were under way are finished after the next start")
def _run(typed: Arguments) -> None:
    """Serve a page and OpenAI's video API: ltx-serve, and open the address that it prints.

    Options that you leave out suit a single user on this machine. More options, for experts: --help-all.
    """
    if typed.about:
        print(f"ltx-serve {RELEASE}")
        return
    settings = check_settings(settings_of(typed))
    os.environ.pop(_TOKEN, None)  # the processes that read what strangers send need not know it
    need("fastapi", "uvicorn", "python_multipart", "prometheus_client", extra="serve")
    if typed.ray is not None:
        from ltx_serve.cluster.serving import serve as serve_on_cluster

        serve_on_cluster(settings, typed.ray)
        return
    from ltx_serve.cli.server import serve

    serve(settings)


def settings_of(typed: Arguments) -> Settings:
    """Returns the settings that the options make.

    Raises:
        LtxError: the token's file cannot be read, there are two tokens, or a size is no number of bytes.
    """
    same: dict[str, Any] = {name: getattr(typed, name) for name in _SAME_NAMES}
    return Settings(
        **same
        | {
            "engines": engines_folder(_at_home(typed.engines)).absolute(),
            "data": (_at_home(typed.data) or data_folder(_DATA)).absolute(),
            "token": _token_of(typed),
            "max_upload_bytes": _bytes("max-upload-mb", typed.max_upload_mb, 1e6),
            "keep_bytes": None if typed.keep_gb is None else _bytes("keep-gb", typed.keep_gb, 1e9),
        }
    )


def _bytes(name: str, amount: float, unit: float) -> int:
    """Returns a size in bytes. Raises LtxError if it is not a finite number from 0; the message names the option."""
    if not 0 <= amount < float("inf"):
        raise LtxError(f"{name} must be a number from 0; got {amount:g}", "leave it out")
    return round(amount * unit)


def _at_home(path: Path | None) -> Path | None:
    """Returns the path with the home folder for `~`, which shells leave in --data=~/videos."""
    with suppress(RuntimeError):  # a user without a home
        return None if path is None else path.expanduser()
    return path


def _token_of(typed: Arguments) -> str | None:
    """Returns the token; an empty variable is none."""
    if typed.token_file is None:
        return typed.token or None
    if typed.token:
        raise LtxError("there is a token, and a file of another", "use either --token-file or LTX_TOKEN")
    path = _at_home(typed.token_file) or typed.token_file
    with explaining(f"read {path}"), path.open("rb") as file:
        lines = file.read(_MOST_TOKEN_BYTES).decode(errors="replace").splitlines()
    if not lines or not lines[0].strip():
        raise LtxError(f"the first line of {path} is empty", "put the token there")
    return lines[0].strip()


app.command()(command_of(_run, Arguments))


def main() -> None:
    """Runs the `ltx-serve` command."""
    # As in ltx-run: NumPy's BLAS would start threads that nothing here uses.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run(app, "ltx-serve", sys.argv[1:])
