"""Lines on standard output and error that no encoding and no closed pipe stops, and the folder for the output."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltx_runtime.errors import printable


def escape_what_cannot_be_encoded() -> None:
    """Makes both streams write an escape for a character that their encoding lacks, where Python would raise an error.

    Windows encodes whatever is redirected as cp1252 or the like, which has no letters of most languages.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    """Prints something that the user should know but need not act on."""
    tell(f"note: {text}")


def tell(text: str) -> None:
    """Prints a line on standard error, unless nobody reads it any more, which need not end a run."""
    with suppress(OSError):
        print(printable(text), file=sys.stderr)


def told_of(result: Mapping[str, Any]) -> str:
    """Returns a result, see `Video.result`, in one line for people."""
    seconds = ", ".join(f"{name} {took:.1f} s" for name, took in result["seconds"].items())
    size = f"{result['width']}x{result['height']}, {result['frames']} frames at {result['fps']:g} fps"
    return f"{printable(result['file'])}: {size}, seed {result['seed']}; {seconds}"


def resuming(path: Path, *options: str) -> str:
    """Returns the command that goes on from a file, with further options, as a shell takes it."""
    from ltx_runtime.outputs.unfinished import shortest

    words = ["ltx-run", "--resume", shortest(path), *options]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


@contextmanager
def folder_for(folder: Path | None) -> Iterator[None]:
    """Creates the folder that was asked for, and removes it at the end if it is still empty."""
    folder = folder or Path()
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(new):
        parent.mkdir(exist_ok=True)  # another run may create it as well
    try:
        yield
    finally:
        for parent in new:
            with suppress(OSError):  # not empty
                parent.rmdir()
