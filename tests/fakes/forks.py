"""ltx-run on the fake stages, again and again: each run is a fork of a process that has imported everything.

Usage: python forks.py; jobs come as lines of JSON on standard input, and a line of JSON goes out for each. Something
can happen to a run at its dealings with files: the disk fills up, or signals arrive.
"""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from fakes.program import EVENTS, install_fake_stages

TESTS = Path(__file__).parents[1]
_BALLAST, _CHUNK = "ballast", b"x" * 4096
_MOUNTED = 'mount -t tmpfs -o size=$SIZE none "$1" && shift && exec "$@"'
_KINDS = ("stdout", "stderr")


def can_mount() -> bool:
    """Returns whether a small disk can be had: in a namespace of its own, anyone may mount one."""
    with suppress(OSError):
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    return False


class Forks:
    """The process that runs ltx-run, in a folder that is a small disk if a size is given.

    Args:
        folder: the working folder.
        disk: its size, as mount takes it; only this process and its children see the disk.
    """

    def __init__(self, folder: Path, disk: str = "") -> None:
        command = [sys.executable, __file__]
        if disk:
            command = ["unshare", "-rm", "sh", "-c", _MOUNTED, "sh", str(folder), *command]
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        environment = os.environ | {"PYTHONPATH": paths, "SIZE": disk, "LTX_CACHE": "", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout.readline(), "it did not start"  # from now on, there is the disk
        self.folder, self._told = folder, folder.with_name(f"{folder.name}-told")
        self._told.mkdir()
        self.place = Path(f"/proc/{self._process.pid}/root{folder}")  # the folder, also if it is a disk of the process

    def run(self, *words, **happening):
        """Runs ltx-run; returns the exit code, standard output and error, and how often it dealt with files.

        Args:
            words: its arguments.
            happening: `fill_at`, the number of the event at which the disk fills up; `signals`, pairs of the number of
                an event and the name of a signal; `on_disk`, whether both streams are files on the disk.
        """
        job = {"words": [str(word) for word in words], "folder": str(self.folder), "told": str(self._told), **happening}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["stdout"], answer["stderr"], answer["events"]

    def make_room(self) -> None:
        """Empties the disk of what has filled it."""
        (self.place / _BALLAST).unlink(missing_ok=True)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def command_in(err: str) -> list[str]:
    """Returns the words of the command to go on with that was told last; empty if there is none."""
    lines = [line.partition("go on with: ltx-run ")[2] for line in err.splitlines()]
    return shlex.split(([""] + [line for line in lines if line])[-1])


def fill() -> None:
    """Fills the disk of the working folder to the last byte."""
    with suppress(OSError), open(_BALLAST, "ab", buffering=0) as file:
        while True:
            file.write(_CHUNK)


def _watch(job) -> list[str]:
    """Lists dealings with files from now on, and makes what is to happen at some of them happen."""
    events, signals = [], dict(job.get("signals", ()))

    def heard(event, arguments):
        if event not in EVENTS or (event == "open" and str(arguments[0]).endswith((".py", ".pyc", ".so", _BALLAST))):
            return
        events.append(event)
        if len(events) == job.get("fill_at"):
            fill()
        if len(events) in signals:
            os.kill(os.getpid(), getattr(signal, signals[len(events)]))

    sys.addaudithook(heard)
    return events


def _run(job) -> None:
    """Runs a job in this process, and ends it."""
    from ltx_runtime.cli import __main__ as program

    os.chdir(job["folder"])
    place = job["folder"] if job.get("on_disk") else job["told"]
    for number, kind in enumerate(_KINDS, start=1):
        file = os.open(f"{place}/{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["ltx-run", *job["words"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    events, code = _watch(job), 1
    try:
        program.main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        with suppress(OSError):
            Path(job["told"], "events").write_text(str(len(events)))
        os._exit(code)


def main() -> None:
    """Imports what a run needs, and forks for every job."""
    for module in ("av", "PIL.GifImagePlugin", "PIL.PngImagePlugin", "ltx_runtime.pipeline", "ltx_runtime.cli.batch"):
        importlib.import_module(module)
    install_fake_stages()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        job = json.loads(line)
        told = Path(job["told"])
        for kind in (*_KINDS, "events"):
            (told / kind).write_text("")
        child = os.fork()
        if not child:
            sys.stdin.close()
            _run(job)
        _, status = os.waitpid(child, 0)
        answer = {kind: (told / kind).read_text(errors="replace") for kind in _KINDS}
        events = (told / "events").read_text()
        answer |= {"code": os.waitstatus_to_exitcode(status), "events": int(events or -1)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
