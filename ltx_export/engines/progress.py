"""Turns the builder's nested phases into one progress fraction, and ends the build after its current step on Ctrl-C.

The builder reports its phases from its own threads. This module knows nothing about graphs or files.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

Made = TypeVar("Made")
# Receives the name of the phase that has changed, and the fraction of the build that is done (0..1).
Show = Callable[[str, float], None]
Ended = Callable[[str, float], None]  # receives the name of an outermost phase, and its duration in seconds

_WAIT_S = 0.1


@dataclass
class _Phase:
    parent: str | None
    steps: int
    started: float
    done: int = 0


@dataclass
class BuildProgress:
    """The phases of one build.

    Attributes:
        show: called after every change.
        ended: called when an outermost phase has ended.
        cancelled: is set to end the build after its current step.
    """

    show: Show = lambda phase, fraction: None
    ended: Ended = lambda phase, seconds: None
    cancelled: threading.Event = field(default_factory=threading.Event)
    _phases: dict[str, _Phase] = field(default_factory=dict)
    _furthest: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def fraction(self) -> float:
        """Fraction of the build that is done, 0..1."""
        return self._furthest

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Records that a phase has begun, within a step of its parent."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1), time.monotonic())
            self._tell(name)

    def step(self, name: str) -> bool:
        """Records that a step of a phase is done, and returns whether the build may continue."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = min(phase.done + 1, phase.steps)
                self._tell(name)
        return not self.cancelled.is_set()

    def finish(self, name: str) -> None:
        """Records that a phase has ended, even if not all its steps were reported."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None and not self.cancelled.is_set():
                self._furthest = 1.0
                self.show(name, 1.0)
                self.ended(name, time.monotonic() - phase.started)

    def _tell(self, name: str) -> None:
        outermost = [phase_name for phase_name, phase in self._phases.items() if phase.parent not in self._phases]
        self._furthest = max([self._furthest, *map(self._fraction, outermost)])  # never decreases
        self.show(name, self._furthest)

    def _fraction(self, name: str) -> float:
        """Returns the fraction of a phase that is done, from its finished steps and the phases nested in it."""
        phase = self._phases[name]
        within = [self._fraction(child) for child, nested in self._phases.items() if nested.parent == name]
        return min((phase.done + max(within, default=0.0)) / phase.steps, 1.0)


def monitor_of(library: Any, progress: BuildProgress) -> Any:
    """Returns a progress monitor for the library, which forwards to `progress`."""

    class Monitor(library.IProgressMonitor):
        """Forwards the builder's reports to `progress`."""

        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            progress.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return progress.step(name)

        def phase_finish(self, name: str) -> None:
            progress.finish(name)

    return Monitor()


def in_thread(work: Callable[[], Made], progress: BuildProgress) -> Made:
    """Runs `work` in another thread, so that this one can be interrupted, and returns its result.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. It cancels `progress`, and is raised once the work has ended.
    """
    results: list[Made] = []
    errors: list[BaseException] = []
    start_lock = threading.Lock()
    done = threading.Event()  # after an interrupted `join`, Python 3.11 takes a thread for ended

    def run() -> None:
        if not start_lock.acquire(blocking=False):
            return
        try:
            results.append(work())
        except BaseException as error:  # raised again in the calling thread
            errors.append(error)
        finally:
            done.set()

    interrupted = begun = False
    while not done.is_set():
        try:
            if not begun:
                threading.Thread(target=run, name="engine build").start()  # may run twice if interrupted
                begun = True
            while not done.wait(_WAIT_S):
                pass
        except KeyboardInterrupt:
            interrupted = True
            progress.cancelled.set()
    if interrupted:
        raise KeyboardInterrupt
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def shown(title: str) -> Iterator[BuildProgress]:
    """Shows a build as a bar on standard error, or as one line for each outermost phase if that is no terminal."""
    from rich import progress as rich  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal:
        yield BuildProgress(ended=lambda phase, seconds: _write_line(f"{title}: {phase.lower()} {seconds:.1f} s"))
        return
    text = rich.TextColumn("{task.description}")
    columns = (text, rich.BarColumn(), rich.TaskProgressColumn(), rich.TimeElapsedColumn(), rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=1.0)

        def show(phase: str, fraction: float) -> None:
            bars.update(task, description=f"{title}: {phase.lower()}", completed=fraction)

        yield BuildProgress(show)


def _write_line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
