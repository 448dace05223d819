"""A worker: a process that makes one video after another for a server, with the networks of a version kept loaded.

Orders come as lines of JSON on standard input, and what is told goes out as lines on standard output. The process ends
when standard input does, so that it never outlives the server, however that ends.
"""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ltx_runtime import LtxError, Pipeline, Step, TakenError, Video
from ltx_runtime.errors import explaining
from ltx_runtime.files import written_whole
from ltx_runtime.folder.manifest import MANIFEST, Engines
from ltx_runtime.outputs.plain import request_from_fields
from ltx_runtime.outputs.unfinished import place_beside
from ltx_runtime.planning.work import DECODE, denoise_label
from ltx_runtime.sessions import AUTO, find
from ltx_runtime.sessions.found import Found
from ltx_runtime.spec.components import COMPONENT_NAMES, OPTIONAL, ComponentName
from ltx_serve.jobs.failures import making_error_of
from ltx_serve.jobs.folders import THUMBNAIL, VIDEO, sync_folder
from ltx_serve.making.events import DECODING, STEP, CancelledError

# Orders, and what is told; each is a mapping with this key, and the id of the job under "job".
MAKE, CANCEL = "make", "cancel"
READY, EVENT, DONE, STOPPED = "ready", "event", "done", "cancelled"
FAILURE, UNABLE, TRACEBACK = "failure", "unable", "traceback"  # of the job, of this worker, of this program
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_DECODING_PERIOD_S = 0.25
_LOCKED_S, _LOCK_PERIOD_S = 30.0, 0.1
_OOM_SCORE = "500"  # of 1000: if memory runs out, the system ends a worker before the server
_MOST_PERCENT = 99.0  # of a video that is not whole

Send = Callable[[dict[str, Any]], None]


class UnableError(Exception):
    """This worker can make no video of a version, whatever is asked for: it cannot be opened, or nothing runs it."""


def main() -> None:
    """Works until standard input ends; the first argument has the arguments of Pipeline as JSON, see `Worker`."""
    for name in _SIGNALS:  # the server decides when its workers end
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    # What a library prints goes to standard error instead of among the lines.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    Worker(json.loads(sys.argv[1]), answers).work(sys.stdin)


class Worker:
    """Makes the videos that it is ordered to make.

    Args:
        arguments: those of Pipeline by name; `folder` may hold several versions.
        answers: where lines are written to.
    """

    def __init__(self, arguments: Mapping[str, Any], answers: TextIO) -> None:
        self._arguments, self._answers = arguments, answers
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled = ""
        self._pipe: Pipeline | None = None
        self._notes: list[str] = []

    def work(self, lines: TextIO) -> None:
        """Carries out orders; never returns, since the process ends with the lines."""
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()
        while True:
            order = self._orders.get()
            outcome = self._outcome(order)
            self._send(outcome | {"job": order["job"]})
            if outcome.get(TRACEBACK):  # nobody knows what state it has left
                os._exit(1)

    def _listen(self, lines: TextIO) -> None:
        for line in lines:
            order = json.loads(line)
            if CANCEL in order:
                self._cancelled = order["job"]
            else:
                self._cancelled = ""
                self._orders.put(order)
        os._exit(0)  # whatever is under way

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._answers.write(json.dumps(message) + "\n")
            self._answers.flush()
        except OSError:  # the server is gone
            os._exit(0)

    def _outcome(self, order: dict[str, Any]) -> dict[str, Any]:
        """Returns what came of an order."""
        self._notes.clear()
        try:
            with explaining():
                return {DONE: self._make(order)}
        except CancelledError:
            return {STOPPED: True}
        except UnableError as error:
            return {UNABLE: str(error), TRACEBACK: _trace_of(error.__cause__)}
        except Exception as error:
            if isinstance(error, MemoryError):
                self._close()
            failure = making_error_of(error)
            sentence = {"problem": failure.problem, "advice": failure.advice, "command": failure.command}
            return {FAILURE: {"code": failure.code, **sentence}, TRACEBACK: _trace_of(error)}

    def _make(self, order: dict[str, Any]) -> dict[str, Any]:
        """Makes the video, unless an interrupted run has made it, and its first frame; returns the result."""
        job, folder, result = order["job"], Path(order["folder"]), {}
        output = folder / VIDEO

        def check() -> None:
            if self._cancelled == job:
                raise CancelledError(job)

        check()
        if not output.exists():
            pipe = self._pipeline(order["model"])
            self._send({READY: True, "job": job})
            telling = Telling(lambda message: self._send({EVENT: message, "job": job}), check)
            video = self._saved(pipe, order["fields"], output, telling)
            stages = {name: round(seconds, 3) for name, seconds in video.seconds.items()}
            result = {"stages": stages, "backends": video.backends, "remarks": video.remarks, "notes": [*self._notes]}
        else:
            self._send({READY: True, "job": job})
        place_beside(output).unlink(missing_ok=True)  # stays if the run was killed after the video got its name
        write_thumbnail(output, folder / THUMBNAIL)
        sync_folder(folder)
        return {"stages": {}, "backends": {}, "remarks": {}, "notes": [], **result, "bytes": output.stat().st_size}

    def _pipeline(self, model: str) -> Pipeline:
        """Returns the pipeline of a version; that of another version is freed first.

        Raises:
            LtxError: this version alone is gone.
            UnableError: the version cannot be opened, or nothing here can run its networks.
        """
        if self._pipe is not None and self._pipe.version.name == model:
            return self._pipe
        self._close()
        try:
            pipe = Pipeline(**self._arguments, version=model, keep_loaded=True, note=self._notes.append)
            backend = self._arguments.get("backend", AUTO)
            if backend != AUTO:
                found_in(pipe.engines, backend)
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, LtxError) and _is_gone(model, Path(str(self._arguments["folder"]))):
                raise
            reason = str(error) if isinstance(error, LtxError) else type(error).__name__
            raise UnableError(reason) from error
        self._pipe = pipe
        return pipe

    def _close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _saved(self, pipe: Pipeline, fields: Mapping[str, Any], output: Path, telling: Telling) -> Video:
        """Saves the video; goes on from what an interrupted run has left, or begins anew if that cannot be used."""
        unfinished = place_beside(output)
        if unfinished.exists():
            try:
                return _save(_resumed(pipe, unfinished, telling.check), output, telling)
            except (CancelledError, TakenError, MemoryError):
                raise
            except Exception as error:
                self._notes.append(f"begun anew, since what an interrupted run has left cannot be used: {error}")
                unfinished.unlink(missing_ok=True)
        return _save(pipe(request_from_fields(fields, output.parent), overwrite=True), output, telling)


def found_in(engines: Engines, backend: str) -> dict[ComponentName, Found]:
    """Returns what runs each component of a version; optional components that nothing runs are left out.

    Raises:
        LtxError: nothing here runs a component that every video needs.
    """
    found = {name: find(engines, name, backend) for name in COMPONENT_NAMES if name not in OPTIONAL}
    for name in OPTIONAL:
        with suppress(LtxError):
            found[name] = find(engines, name, backend)
    return found


def _is_gone(model: str, engines: Path) -> bool:
    """Returns whether a folder of versions has others but not this one."""
    return not (engines / model).is_dir() and any(engines.glob(f"[!.]*/{MANIFEST}"))


def _trace_of(error: BaseException | None) -> str:
    """Returns the traceback of an error that is a bug of this program; of any other, an empty text."""
    if error is None or isinstance(error, (LtxError, MemoryError)):
        return ""
    return "".join(traceback.format_exception(error))


def _resumed(pipe: Pipeline, unfinished: Path, check: Callable[[], None]) -> Video:
    """Returns the video of an interrupted run; waits for the end of a process that still makes it, of a dead server."""
    until = time.monotonic() + _LOCKED_S
    while True:
        check()
        try:
            return pipe.resume(unfinished, overwrite=True)
        except TakenError:
            if time.monotonic() > until:
                raise
        time.sleep(_LOCK_PERIOD_S)


def _save(video: Video, output: Path, telling: Telling) -> Video:
    telling.work = video.work()
    video.save(output, telling.stage, each_step=telling.step, unfinished=lambda path: None)
    return video


class Telling:
    """Tells how far a video is, and ends its making when that was cancelled.

    Attributes:
        check: raises CancelledError if the video is no longer wanted.
        work: an estimate of the work of each stage by its name, in the order of the stages.
    """

    def __init__(self, tell: Send, check: Callable[[], None]) -> None:
        self._tell, self.check = tell, check
        self.work: dict[str, float] = {}
        self._decoding_at = -float("inf")

    @contextmanager
    def stage(self, name: str, units: int) -> Iterator[Callable[[int], None]]:
        """Implements Progress for every stage."""
        self.check()
        finished = 0

        def advance(done: int) -> None:
            nonlocal finished
            finished += done
            self.check()
            if name == DECODE:
                self._decoding(finished, units)

        yield advance

    def step(self, step: Step) -> None:
        """Tells of a denoising step, with its preview if the version has the colours for one."""
        label, share = denoise_label(step.pass_number, step.passes), (step.index + 1) / step.steps
        data = {"step": step.index + 1, "steps": step.steps, "pass": step.pass_number, "passes": step.passes}
        event = {"kind": STEP, "progress": self._percent(label, share), "data": data}
        self._tell(event | {"preview": _preview(step)})

    def _decoding(self, frame: int, frames: int) -> None:
        now = time.monotonic()
        if frame == frames or now - self._decoding_at > _DECODING_PERIOD_S:
            self._decoding_at = now
            data = {"frame": frame, "frames": frames}
            self._tell({"kind": DECODING, "progress": self._percent(DECODE, frame / frames), "data": data})

    def _percent(self, label: str, share: float) -> float:
        """Returns how much of all work is done when a share of a stage is."""
        before = 0.0
        for name, work in self.work.items():
            if name == label:
                return round(_MOST_PERCENT * (before + share * work) / sum(self.work.values()), 2)
            before += work
        return 0.0


def _preview(step: Step) -> str | None:
    """Returns the picture of the middle of the video as PNG in base64; None if the version has no colours for it."""
    from PIL import Image  # noqa: PLC0415  (with the libraries of the first video)

    try:
        pictures = step.preview()
    except LtxError:
        return None
    png = io.BytesIO()
    Image.fromarray(pictures[len(pictures) // 2]).save(png, "png")
    return base64.b64encode(png.getvalue()).decode()


def write_thumbnail(video: Path, path: Path) -> None:
    """Writes the first frame of a video as WebP, under its name once it is whole."""
    import av  # noqa: PLC0415

    with written_whole(path) as temporary, av.open(str(video.absolute())) as container:
        first: Any = next(container.decode(video=0))
        first.to_image().save(temporary, "webp", quality=80)
