"""The process that checks requests, with limits of time and memory; it is started again when it has exceeded them.

It answers in JSON and not with pickled objects, which could make the server run code of whoever has taken the process
over by a damaged image.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from collections.abc import Collection, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_serve.checking.room import Room
from ltx_serve.jobs.failures import without_folders

_MEMORY_BYTES = 4_000_000_000
_START_S, _CHECK_S = 60.0, 30.0


class CheckerLostError(Exception):
    """The process died, or had to be ended, while it checked a request: its media need too much time or memory."""


class CheckerMissingError(Exception):
    """The process does not start, or the server stops: nothing is known of the request."""


class Checker:
    """A process that checks one request at a time. Can be used from any thread.

    Args:
        max_pixels: most pixels of a frame of a video.
        max_frames: most frames of a video.
        memory_bytes: memory that the VAE, and all images and clips of a request, may take; None for the library's
            default.
        rooms: the room for the videos of each version, by its folder; where it is not known, any size is accepted.
    """

    def __init__(
        self,
        max_pixels: int,
        max_frames: int,
        memory_bytes: int | None = None,
        rooms: Mapping[Path, Room] | None = None,
    ) -> None:
        self._limits = (max_pixels, max_frames, memory_bytes, dict(rooms or {}))
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._is_closed = False

    def start(self) -> None:
        """Starts the process, which takes a second or two; otherwise the first request would wait for it.

        Raises:
            CheckerMissingError: it does not start.
        """
        with self._lock:
            self._ensure()

    def check(
        self, fields: dict[str, Any], folder: Path, engines: Engines, sent: Collection[str] = ()
    ) -> dict[str, Any]:
        """Returns the fields of a request with everything filled in, the seed too, if it can be made.

        Args:
            fields: fields of Request as plain data.
            folder: the folder of its images and clips.
            engines: the version that is to make it.
            sent: names of the fields that the client sent, since some are of other fields here.

        Raises:
            LtxError: a field or an image or clip cannot be used.
            CheckerLostError: checking took too much time or memory.
            CheckerMissingError: the process does not start, or `close` was called.
        """
        order = {"fields": fields, "folder": str(folder), "engines": str(engines.folder), "sent": [*sent]}
        with self._lock:
            try:
                answer = self._answer(json.dumps(order).encode())
            except BaseException:
                self._end()
                raise
        if "refused" in answer:
            raise LtxError(*answer["refused"])
        filled: dict[str, Any] = answer["fields"]
        return filled

    def close(self) -> None:
        """Ends the process at once, and with it a check that is under way; no other one is started."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()  # without the lock, which a check holds while it waits for the process
        with self._lock:
            self._end()

    def _answer(self, order: bytes) -> dict[str, Any]:
        self._ensure()
        assert self._connection is not None
        try:
            self._connection.send_bytes(order)
            if not self._connection.poll(_CHECK_S):
                raise CheckerLostError(f"checking took more than {_CHECK_S:g} seconds")
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError, ValueError):
            self._check_open()
            raise CheckerLostError("checking took too much memory, or crashed") from None
        if "bug" in answer:
            raise RuntimeError(f"a request could not be checked:\n{answer['bug']}")
        return answer

    def _ensure(self) -> None:
        """Starts the process, unless it lives."""
        self._check_open()
        if self._process is not None and self._process.is_alive():
            return
        self._end()
        spawned = multiprocessing.get_context("spawn")
        self._connection, theirs = spawned.Pipe()
        process = spawned.Process(target=_serve, args=(theirs, *self._limits), name="ltx-serve checker", daemon=True)
        try:
            process.start()
            theirs.close()
            self._process = process
            self._check_open()  # `close` ends the process that it finds, or has been called before and is found here
            if not self._connection.poll(_START_S):
                raise CheckerMissingError(f"it did not start in {_START_S:g} seconds")
            self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            self._end()
            raise CheckerMissingError(f"it did not start: {error or 'it ended at once'}") from None
        except BaseException:
            self._end()
            raise

    def _check_open(self) -> None:
        if self._is_closed:
            raise CheckerMissingError("the server stops")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _serve(connection: Connection, *limits: Any) -> None:
    """Answers requests within the limits of Checks until the other end is closed: the main function of the process."""
    import signal  # noqa: PLC0415
    import traceback  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server ends this process
    _limit_memory()
    from ltx_serve.checking.checks import Checks  # noqa: PLC0415

    checks = Checks(*limits)
    connection.send_bytes(b"ready")
    while True:
        try:
            order = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        folder, engines = Path(order["folder"]), Path(order["engines"])
        try:
            answer: dict[str, Any] = {"fields": checks.check(order["fields"], folder, engines, order["sent"])}
        except LtxError as error:
            answer = {"refused": [without_folders(part, folder, engines) for part in (error.problem, error.advice)]}
        except MemoryError:
            return  # what was left behind is not worth the risk: the next request gets a fresh process
        except Exception:
            answer = {"bug": traceback.format_exc()}
        connection.send_bytes(json.dumps(answer).encode())


def _limit_memory() -> None:
    """Limits the memory of this process, where the system can: an allocation beyond it fails."""
    if sys.platform != "linux":
        return
    import resource  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
