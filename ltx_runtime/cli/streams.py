"""Lines on standard output and error that no encoding, closed pipe or full disk stops, and folders for outputs."""

from __future__ import annotations

import errno
import io
import os
import select
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer

from ltx_runtime.errors import USER_ERROR, LtxError, advice_of, advised, printable

UNTOLD = 4
_UsageError: Any = typer.BadParameter.__base__  # of click, of which newer releases of typer have a copy
_STREAMS = 3  # standard input, output and error
_PATIENCE_S = 1.0  # with a reader of standard error that has stopped reading


def run(app: typer.Typer, name: str, arguments: Sequence[str]) -> NoReturn:
    """Runs a command line, whose streams cannot fail, and ends the process.

    What is made does not depend on who reads of it: a line that cannot be written is dropped.

    Args:
        app: the command line.
        name: its name.
        arguments: what was typed after its name.

    Raises:
        SystemExit: with the command's own code; 2 for options that it has not; `UNTOLD` if it has succeeded, but
            standard output is a file or a device to which not all could be written. Where nobody reads standard output
            any more, nothing is missing.
    """
    open_streams()
    code = _code_of(app, name, arguments)
    if not code and not is_told("all else is done", is_result=False):
        code = UNTOLD
    raise SystemExit(code)


def _code_of(app: typer.Typer, name: str, arguments: Sequence[str]) -> Any:
    """Returns the code with which a command line ends; of options that it has not, it tells in one line."""
    try:
        return app([*arguments], prog_name=name, standalone_mode=False)
    except SystemExit as ended:
        return ended.code
    except _UsageError as error:
        wrong = error.format_message().rstrip(".")
        of_command = error.ctx.command_path if error.ctx else name
        told = advised(wrong[:1].lower() + wrong[1:], command=f"{of_command} --help")
        sys.stderr.write(f"error: {printable(told)}\n")
        return USER_ERROR


def open_streams() -> None:
    """Replaces standard output and error by streams that never raise an error, and opens those that are closed.

    A character that the encoding lacks is written as an escape: Windows encodes whatever is redirected as cp1252 or the
    like, which has no letters of most languages. A stream that is closed leads to nowhere, where its number would
    otherwise be that of the next file to be opened, into which libraries then write their warnings.
    """
    for number in range(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)  # the lowest number that is free, so this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _reliable(sys.stdout, waits=True)
    sys.stderr = _reliable(sys.stderr, waits=False)


def _reliable(stream: TextIO | None, *, waits: bool) -> TextIO:
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Outlet(None, waits)), "utf-8", "backslashreplace", None, True)
    if not isinstance(stream, io.TextIOWrapper):  # that of a program of which this is a part
        return stream
    raw = _end_of(stream)
    if isinstance(raw, _Outlet) or not isinstance(raw, io.RawIOBase):
        stream.reconfigure(errors="backslashreplace")
        return stream
    with suppress(OSError):
        stream.flush()
    outlet: Any = _Outlet(stream, waits)
    buffer = outlet if raw is stream.buffer else io.BufferedWriter(outlet)  # `python -u` has no buffers
    buffering = stream.line_buffering, stream.write_through
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", None, *buffering)


def _end_of(stream: Any) -> Any:
    """Returns what a stream finally writes to, without its buffers."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


class _Outlet(io.RawIOBase):
    """The end of a standard stream, which drops what cannot be written.

    Attributes:
        loss: the error of the first write that failed; None if there is none.
        is_told: whether somebody has been told of it.
    """

    def __init__(self, stream: io.TextIOWrapper | None, waits: bool) -> None:
        self._stream, self._waits = stream, waits  # the stream is kept, or its end would close the file
        self._raw: Any = _end_of(stream)
        self._patience_s = _PATIENCE_S
        self.loss: OSError | None = None
        self.is_told = False

    def write(self, data: Any) -> int:
        """Writes all bytes, or drops those that cannot be written; returns how many there were."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = self._write(rest)
                rest = rest[written:]
        except OSError as error:
            self.loss = self.loss or error
        return size

    def _write(self, data: memoryview) -> int:
        """Writes some bytes, and returns how many; waits for a pipe that does not block."""
        if self._raw is None:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        while (written := self._raw.write(data)) is None:
            _, ready, _ = select.select([], [self._raw], [], None if self._waits else self._patience_s)
            self._patience_s = _PATIENCE_S if ready else 0.0
            if not ready:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return int(written)

    @property
    def is_unread(self) -> bool:
        """Whether nobody reads what is written: the reader of a pipe is gone, or the terminal."""
        error = self.loss
        if error is None or error.errno == errno.EPIPE:
            return error is not None
        with suppress(OSError):
            return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
        return False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw is not None and bool(self._raw.isatty())

    def fileno(self) -> int:
        return 1 + (not self._waits) if self._raw is None else int(self._raw.fileno())

    @property
    def name(self) -> str:
        return "<stdout>" if self._waits else "<stderr>"


def answer(text: str, kept: str = "") -> None:
    """Prints a result on standard output, and tells on standard error if it cannot be written there.

    Args:
        text: the result.
        kept: where what was made is, if that is more than the text: "the video is fox.mp4".
    """
    print(text)
    is_told(kept)


def is_told(kept: str = "", *, is_result: bool = True) -> bool:
    """Returns whether all of standard output could be written, or nobody reads it; tells once if it could not.

    Args:
        kept: the part of the message that says what is done all the same.
        is_result: whether it is also told if nobody reads.
    """
    with suppress(OSError):
        sys.stdout.flush()
    outlet = _end_of(sys.stdout)
    if not isinstance(outlet, _Outlet) or outlet.loss is None:
        return True
    if not outlet.is_told:
        outlet.is_told = True
        done = kept and f"; {kept}"
        reason = os.strerror(outlet.loss.errno or 0).lower()
        if not outlet.is_unread:
            tell(f"error: {LtxError(f'cannot write to standard output: {reason}{done}', advice_of(outlet.loss))}")
        elif done and is_result:
            note(f"nobody reads standard output{done}")
    return outlet.is_unread


def note(text: str) -> None:
    """Prints something that the user should know but need not act on."""
    tell(f"note: {text}")


def tell(text: str) -> None:
    """Prints a line on standard error."""
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
