"""Cancels demo videos at random moments in one process; after each, nothing is left and the next video is right.

    python tests/soak/cancels.py engines/demo [--cancels 2000]

Ways to cancel: a generator of steps or frames is closed, a callback of a step, a stage or a unit of work raises, the
process gets SIGINT (which it sends itself when a timer's SIGALRM comes) while it saves, a second thread ends the video
that another one makes. The moments are spread evenly over the time that a whole video takes. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from soak.usage import Usage, grown, growth_of, table_of, usage_of

from ltx_runtime import VERSIONS, Pipeline, Request

SMALL = Request("A red fox", height=64, width=96, num_frames=9, seed=7)
KEPT_SHARE = 0.75  # of the cancels, since a video takes three times as long if its networks are opened for it
STEPS = sum(one.steps - one.skip_initial_steps - one.skip_final_steps for one in VERSIONS["demo"].passes)
FRAMES = 9
SETTLED_S = 1.0
UNITS = STEPS + FRAMES + 4  # text and upscale, too, and some more than that


class CancelError(Exception):
    """Raised by a callback."""


def _settled(before: Usage) -> Usage:
    """Returns what the process holds, once the system has ended threads that are joined already."""
    until = time.monotonic() + SETTLED_S
    while (after := usage_of()).threads > before.threads and time.monotonic() < until:
        time.sleep(0.001)
    return after


class Cancelled:
    """Cancels videos of two pipelines, one of which keeps its networks loaded, and checks what is left.

    Args:
        engines: the version folder.
        folder: where files are.
        seed: of the choice of moments.
        options: arguments of Pipeline.
    """

    def __init__(self, engines: Path, folder: Path, seed: int = 0, **options: Any) -> None:
        self.counts: Counter[str] = Counter()
        self._random, self._folder = Random(seed), folder
        self._outputs, self._temporary = folder / "outputs", folder / "temporary"
        for place in (self._outputs, self._temporary):
            place.mkdir()
        self._pipes = [Pipeline(engines, note=lambda line: None, keep_loaded=keep, **options) for keep in (True, False)]
        self._pipe = self._pipes[0]
        self._whole = self._made()
        began = time.perf_counter()
        self._made()
        self._duration_s = time.perf_counter() - began
        self._ways: tuple[Callable[[], bool], ...] = (
            self.steps_closed,
            self.frames_closed,
            self.step_raises,
            self.progress_raises,
            self.signalled,
            self.signalled,
            self.thread_ended,
        )

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()

    def _made(self) -> bytes:
        """Makes a video, undisturbed, and returns its bytes."""
        path = self._pipe(SMALL, metadata=False).save(self._outputs / "whole.mp4")
        saved = path.read_bytes()
        path.unlink()
        return saved

    def once(self) -> None:
        """Cancels a video, checks that nothing is left of it, and that the next one is right."""
        (self._pipe,) = self._random.choices(self._pipes, (KEPT_SHARE, 1 - KEPT_SHARE))
        way = self._random.choice(self._ways)
        before = usage_of()
        came = "cancelled" if way() else "too late"
        self.counts[f"{way.__name__}, {came}"] += 1
        gc.collect()  # a signal may come inside of contextlib, whose frames hold each other and what they have to close
        left = [path.name for place in (self._outputs, self._temporary) for path in place.rglob("*")]
        assert not left, f"{way.__name__} has left {left}"
        after = _settled(before)
        assert after.descriptors <= before.descriptors, f"{way.__name__} has left descriptors: {before}, {after}"
        assert after.threads <= before.threads, f"{way.__name__} has left threads: {before}, {after}"
        assert self._made() == self._whole, f"the video after {way.__name__} has other bytes"

    def steps_closed(self) -> bool:
        """Leaves the loop over the steps."""
        last = self._random.randrange(STEPS)
        for number, _ in enumerate(self._pipe(SMALL).steps()):
            if number == last:
                return True
        raise AssertionError("there were too few steps")

    def frames_closed(self) -> bool:
        """Leaves the loop over the frames."""
        last = self._random.randrange(FRAMES)
        frames = self._pipe(SMALL).frames()
        for number, _ in enumerate(frames):
            if number == last:
                frames.close()
                return True
        raise AssertionError("there were too few frames")

    def step_raises(self) -> bool:
        """Raises in the function that is called with each step."""
        return self._raising(self._random.randrange(STEPS), of_steps=True)

    def progress_raises(self) -> bool:
        """Raises where the progress of a stage is told."""
        return self._raising(self._random.randrange(2 * UNITS), of_steps=False)

    def _raising(self, last: int, *, of_steps: bool) -> bool:
        heard = 0

        def hear(*_: Any) -> None:
            nonlocal heard
            heard += 1
            if heard > last:
                raise CancelError

        @contextmanager
        def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
            hear()
            yield hear

        callbacks = {"each_step": hear} if of_steps else {"progress": progress}
        return self._saved(CancelError, callbacks)

    def _saved(self, error: type[BaseException], callbacks: dict[str, Any]) -> bool:
        """Saves a video, which an error may end; returns whether it has."""
        path = self._outputs / "cancelled.mp4"
        try:
            self._pipe(SMALL, metadata=False).save(path, **callbacks)
        except error:
            return True
        assert path.read_bytes() == self._whole
        path.unlink()
        return False

    def signalled(self) -> bool:
        """Saves a video while a timer sends a signal that acts like Ctrl-C."""
        signal.setitimer(signal.ITIMER_REAL, self._random.uniform(1e-4, self._duration_s))
        try:
            came = self._saved(KeyboardInterrupt, {})
        except KeyboardInterrupt:  # between the end of the video and that of the timer
            came = False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        (self._outputs / "cancelled.mp4").unlink(missing_ok=True)
        return came

    def thread_ended(self) -> bool:
        """Makes a video in a thread of its own, until this one says that it is not wanted any more."""
        unwanted, outcomes = threading.Event(), []

        def hear(step: Any) -> None:
            if unwanted.is_set():
                raise CancelError

        thread = threading.Thread(target=lambda: outcomes.append(self._saved(CancelError, {"each_step": hear})))
        thread.start()
        time.sleep(self._random.uniform(0, self._duration_s))
        unwanted.set()
        thread.join()
        (came,) = outcomes
        return bool(came)


def soaked(engines: Path, folder: Path, cancels: int, every: int, **options: Any) -> list[tuple[int, Usage]]:
    """Cancels videos, and returns what the process held after every so many of them."""
    os.environ["LTX_CACHE"], os.environ["TMPDIR"] = str(folder / "cache"), str(folder / "temporary")
    tempfile.tempdir = None  # to be read again
    usual = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    usages, began = [], time.perf_counter()
    try:
        cancelled = Cancelled(engines, folder, **options)
        for count in range(1, cancels + 1):
            cancelled.once()
            if count % every == 0:
                gc.collect()
                usages.append((count, usage_of(places=(folder / "temporary", folder / "outputs"))))
                sys.stderr.write(f"{count} cancels, {time.perf_counter() - began:.0f} s: {usages[-1][1]}\n")
        cancelled.close()
    finally:
        signal.signal(signal.SIGALRM, usual)
    sys.stderr.write(f"{dict(cancelled.counts)}\n")
    return usages


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of what the process held, and what has grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--cancels", type=int, default=2000)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    typed = parser.parse_args(arguments)
    options = {"backend": typed.backend, "threads": typed.threads, "seed": typed.seed}
    with tempfile.TemporaryDirectory() as folder:
        usages = soaked(typed.engines.absolute(), Path(folder), typed.cancels, max(1, typed.cancels // 50), **options)
    sys.stdout.write(table_of(usages[:: max(1, len(usages) // 10)]) + "\n")
    sys.stdout.write(f"growth: {growth_of(usages)}\n")
    raise SystemExit(", ".join(grown(usages)) or 0)


if __name__ == "__main__":
    main()
