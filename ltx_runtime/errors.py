"""LtxError, the exception for problems that the user can fix, and how command lines report it.

Any exception that is not reported here is a bug of this project and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

USER_ERROR = 2
INTERRUPTED = 130
_MOST_SHOWN = 60  # characters of a value in a message
_ENDING_SIGNALS = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP

_ADVICE = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EACCES: "check its permissions or choose another place",
    errno.EPERM: "check its permissions or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "give a file instead of a folder",
    errno.EFBIG: "choose another file system",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "check the links in the path",
    errno.EEXIST: "choose another name",
}


class LtxError(Exception):
    """A problem that the user can fix, described in one sentence. Command lines exit with code 2.

    Attributes:
        problem: what is wrong, with the value that was given.
        advice: what to do, in words; may be empty.
        command: a command that fixes the problem on the machine that prints it; may be empty.
    """

    def __init__(self, problem: str, advice: str = "", command: str = "") -> None:
        super().__init__(problem, advice, command)
        self.problem, self.advice, self.command = problem, advice, command

    def __str__(self) -> str:
        to_do = ", or ".join(filter(None, (self.command and f"run: {self.command}", self.advice)))
        return f"{self.problem} - {to_do}" if to_do else self.problem


@contextmanager
def explaining(doing: str | None = None) -> Iterator[None]:
    """Converts an OSError raised inside the block to an LtxError if there is advice for its error number.

    Args:
        doing: the attempted action, as in "write clip.mp4"; by default "use" and the file that the error names.

    Raises:
        LtxError: in place of an OSError such as a full disk or a missing permission.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None:
            raise
        doing = doing or (f"use {error.filename}" if error.filename else "continue")
        raise LtxError(f"cannot {doing}: {os.strerror(error.errno or 0).lower()}", advice) from None


@contextmanager
def reported(left: str = "nothing was left half-written") -> Iterator[None]:
    """Ends the process with one line on standard error after an error that the user can fix, or after Ctrl-C.

    Can also be used as a decorator, for the functions of a command line.

    Args:
        left: the end of the message after Ctrl-C, which says what happened to unfinished files.

    Raises:
        SystemExit: code 2 for an LtxError, an OSError with advice or a MemoryError; code 130 for Ctrl-C and the
            signals that act like it.
    """
    try:
        with explaining(), _interrupted_by_signals():
            yield
    except LtxError as error:
        _exit(str(error), USER_ERROR)
    except MemoryError:
        _exit("not enough memory - ask for a smaller size or fewer frames, or close other programs", USER_ERROR)
    except KeyboardInterrupt:
        _exit(f"interrupted; {left}", INTERRUPTED)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Makes a closed terminal and `kill` end the block like Ctrl-C, so that partial files are removed."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for name in _ENDING_SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
                handlers[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def printable(text: str) -> str:
    """Escapes characters that must not reach a terminal, such as line breaks and escape sequences in file names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """Returns a value as a message shows it, cut to one line."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, such as one of a library; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _exit(message: str, code: int) -> None:
    sys.stderr.write(f"error: {printable(message)}\n")
    raise SystemExit(code) from None
