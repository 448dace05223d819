"""A maker that is a process of this machine: starts it, gives it orders, listens, and ends it when it must end."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ltx_serve.jobs.failures import MakingError
from ltx_serve.jobs.job import Job
from ltx_serve.making.events import CancelledError, Event, MakerLostError, Tell
from ltx_serve.making.worker import CANCEL, DONE, EVENT, FAILURE, MAKE, READY, STOPPED, TRACEBACK, UNABLE

_log = logging.getLogger("ltx_serve")
_STOP_S = 3.0  # for a worker to stop by itself before it is killed
# The worker finds its modules where the server does.
_PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv.pop())
from ltx_serve.making.worker import main
main()"""
_MEMORY_KILLS = Path("/proc/vmstat"), re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class ProcessMaker:
    """A worker process, started at once and again after it was lost.

    Args:
        name: its name in logs and metrics.
        arguments: arguments of Pipeline by name, as plain data: at least `folder`.
        environment: variables that the process has beside those of this one, such as CUDA_VISIBLE_DEVICES.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._arguments, self._environment = dict(arguments), dict(environment or {})
        self._lock, self._ordering = threading.Lock(), threading.Lock()
        self._job: str | None = None  # under way
        self._is_cancelled = self._is_closed = False
        self._is_ready = False  # whether the process has said that it can make the video under way
        self._process: subprocess.Popen[str] | None = None
        with suppress(MakerLostError):  # told when there is a video to make
            self._running()

    @property
    def pid(self) -> int | None:
        """The number of the process; None while there is none."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def make(self, job: Job, folder: Path, tell: Tell) -> dict[str, Any]:
        """Makes the video of a job, see Maker."""
        process, kills = self._running(), _memory_kills()
        with self._lock:
            self._job, self._is_cancelled, self._is_ready = job.id, False, False
        try:
            order = {"model": job.model, "fields": job.fields, "folder": str(folder), "job": job.id, MAKE: True}
            self._order(process, order)
            result = self._listened(process, job, tell)
            if result is not None:
                return result
        finally:
            with self._lock:
                self._job, is_cancelled = None, self._is_cancelled
        self._forget(process)
        if is_cancelled:
            raise CancelledError(job.id)
        killed = process.returncode == -getattr(signal, "SIGKILL", 0) and _memory_kills() > kills
        raise MakerLostError(_reason(process.returncode), out_of_memory=killed, before_work=not self._is_ready)

    def _listened(self, process: subprocess.Popen[str], job: Job, tell: Tell) -> dict[str, Any] | None:
        """Passes on what the process tells of a job; returns its result, or None if the process has ended."""
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith("\n"):  # cut off by the end of the process
                break
            message: dict[str, Any] = json.loads(line)
            if message["job"] != job.id:
                continue
            if READY in message:
                self._is_ready = True
            elif EVENT in message:
                tell(_event_of(job.id, message[EVENT]))
            elif DONE in message:
                result: dict[str, Any] = message[DONE]
                return result
            elif STOPPED in message:
                raise CancelledError(job.id)
            else:
                self._raise(process, message)
        return None

    def _raise(self, process: subprocess.Popen[str], message: Mapping[str, Any]) -> None:
        """Raises the error that has ended a video; after a bug, the process has ended itself as well.

        Raises:
            MakingError: the video cannot be made.
            MakerLostError: the process could not begin.
        """
        if message[TRACEBACK]:
            _log.error("bug", extra={"job": message["job"], "maker": self.name, TRACEBACK: message[TRACEBACK]})
            self._forget(process)
        if UNABLE in message:
            raise MakerLostError(message[UNABLE], before_work=True)
        raise MakingError(**message[FAILURE])

    def cancel(self, id: str) -> None:
        """Ends the making of a job, see Maker; a process that does not stop in a few seconds is killed."""
        with self._lock:
            if self._job != id or self._is_cancelled or self._process is None:
                return
            self._is_cancelled, process = True, self._process
        timer = threading.Timer(_STOP_S, self._kill, (process, id))
        timer.daemon = True
        timer.start()
        self._order(process, {CANCEL: True, "job": id})

    def _kill(self, process: subprocess.Popen[str], job: str) -> None:
        """Kills the process if it is still busy with a job that was cancelled."""
        with self._lock:
            if self._job == job and self._is_cancelled and self._process is process:
                process.kill()

    def close(self) -> None:
        """Ends the process, and starts no other."""
        with self._lock:
            self._is_closed, process = True, self._process
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()  # upon which it ends
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        if self._job is None:  # otherwise `make` hears of it
            self._forget(process)

    def _running(self) -> subprocess.Popen[str]:
        """Returns the process; starts one if there is none or it has ended meanwhile.

        Raises:
            MakerLostError: it cannot be started.
        """
        with self._lock:
            if self._is_closed:
                raise MakerLostError("the server stops", before_work=True)
            if self._process is not None and self._process.poll() is None:
                return self._process
            if self._process is not None:  # it ended while it had nothing to do
                _close_pipes(self._process)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, json.dumps(self._arguments), json.dumps(sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    encoding="utf-8",
                    env={**os.environ, **self._environment},
                    start_new_session=os.name == "posix",  # Ctrl-C in the terminal is the server's to hear
                )
            except OSError as error:
                reason = f"no process can be started: {os.strerror(error.errno or 0).lower()}"
                raise MakerLostError(reason, before_work=True) from error
            _log.info("worker started", extra={"maker": self.name, "pid": self._process.pid})
            return self._process

    def _order(self, process: subprocess.Popen[str], order: dict[str, Any]) -> None:
        """Writes an order; whether the process has ended meanwhile shows when it is listened to."""
        assert process.stdin is not None
        with suppress(OSError, ValueError), self._ordering:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()

    def _forget(self, process: subprocess.Popen[str]) -> None:
        """Waits for the end of a process that has closed its output, and frees what is held of it."""
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close_pipes(process)
        with self._lock:
            if self._process is process:
                self._process = None


def _close_pipes(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # what nobody read
            pipe.close()


def _event_of(job: str, message: Mapping[str, Any]) -> Event:
    preview = message.get("preview")
    picture = None if preview is None else base64.b64decode(preview)
    return Event(message["kind"], job, message["progress"], message["data"], picture)


def _reason(code: int) -> str:
    """Returns how a process has ended, for people."""
    if code >= 0:
        return f"its process ended with code {code}"
    with suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process was ended by signal {-code}"


def _memory_kills() -> int:
    """Returns how often the system has killed a process for want of memory; 0 where it does not tell."""
    path, pattern = _MEMORY_KILLS
    try:
        count = pattern.search(path.read_text())
    except OSError:
        return 0
    return int(count[1]) if count else 0
