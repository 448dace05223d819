"""Runs programs on hostile folders in a watched process: by an audit hook of Python, and by strace where it works.

The hook sees what Python opens; strace also sees what native libraries open.
"""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0
_LIBRARY = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
MOST_BYTES = 1_000_000_000  # of memory that a refusal may take
# Installed files: of Python, its packages and this project, of the system's libraries, and what the kernel tells.
_PYTHON = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}{sys.version_info.minor}.zip"
_INSTALLED = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(str(ROOT / package) for package in ("ltx_runtime", "ltx_export", "ltx_serve", "tests")),
    *("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/proc", "/sys", "/dev/null", "/dev/urandom"),
    *("/usr/share/zoneinfo", "/usr/share/locale", "/usr/share/misc", "/etc/ssl/openssl.cnf"),
    *("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/etc/locale.alias"),
    *("/usr/sbin/ldconfig", "/sbin/ldconfig", str(Path(sys.prefix) / "pyvenv.cfg")),
    *(str(_PYTHON), os.path.realpath(sys.executable), str(Path(sys.base_prefix) / "lib" / _LIBRARY)),
)
_SEMAPHORES = "/dev/shm/sem."  # of processes that Python starts
_OPENED = re.compile(r'\b(?:open|openat|openat2|creat)\((?:AT_FDCWD|[^,"]*)?(?:, )?"((?:[^"\\]|\\.)*)".*\) = \d')


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        code: its exit code.
        out: what it printed on standard output.
        err: what it printed on standard error.
        opened: real paths of all files and folders that it opened, but for installed ones.
        peak_bytes: memory that it took beyond what the process had before.
        seconds: how long it took.
        traced: whether strace has seen it, too.
    """

    code: int
    out: str
    err: str
    opened: frozenset[str]
    peak_bytes: int
    seconds: float
    traced: bool

    def outside(self, *places: Path) -> set[str]:
        """Returns what it opened outside these folders."""
        inside = [os.path.realpath(place) for place in places]
        return {path for path in self.opened if not _is_below(path, inside)}


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}{os.sep}") for folder in folders)


def strace_works() -> bool:
    """Returns whether strace is installed and may trace a process here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0


class WatchedProcess:
    """A process that runs programs one after another. It is started again when one hangs or crashes.

    Args:
        folder: an empty folder for its own files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / "strace.log"
        self._traces = strace_works()
        self._process: subprocess.Popen[str] | None = None
        self._count = 0

    def run(self, program: str, *arguments: object, cwd: Path, **environment: str) -> Run:
        """Runs `ltx-run`, `ltx-export` or `ltx-serve`, and waits for its end.

        Args:
            program: the program.
            arguments: its arguments.
            cwd: its current folder, below which are its home, cache and data.
            environment: variables that are set for it.

        Raises:
            AssertionError: it hung or crashed.
        """
        process = self._started()
        self._count += 1
        home = {"HOME": str(cwd), "XDG_DATA_HOME": str(cwd / "user-data"), "LTX_CACHE": ""}
        order = {"program": program, "arguments": [str(one) for one in arguments], "cwd": str(cwd)}
        order |= {"environment": home | environment, "mark": str(self._count)}
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], TIMEOUT_S)[0]:
            self.close()
            raise AssertionError(f"{program} {arguments} hung")
        line = process.stdout.readline()
        if not line:
            self.close()
            raise AssertionError(f"{program} {arguments} crashed with {process.returncode}")
        answer = json.loads(line)
        opened = {*answer.pop("opened"), *self._opened_by_system_calls(cwd)}
        places = (*_INSTALLED, str(self._folder))
        own = frozenset(
            path
            for path in opened
            if not (_is_below(path, places) or path in (*sys.path, str(ROOT)) or path.startswith(_SEMAPHORES))
        )
        return Run(**answer, opened=own, traced=self._traces)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            tracer = ["strace", "-f", "-s", "4096", "-e", "trace=%file", "-o", str(self._log)] if self._traces else []
            self._process = subprocess.Popen(
                [*tracer, sys.executable, "-m", "hostile.watched_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
                start_new_session=True,
            )
        return self._process

    def _opened_by_system_calls(self, cwd: Path) -> set[str]:
        """Returns real paths of what the last run opened, as strace has seen it."""
        if not self._traces:
            return set()
        until, text = time.monotonic() + TIMEOUT_S, ""
        while f'"/end-{self._count}"' not in text and time.monotonic() < until:
            text = self._log.read_text(errors="replace")
        _, _, during = text.partition(f'"/begin-{self._count}"')
        paths = (_plain(match[1]) for match in _OPENED.finditer(during.partition(f'"/end-{self._count}"')[0]))
        return {os.path.realpath(cwd / path) for path in paths}

    def close(self) -> None:
        """Ends the process and all that it has started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process = None


def _plain(quoted: str) -> str:
    """Returns a path that strace has quoted like a string of C."""
    return quoted.encode("latin-1", "replace").decode("unicode_escape").encode("latin-1").decode(errors="replace")
