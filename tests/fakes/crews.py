"""A maker of videos that does what each job says, and a crew of such makers to test what becomes of the jobs."""

import errno
import threading
import time
from contextlib import contextmanager

from ltx_runtime import LtxError
from ltx_runtime.errors import explaining
from ltx_serve.jobs.folders import Folders
from ltx_serve.jobs.job import Job, new_id
from ltx_serve.jobs.store import Store
from ltx_serve.making.crew import Crew
from ltx_serve.making.events import STEP, CancelledError, Event, MakerLostError
from ltx_serve.settings import Settings

RESULT = {"stages": {"decode": 0.5}, "backends": {}, "notes": [], "bytes": 5}
STEPS = 3
PATIENCE_S = 20.0


class FakeMaker:
    """Does what the field `does` of a job lists, one word for each attempt; the last one is for all that follow.

    make: the video. wait, make late: nothing until it is cancelled; then it stops, or makes the video all the same.
    refuse, moved, memory, full, bug: raises an error. lose, starve: is gone; the system had no more memory.
    """

    def __init__(self, name: str = "maker-1") -> None:
        self.name, self.begun, self.is_closed = name, [], False
        self._cancelled = threading.Event()
        self._job = None

    def make(self, job, folder, told):
        assert self._job is None and not self.is_closed
        self._job = job.id
        self._cancelled.clear()
        self.begun.append(job.id)
        try:
            does = job.fields.get("does", ["make"])
            return self._done(does[min(job.attempts, len(does)) - 1], job, folder, told)
        finally:
            self._job = None

    def _done(self, what, job, folder, told):
        for step in range(1, STEPS + 1):
            data = {"step": step, "steps": STEPS, "pass": 1, "passes": 1}
            told(Event(STEP, job.id, 30.0 * step, data, b"PNG"))
            time.sleep(job.fields.get("step_s", 0))
            if self._cancelled.is_set() and what == "make":
                raise CancelledError(job.id)
        (folder / "video.mp4.unfinished").touch()
        if what in ("wait", "make late"):
            assert self._cancelled.wait(PATIENCE_S)
            if what == "wait":
                raise CancelledError(job.id)
        if what in ("make", "make late"):
            (folder / "video.mp4").write_text("video")
            return RESULT
        raise ERRORS[what](folder)

    def cancel(self, id):
        if self._job == id:
            self._cancelled.set()

    def close(self):
        self.is_closed = True


def _full(folder):
    try:
        with explaining(f"write {folder / 'video.mp4'}"):
            raise OSError(errno.ENOSPC, "")
    except LtxError as error:
        return error


ERRORS = {
    "refuse": lambda folder: LtxError(f"{folder / 'input-1.png'} is no picture", "give another", "ltx-run --help"),
    "moved": lambda folder: LtxError(f"{folder.parents[1] / 'demo'} has no manifest"),
    "memory": lambda folder: MemoryError(),
    "full": _full,
    "bug": lambda folder: ZeroDivisionError("of a secret"),
    "lose": lambda folder: MakerLostError("its process was ended by SIGSEGV"),
    "starve": lambda folder: MakerLostError("its process was ended by SIGKILL", out_of_memory=True),
}


class Works:
    """A store, its folders and a crew in a folder, as a server has them.

    Args:
        root: the folder.
        makers: the makers, or how many fakes.
        settings: fields of Settings.
    """

    def __init__(self, root, makers=1, store=Store, **settings) -> None:
        self.settings = Settings(root, root, **settings)
        self.store = store(root / "jobs.sqlite", self.settings.max_queue, self.settings.keep_days)
        self.folders = Folders(root / "videos")
        self.makers = [FakeMaker(f"maker-{n + 1}") for n in range(makers)] if isinstance(makers, int) else makers
        self.crew = Crew(self.store, self.folders, self.settings, self.makers)

    def add(self, *does, **fields):
        """Accepts a job, as a server does, and returns its id."""
        job = Job(new_id(), "demo", {**fields, **({"does": list(does)} if does else {})})
        (self.folders.make(job.id) / "input-1.png").touch()
        self.store.add(job)
        self.crew.notify()
        return job.id

    def ended(self, *ids):
        """Waits for the end of jobs, and until nobody is busy with them; returns them as they are then."""
        self.until(lambda: all((job := self.store.get(id)) is None or job.is_over for id in ids))
        self.until(lambda: not {*ids} & {*self.crew.busy.values()})
        return [self.store.get(id) for id in ids]

    def until(self, holds):
        """Waits until something holds, which it soon must."""
        until = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < until, self.store.counts()
            time.sleep(0.005)

    def files(self, id):
        """Returns the names of the files in the folder of a job; None if there is no folder."""
        folder = self.folders.of(id)
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else None

    def close(self):
        self.crew.stop(0)
        self.store.close()


@contextmanager
def working(root, makers=1, **settings):
    """Yields works that have started."""
    works = Works(root, makers, **settings)
    works.crew.start()
    try:
        yield works
    finally:
        works.close()
