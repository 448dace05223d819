"""The one exception that is the user's to fix, and how command lines report it. Everything else is our bug and
keeps its traceback.
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
_ENDING = ("SIGTERM", "SIGHUP")  # the second is unknown to Windows

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
    """What the user can fix, said in one sentence. Command lines exit with code 2.

    Attributes:
        problem: what is wrong, and what was given.
        advice: what to do, in words; may be empty.
        command: what to type, on the machine that says so; may be empty.
    """

    def __init__(self, problem: str, advice: str = "", command: str = "") -> None:
        super().__init__(problem, advice, command)
        self.problem, self.advice, self.command = problem, advice, command

    def __str__(self) -> str:
        to_do = ", or ".join(filter(None, (self.command and f"run: {self.command}", self.advice)))
        return f"{self.problem} - {to_do}" if to_do else self.problem


@contextmanager
def explaining(doing: str | None = None) -> Iterator[None]:
    """Turns the operating system's refusals inside the block into LtxErrors where there is advice to give.

    Args:
        doing: what is being attempted, as in "write clip.mp4"; if left out, using the file the error names.

    Raises:
        LtxError: instead of an OSError such as a full disk or a missing permission.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0)
        if advice is None:
            raise
        doing = doing or (f"use {error.filename}" if error.filename else "go on")
        raise LtxError(f"cannot {doing}: {os.strerror(error.errno or 0).lower()}", advice) from None


@contextmanager
def reported(left: str = "nothing was left half-written") -> Iterator[None]:
    """Ends the process with one line on standard error for what the user can fix, and for Ctrl-C.

    Also a decorator, for the functions of a command line.

    Args:
        left: what Ctrl-C leaves behind.

    Raises:
        SystemExit: code 2 for an LtxError, a refusal of the operating system or too little memory, 130 for Ctrl-C.
    """
    try:
        with explaining(), _interrupted_by_signals():
            yield
    except LtxError as error:
        _leave(str(error), USER_ERROR)
    except MemoryError:
        _leave("not enough memory - ask for a smaller size or fewer frames, or close other programs", USER_ERROR)
    except KeyboardInterrupt:
        _leave(f"interrupted; {left}", INTERRUPTED)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """A closed terminal and `kill` end the block as Ctrl-C does, so that nothing half-written stays."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one of them
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def printable(text: str) -> str:
    """The text for a terminal: a line break or an escape sequence in the name of a file must not reach it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _leave(message: str, code: int) -> None:
    sys.stderr.write(f"error: {printable(message)}\n")
    raise SystemExit(code) from None
