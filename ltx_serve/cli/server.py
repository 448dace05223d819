"""The server process: opens the queue, starts the workers, answers requests, and stops in an orderly way."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from contextlib import ExitStack, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ltx_runtime.cli.streams import answer, note
from ltx_runtime.errors import LtxError, printable
from ltx_runtime.sessions.processor import cores
from ltx_serve.checking.room import rooms_of
from ltx_serve.cli.connections import ImpatientProtocol
from ltx_serve.http.application import application
from ltx_serve.http.models import Models
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.store import Store
from ltx_serve.making.crew import Crew
from ltx_serve.making.logs import JsonFormatter
from ltx_serve.making.workers import gpus_of, workers_of
from ltx_serve.settings import STOPPING, Settings, url_of

_BACKLOG = 1024
_MOST_FILES = 65_536
_GOODBYE_S = 5  # for answers under way when the server stops


def serve(settings: Settings) -> None:
    """Serves until the process is told to end, and then stops: videos under way are finished or queued again.

    Raises:
        LtxError: there are no engines or nothing here runs them, the folder of the data cannot be written or is in use,
            or the address is taken.
    """
    _log_to_stderr()
    _allow_many_files()
    models = Models(settings.engines, trust=settings.trust_engines)
    with ExitStack() as stack:
        listener = stack.enter_context(listener_on(settings.host, settings.port))
        folders = [model.engines.folder for model in models]
        rooms = rooms_of(folders, settings.backend, trust=settings.trust_engines)
        store = Store(settings.data / "jobs.sqlite", settings.max_queue, settings.keep_days)
        stack.callback(store.close)
        jobs = Folders(settings.data / "videos")
        crew = Crew(store, jobs, settings, workers_of(settings))
        app = application(settings, crew, store, jobs, rooms)
        crew.start()
        stack.callback(crew.stop, settings.grace_s)
        _note_workers(settings)
        _greet(listener, settings, models)
        # uvicorn ends its answers and raises the signal again, which `reported` makes an exception.
        with suppress(KeyboardInterrupt):
            server_of(app).run(sockets=[listener])
        print(STOPPING, file=sys.stderr)


class _Server(uvicorn.Server):
    """uvicorn, which tells the application that it is to stop, so that streams of events end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops after SIGINT or SIGTERM."""
        self.config.app.state.is_stopping = True  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def server_of(app: FastAPI) -> uvicorn.Server:
    """Returns what serves an application over HTTP/1.1, to clients that do not keep it waiting."""
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GOODBYE_S,
        proxy_headers=False,
    )
    return _Server(config)


def listener_on(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; before anything is loaded, so that a port that is taken is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise LtxError(f"there is no address {host}", "use 127.0.0.1, or 0.0.0.0 for all of this machine") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would share the port with another server
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port) from None
    return listener


def _explained(error: OSError, host: str, port: int) -> LtxError:
    if error.errno == errno.EADDRINUSE:
        return LtxError(f"port {port} of {host} is taken", "add --port and another number, or --port 0 for a free one")
    if error.errno == errno.EACCES:
        return LtxError(f"port {port} is for programs of the system alone", "use --port 8000")
    return LtxError(f"cannot listen on {host}: {os.strerror(error.errno or 0).lower()}", "use 127.0.0.1")


def _greet(listener: socket.socket, settings: Settings, models: Models) -> None:
    """Prints where the page is, and what is served."""
    names = ", ".join(model.version.name for model in models)
    url, place = url_of(*listener.getsockname()[:2]), printable(str(settings.data))
    answer(f"{url} serves {names}; videos are in {place}", "it serves all the same")


def _note_workers(settings: Settings) -> None:
    """Notes that there are more workers than cores, if they compute on the processor."""
    if settings.workers is not None and settings.workers > cores() and not gpus_of(settings.backend):
        note(f"{settings.workers} workers share {cores()} cores, and each loads its own models - use --workers 1")


def _log_to_stderr() -> None:
    """Logs as JSON; a terminal shows lines for people."""
    handler = logging.StreamHandler()
    if not sys.stderr.isatty():
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("ltx_serve").setLevel(logging.INFO)


def _allow_many_files() -> None:
    """Raises the limit of open files and connections to what the system allows."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
