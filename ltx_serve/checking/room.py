"""The backends that run the networks of a version on this machine, and the memory that its videos have."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ltx_runtime.folder.reading import open_engines
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.processor import total_memory
from ltx_runtime.spec.components import ComponentName
from ltx_serve.making.worker import found_in

_log = logging.getLogger("ltx_serve")


@dataclass(frozen=True)
class Room:
    """The backends and the memory for videos of a version.

    Attributes:
        found: the graph or engine that runs each component; optional components that nothing runs are left out.
        memory_bytes: memory of the GPU that runs the transformer, else of this machine or container.
    """

    found: dict[ComponentName, Found]
    memory_bytes: int


def rooms_of(folders: Iterable[Path], backend: str, *, trust: bool = False) -> dict[Path, Room]:
    """Checks that this machine can make videos of these versions, and returns the room for them.

    A process of its own looks, since a library that only looks for a GPU may take hundreds of MB of it. If that process
    crashes, nothing is known of any room.

    Args:
        folders: version folders.
        backend: a name of BACKENDS, or AUTO.
        trust: whether engines and links in the folders are used that the user has not made on this machine.

    Raises:
        LtxError: a file of a folder is missing or has changed, or nothing here runs one of its networks.
    """
    folders = [*folders]
    try:
        # Ctrl-C reaches the whole group, and is the server's to hear.
        to_ignore = (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), signal.signal, to_ignore) as process:
            room_of = partial(_room_of, backend=backend, trust=trust)
            return dict(zip(folders, process.map(room_of, folders), strict=True))
    except BrokenProcessPool:
        _log.warning("cannot look what runs videos here: the process that looks has crashed")
        return {}


def _room_of(folder: Path, backend: str, trust: bool) -> Room:
    """Returns the room for the videos of a version."""
    engines = open_engines(folder, trust=trust)
    found = found_in(engines, backend)
    return Room(found, found["transformer"].gpu_bytes or total_memory())
