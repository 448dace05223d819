"""Checks requests in a process of its own, since images and clips of strangers may crash what reads them.

The process has limits of time and memory, and is started again if it does not keep them. It answers in JSON, so that
nothing that it says is ever executed.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines

if TYPE_CHECKING:
    from ltx_runtime.planning.request import Request, Resolved

_MOST_IMAGE_PIXELS = 64_000_000  # of an image
_MOST_CLIP_PIXELS = 4096 * 2304  # of each frame of a clip
_MEMORY_BYTES = 4_000_000_000
_START_S, _CHECK_S = 60.0, 30.0


class CheckerLostError(Exception):
    """The process died, or had to be ended, while it checked a request: its media need too much time or memory."""


class Checker:
    """A process that checks one request at a time. Can be used from any thread.

    Args:
        max_pixels: most pixels of a frame of a video.
        max_frames: most frames of a video.
        memory_bytes: memory that all images and clips of a request may take; None for the library's default.
    """

    def __init__(self, max_pixels: int, max_frames: int, memory_bytes: int | None = None) -> None:
        self._limits = (max_pixels, max_frames, memory_bytes)
        self._lock = threading.Lock()
        self._process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Starts the process, which takes a second or two; otherwise the first request would wait for it.

        Raises:
            CheckerLostError: it does not start.
        """
        with self._lock:
            self._ensure()

    def check(self, fields: dict[str, Any], folder: Path, engines: Engines) -> dict[str, Any]:
        """Returns the fields of a request with everything filled in, the seed too, if it can be made.

        Args:
            fields: fields of Request as plain data.
            folder: the folder of its images and clips.
            engines: the version that is to make it.

        Raises:
            LtxError: a field or an image or clip cannot be used.
            CheckerLostError: checking took too much time or memory.
        """
        asked = {"fields": fields, "folder": str(folder), "engines": str(engines.folder)}
        with self._lock:
            try:
                answer = self._answer(json.dumps(asked).encode())
            except BaseException:
                self._end()
                raise
        if "refused" in answer:
            raise LtxError(*answer["refused"])
        filled: dict[str, Any] = answer["fields"]
        return filled

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _answer(self, asked: bytes) -> dict[str, Any]:
        self._ensure()
        assert self._connection is not None
        try:
            self._connection.send_bytes(asked)
            if not self._connection.poll(_CHECK_S):
                raise CheckerLostError(f"checking took more than {_CHECK_S:g} seconds")
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise CheckerLostError("checking took too much memory, or crashed") from None
        if "bug" in answer:
            raise RuntimeError(f"a request could not be checked:\n{answer['bug']}")
        return answer

    def _ensure(self) -> None:
        """Starts the process, unless it lives."""
        if self._process is not None and self._process.is_alive():
            return
        self._end()
        spawned = multiprocessing.get_context("spawn")
        self._connection, theirs = spawned.Pipe()
        self._process = spawned.Process(
            target=_serve, args=(theirs, *self._limits), name="ltx-serve checker", daemon=True
        )
        self._process.start()
        theirs.close()
        if not self._connection.poll(_START_S):
            raise CheckerLostError("the process that checks requests did not start")
        self._connection.recv_bytes()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _serve(connection: Connection, max_pixels: int, max_frames: int, memory_bytes: int | None) -> None:
    """Answers requests until the other end is closed: the main function of the process."""
    import signal  # noqa: PLC0415
    import traceback  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server ends this process
    _limit_memory()
    manifests: dict[str, Engines] = {}
    connection.send_bytes(b"ready")
    while True:
        try:
            asked = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer: dict[str, Any] = {"fields": _checked(asked, manifests, max_pixels, max_frames, memory_bytes)}
        except LtxError as error:
            answer = {"refused": _without_places(error, asked)}
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


def _checked(
    asked: dict[str, Any], known: dict[str, Engines], max_pixels: int, max_frames: int, memory_bytes: int | None
) -> dict[str, Any]:
    """Returns the fields of a request with everything filled in; raises LtxError if it cannot be made."""
    from ltx_runtime.folder.manifest import read_manifest  # noqa: PLC0415
    from ltx_runtime.folder.release import release_of  # noqa: PLC0415
    from ltx_runtime.media.video import check_output  # noqa: PLC0415
    from ltx_runtime.outputs.plain import fields_of_request, request_from_fields  # noqa: PLC0415
    from ltx_runtime.planning.backends import needed  # noqa: PLC0415
    from ltx_runtime.planning.choices import FROM_IMAGE  # noqa: PLC0415
    from ltx_runtime.planning.media import filled, media_of  # noqa: PLC0415
    from ltx_runtime.planning.options import RunOptions  # noqa: PLC0415
    from ltx_runtime.planning.plan import plan  # noqa: PLC0415
    from ltx_runtime.planning.request import resolved  # noqa: PLC0415

    folder, engines = Path(asked["folder"]), known.get(asked["engines"])
    if engines is None:
        engines = known[asked["engines"]] = Engines(Path(asked["engines"]), read_manifest(Path(asked["engines"])))
    version, manifest = release_of(engines.manifest), engines.manifest
    request = request_from_fields(asked["fields"], folder)
    if not request.prompt.strip():
        raise LtxError("prompt is missing", "say what the video shows")
    _check_headers(request, max_frames)
    sized = request.fit == FROM_IMAGE
    request = resolved(filled(request, version, memory_bytes), version)
    _check_size(request, max_pixels, max_frames)
    planned = plan(request, version, manifest.schedule, manifest.allowed_sigmas)
    for name in needed(planned, RunOptions()):
        engines.component(name)
    media_of(planned, memory_bytes, sized=sized)
    check_output(folder / "video.mp4", request.height, request.width, planned.ending.fps, folder_exists=False)
    return fields_of_request(planned.request, folder)


def _check_headers(request: Request, max_frames: int) -> None:
    """Refuses images and clips that are too large by what their headers say, before any of their pixels is read."""
    from ltx_runtime.media.pictures import label_of, opened  # noqa: PLC0415

    sources = [one.media for one in request.conditions]
    for source in sources if request.video is None else [*sources, request.video]:
        with opened(source) as pictures:
            facts = pictures.facts
        is_image = facts.frames == 1 and facts.fps is None
        most = _MOST_IMAGE_PIXELS if is_image else _MOST_CLIP_PIXELS
        height, width = facts.stored_size or (facts.height, facts.width)
        if height * width > most:
            raise LtxError(
                f"{label_of(source)} is {width}x{height} pixels, and {most} are the most that are read of "
                f"{'an image' if is_image else 'a frame of a clip'}",
                "make it smaller",
            )
        is_counted = source is request.video and request.num_frames is None and request.duration is None
        if is_counted and facts.frames is not None and facts.frames > max_frames:
            raise LtxError(
                f"{label_of(source)} has {facts.frames} frames, and a video has at most {max_frames}", "give num-frames"
            )


def _check_size(request: Resolved, max_pixels: int, max_frames: int) -> None:
    """Refuses videos that are larger or longer than the server makes."""
    if request.height * request.width > max_pixels:
        raise LtxError(
            f"size {request.width}x{request.height} has {request.height * request.width} pixels, and a frame has at "
            f"most {max_pixels} here",
            "use a smaller size",
        )
    if request.num_frames > max_frames:
        raise LtxError(
            f"num-frames is {request.num_frames}, and a video has at most {max_frames} here", "ask for a shorter one"
        )


def _without_places(error: LtxError, asked: dict[str, Any]) -> list[str]:
    """Returns the parts of an error without the server's folders, which are nobody else's business."""
    engines = Path(asked["engines"])
    places = {f"{asked['folder']}/": "", str(engines): engines.name}
    parts = [error.problem, error.advice]
    for place, name in places.items():
        parts = [part.replace(place, name) for part in parts]
    return parts
