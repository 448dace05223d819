"""LtxError, the exception for problems that the user can fix, and how command lines report it and Ctrl-C.

Any exception that is not reported here is a bug of this project and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

USER_ERROR = 2
INTERRUPTED = 130
_MOST_SHOWN, _MOST_TOLD = 60, 200  # characters of a value, and of a library's error, in a message
_LIKE_CTRL_C = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
# So long after an interruption another one is not heard. People press twice, and a terminal that is closed sends
# several signals; the second must not end the deletion of files that the first has begun.
_CLEANING_S = 2.0
_STANDARD_ERROR = 2

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

    As text it is one line: characters that end lines or steer a terminal, which a file may have in names, are escaped.

    Attributes:
        problem: what is wrong, with the value that was given.
        advice: what to do, in words; may be empty.
        command: a command that fixes the problem on the machine that prints it; may be empty.
    """

    def __init__(self, problem: str, advice: str = "", command: str = "") -> None:
        super().__init__(problem, advice, command)
        self.problem, self.advice, self.command = problem, advice, command

    def __str__(self) -> str:
        return printable(advised(self.problem, self.advice, self.command))


def advised(problem: str, advice: str = "", command: str = "") -> str:
    """Returns a problem with what can be done about it, a command or words, in one line."""
    to_do = ", or ".join(filter(None, (command and f"run: {command}", advice)))
    return f"{problem} - {to_do}" if to_do else problem


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
        advice = advice_of(error)
        if not advice:
            raise
        doing = doing or (f"use {error.filename}" if error.filename else "continue")
        raise LtxError(f"cannot {doing}: {os.strerror(error.errno or 0).lower()}", advice) from None


def advice_of(error: OSError) -> str:
    """Returns what the user can do about an error of the system; empty if that is not known."""
    return _ADVICE.get(error.errno or 0, "")


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
    with interruptible():
        try:
            with explaining():
                yield
        except LtxError as error:
            _exit(str(error), USER_ERROR)
        except MemoryError:
            _exit("not enough memory - ask for a smaller size or fewer frames, or close other programs", USER_ERROR)
        except KeyboardInterrupt:
            _exit(f"interrupted; {left}", INTERRUPTED)


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C, a closed terminal and `kill` raise KeyboardInterrupt inside the block.

    Signals that follow one within two seconds are not heard. Those that the process ignores, as under `nohup`, are
    ignored in the block as well; in other threads than the main one, nothing changes.
    """
    heard_at = -float("inf")

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal heard_at
        now = time.monotonic()
        if now - heard_at > _CLEANING_S:
            heard_at = now
            raise KeyboardInterrupt

    handlers, is_program = {}, signal.getsignal(signal.SIGINT) is _end
    if threading.current_thread() is threading.main_thread():
        for number, usual in _signals().items():
            if signal.getsignal(number) in (usual, _end):
                handlers[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # A program that has done what it was for only has to tell of it and to end.
            signal.signal(number, signal.SIG_IGN if is_program else handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Has signals that interrupt wait for the end of the block, which deletes what must not stay half deleted.

    It changes nothing in other threads than the main one, which alone handle signals.
    """
    waiting: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _signals():
            if callable(signal.getsignal(number)):  # neither ignored nor the end of the process
                handlers[number] = signal.signal(number, lambda *signalled: waiting.append(signalled))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number, frame in waiting:
        handlers[number](number, frame)


@contextmanager
def program() -> Iterator[None]:
    """Makes the block a program, of which Ctrl-C leaves one line: not even its imports, or its end, have a traceback.

    Before a block that is `interruptible` there is nothing to clean up, so Ctrl-C and the signals that act like it end
    the process at once. After the block no signal is heard, as all that is left is the end of the process.
    """
    for number, usual in _signals().items():
        if signal.getsignal(number) is usual:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number in _signals():
            signal.signal(number, signal.SIG_IGN)


def _signals() -> dict[int, object]:
    """Returns the signals that interrupt, each with the handler that it has if nobody has chosen another."""
    usual: dict[int, object] = {signal.SIGINT: signal.default_int_handler}
    return usual | {getattr(signal, name): signal.SIG_DFL for name in _LIKE_CTRL_C if hasattr(signal, name)}


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the process, which has begun nothing yet."""
    try:
        os.write(_STANDARD_ERROR, b"error: interrupted; nothing was begun\n")
    finally:
        os._exit(INTERRUPTED)


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
    return lines[0][:_MOST_TOLD] if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """Returns an error's message in one line; its type if it has none."""
    return " ".join(str(error).split())[:_MOST_TOLD] or type(error).__name__


def _exit(message: str, code: int) -> None:
    sys.stderr.write(f"error: {printable(message)}\n")
    raise SystemExit(code) from None
