"""Runs a program in a fork of this process and kills it at one of its dealings with files, those of libraries included.

A seccomp filter stops the program at every system call that changes files, before it takes place; the parent counts
them with ptrace, and kills all processes of the program at the chosen one. So what is then on the disk is every state
that a kill can leave. Linux on x86-64 and ARM64 only.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Numbers of system calls on x86-64 and on ARM64, which lacks those that are None.
_NUMBERS = {
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None),
    "mkdir": (83, None), "mkdirat": (258, 34), "creat": (85, None), "truncate": (76, 45),
}  # fmt: skip
_ON_DESCRIPTOR = {
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "pwritev": (296, 70), "ftruncate": (77, 46),
    "fallocate": (285, 47),
}  # fmt: skip
_OPENING = {"open": ((2, 1), None), "openat": ((257, 2), (56, 2))}  # with the place of the flags in the arguments
_MACHINES = ("x86_64", "aarch64")

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_STOP, _ALLOW = 0x7FF00000, 0x7FFF0000
_ARGUMENTS_AT = 16
_TRACE_ME, _CONTINUE, _SET_OPTIONS, _SYSCALL_INFO = 0, 7, 0x4200, 0x420E
_OPTIONS = (
    0x00100000 | 0x80 | 0x10 | 0x8 | 0x4 | 0x2
)  # killed with the parent; stops at the filter, execs, threads, forks
_SECCOMP_STOP = 7
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_ALL_CHILDREN = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


@dataclass
class Ended:
    """How a program has ended.

    Attributes:
        events: the system calls that changed files in the folder, or would have, in their order.
        code: exit code; None if it was killed.
        text: what it wrote to standard output and standard error.
    """

    events: list[str] = field(default_factory=list)
    code: int | None = None
    text: str = ""


def is_possible() -> bool:
    """Returns whether programs can be traced on this machine."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    try:
        return traced(lambda: None, Path("/")).code == 0
    except OSError:
        return False


def traced(program: Callable[[], None], folder: Path, kill_at: int = 0, signals: tuple[int, ...] = ()) -> Ended:
    """Runs a program, and kills it before its event number `kill_at`, counted from 1; 0 lets it end.

    Args:
        program: is called in a fork of this process, with `folder` as the working directory.
        folder: events are counted that concern files in this folder.
        kill_at: number of the event.
        signals: numbers of further events at which it gets Ctrl-C instead, and goes on.
    """
    ended, read_end = Ended(), _Output()
    main = os.fork()
    if main == 0:
        _become(program, folder, read_end)
    try:
        os.waitpid(main, 0)
        _ptrace(_SET_OPTIONS, main, _OPTIONS)
        _ptrace(_CONTINUE, main, 0)
        ended.code = _watched(main, str(folder.resolve()), ended.events, kill_at, signals)
    finally:
        ended.text = read_end.text()
    return ended


class _Output:
    """A file without a name that takes what a program writes to standard output and standard error."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("output")

    def take(self) -> None:
        for standard in (1, 2):
            os.dup2(self._descriptor, standard)

    def text(self) -> str:
        raw = os.pread(self._descriptor, 1 << 20, 0)
        os.close(self._descriptor)
        return raw.decode(errors="replace")


def _become(program: Callable[[], None], folder: Path, output: _Output) -> None:
    """Turns this process, which was just forked, into the program."""
    code = 1
    try:
        output.take()
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
        os.chdir(folder)
        _libc.ptrace(_TRACE_ME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        _install_filter()
        program()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _install_filter() -> None:
    """Makes the kernel stop this process, and all that come from it, at system calls that change files."""
    arm = _MACHINES.index(platform.machine())
    code = [(_LOAD, 0, 0, 0)]
    for numbers in _NUMBERS.values():
        if numbers[arm] is not None:
            code += [(_EQUAL, 0, 1, numbers[arm]), (_RETURN, 0, 0, _STOP)]
    for number in (numbers[arm] for numbers in _ON_DESCRIPTOR.values()):
        code += _if_argument(number, 0, _GREATER, 2)
    for opening in _OPENING.values():
        if (numbered := opening[arm]) is not None:
            code += _if_argument(*numbered, _ANY_BIT, os.O_CREAT | os.O_TRUNC)
    code.append((_RETURN, 0, 0, _ALLOW))
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    program = _Filter(len(code), packed)
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if _libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "there is no seccomp")


def _if_argument(number: int, place: int, test: int, value: int) -> list[tuple[int, int, int, int]]:
    """Returns the instructions that stop at a system call if one of its arguments passes a test."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * place),
        (test, 0, 1, value),
        (_RETURN, 0, 0, _STOP),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _ptrace(request: int, process: int, data: int) -> None:
    if _libc.ptrace(request, process, None, data) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _watched(main: int, folder: str, events: list[str], kill_at: int, signals: tuple[int, ...]) -> int | None:
    """Lets a program go on until it ends or is killed; returns its exit code, or None."""
    processes = {main}
    while True:
        process, status = os.waitpid(-1, _ALL_CHILDREN)
        if not os.WIFSTOPPED(status):
            processes.discard(process)
            if process == main:
                _kill(processes)
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            continue
        passed_on = 0
        if process not in processes:
            processes.add(process)  # a thread or a fork begins with a stop of its own
        elif status >> 16 == _SECCOMP_STOP:
            name = _event(process, folder)
            events += [name] if name else []
            if name and len(events) == kill_at:
                _kill(processes)
                continue
            if name and len(events) in signals:
                os.kill(main, signal.SIGINT)
        elif status >> 16 == 0:
            passed_on = os.WSTOPSIG(status)
        try:
            _ptrace(_CONTINUE, process, passed_on)
        except ProcessLookupError:
            continue


def _kill(processes: set[int]) -> None:
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _event(process: int, folder: str) -> str:
    """Returns the name of the system call at which a process stands; empty if it writes to no file of the folder."""
    info = ctypes.create_string_buffer(88)
    _libc.ptrace(_SYSCALL_INFO, process, ctypes.c_void_p(len(info)), ctypes.cast(info, ctypes.c_void_p))
    number, first = struct.unpack_from("QQ", info.raw, 24)
    arm = _MACHINES.index(platform.machine())
    for name, numbers in _ON_DESCRIPTOR.items():
        if numbers[arm] == number:
            try:
                return name if os.readlink(f"/proc/{process}/fd/{first}").startswith(folder) else ""
            except OSError:
                return ""
    every = {**_NUMBERS, **{name: tuple(one and one[0] for one in both) for name, both in _OPENING.items()}}
    return next((name for name, numbers in every.items() if numbers[arm] == number), str(number))
