"""A maker that makes videos of noise at once, or when a test lets it, in place of a worker with networks."""

import io
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from ltx_runtime.errors import LtxError
from ltx_runtime.media.video import save_video
from ltx_serve.jobs.folders import THUMBNAIL, VIDEO
from ltx_serve.jobs.job import Job
from ltx_serve.making.events import DECODING, STEP, CancelledError, Event, Tell

STEPS = 4
STAGES = {"denoise 1": 0.5, "decode": 0.25}
REMARKS = {"black": "every frame is black"}


class QuickMaker:
    """Makes noise of the size and length that a job asks for; a prompt with "cannot" is one that it cannot make.

    A test that clears `may_go_on` holds it between its first and its second step.
    """

    def __init__(self, name: str = "quick") -> None:
        self.name = name
        self.made: list[Job] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._job = ""
        self._is_cancelled = threading.Event()

    def make(self, job: Job, folder: Path, tell: Tell) -> dict[str, object]:
        """Writes a video and its first frame; tells of four steps, with a preview of each."""
        self._job = job.id
        self._is_cancelled.clear()
        for step in range(1, STEPS + 1):
            data = {"step": step, "steps": STEPS, "pass": 1, "passes": 1}
            tell(Event(STEP, job.id, 20.0 * step, data, _png(step)))
            while not self.may_go_on.wait(0.01):
                if self._is_cancelled.is_set():
                    raise CancelledError(job.id)
        if "cannot" in job.fields["prompt"]:
            raise LtxError("it cannot be made", "ask for another")
        fields = job.fields
        draws = np.random.default_rng(fields["seed"])
        shape = (fields["num_frames"], fields["height"], fields["width"], 3)
        frames = draws.integers(0, 255, shape, dtype=np.uint8)
        tell(Event(DECODING, job.id, 90.0, {"frame": len(frames), "frames": len(frames)}))
        save_video(iter(frames), folder / VIDEO, (fields["height"], fields["width"]), fields["fps"])
        Image.fromarray(frames[0]).save(folder / THUMBNAIL)
        self.made.append(job)
        result = {"stages": STAGES, "backends": {"transformer": "noise"}, "remarks": REMARKS}
        return result | {"bytes": (folder / VIDEO).stat().st_size}

    def cancel(self, id: str) -> None:
        """Ends the making of a job if it is held."""
        if id == self._job:
            self._is_cancelled.set()

    def close(self) -> None:
        """Has nothing to free."""


def _png(level: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (3, 2), (level, level, level)).save(content, "PNG")
    return content.getvalue()
