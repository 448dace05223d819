"""Runs the programs of this project in one process, one run after another, and tells which files each run opened.

Orders come as lines of JSON on standard input, and answers go out as lines on standard output. `watched.py` starts it.
"""

import io
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

_READS = ("open", "os.listdir", "os.scandir", "ctypes.dlopen", "subprocess.Popen", "os.posix_spawn", "socket.connect")
_MOST_BYTES = 6_000_000_000  # so that a run that is not refused harms nothing but itself
_RESET_PEAK = "5"

_opened: list[str] = []


def main() -> None:
    """Answers orders until standard input ends."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    sys.addaudithook(_note)
    for line in sys.stdin:
        answers.write(json.dumps(_run(**json.loads(line))) + "\n")
        answers.flush()


def _note(event: str, arguments: tuple[object, ...]) -> None:
    """Notes what is opened, with the end of every link; a descriptor was opened before."""
    if event in _READS and arguments and isinstance(arguments[0], str | bytes | os.PathLike):
        with suppress(ValueError):  # a name that no file can have
            _opened.append(os.path.realpath(os.fsdecode(arguments[0])))


def _run(program: str, arguments: list[str], cwd: str, environment: dict[str, str], mark: str) -> dict[str, object]:
    """Runs a program; returns its exit code, what it printed, the files that it opened, and the memory that it took."""
    run = _PROGRAMS[program]()
    os.chdir(cwd)
    sys.argv = [program, *arguments]
    told, complained = io.StringIO(), io.StringIO()
    before = dict(os.environ)
    os.environ.update(environment)
    resting = _memory("VmRSS")
    _reset_peak()
    os.path.exists(f"/begin-{mark}")  # for whoever traces system calls
    _opened.clear()
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(told))
            stack.enter_context(redirect_stderr(complained))
            code = _code_of(run)
    finally:
        opened = sorted({*_opened})
        os.path.exists(f"/end-{mark}")
        os.environ.clear()
        os.environ.update(before)
    return {
        "code": code,
        "out": told.getvalue(),
        "err": complained.getvalue(),
        "opened": opened,
        "peak_bytes": max(0, _memory("VmHWM") - resting),
        "seconds": time.monotonic() - started,
    }


def _code_of(run: Callable[[], None]) -> int:
    try:
        run()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _memory(field: str) -> int:
    """Returns a line of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def _ltx_run() -> Callable[[], None]:
    from ltx_runtime.cli.main import main

    return main


def _ltx_export() -> Callable[[], None]:
    from ltx_export.cli import main

    return main


def _ltx_serve() -> Callable[[], None]:
    from ltx_serve.cli.main import main

    return main


_PROGRAMS = {"ltx-run": _ltx_run, "ltx-export": _ltx_export, "ltx-serve": _ltx_serve}

if __name__ == "__main__":
    main()
