"""Standard output and standard error of a command line."""

from __future__ import annotations

import io
import sys


def escape_what_cannot_be_encoded() -> None:
    """Makes both streams write an escape for a character that their encoding lacks, where Python would raise an error.

    Windows encodes whatever is redirected as cp1252 or the like, which has no letters of most languages.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
