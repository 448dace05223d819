"""How far a build is, and how it is ended: the builder's nested phases become one fraction, Ctrl-C a polite refusal.

The builder tells its phases from threads of its own. Knows nothing of graphs or files.
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
# The innermost phase that is worth a name, and how much of the build is done (0..1).
Show = Callable[[str, float], None]
Ended = Callable[[str, float], None]  # an outermost phase, and its seconds

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
        show: told of every change.
        ended: told of outermost phases that have ended.
        cancelled: set to end the build after its current step.
    """

    show: Show = lambda phase, fraction: None
    ended: Ended = lambda phase, seconds: None
    cancelled: threading.Event = field(default_factory=threading.Event)
    _phases: dict[str, _Phase] = field(default_factory=dict)
    _furthest: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def fraction(self) -> float:
        """How much is done, 0..1."""
        return self._furthest

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase has begun, within a step of its parent."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1), time.monotonic())
            self._tell(name)

    def step(self, name: str) -> bool:
        """A step of a phase is done; gives whether the build may go on."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = min(phase.done + 1, phase.steps)
                self._tell(name)
        return not self.cancelled.is_set()

    def finish(self, name: str) -> None:
        """A phase has ended, even if not all its steps were told."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None and not self.cancelled.is_set():
                self._furthest = 1.0
                self.show(name, 1.0)
                self.ended(name, time.monotonic() - phase.started)

    def _tell(self, name: str) -> None:
        outermost = [one for one, phase in self._phases.items() if phase.parent not in self._phases]
        self._furthest = max([self._furthest, *map(self._fraction, outermost)])  # never backwards
        self.show(name, self._furthest)

    def _fraction(self, name: str) -> float:
        """The fraction of a phase that is done: its finished steps, and what the current one's own phases
        have done.
        """
        phase = self._phases[name]
        within = [self._fraction(one) for one, other in self._phases.items() if other.parent == name]
        return min((phase.done + max(within, default=0.0)) / phase.steps, 1.0)


def monitor_of(library: Any, progress: BuildProgress) -> Any:
    """The library's own progress monitor, which tells `progress`."""

    class Monitor(library.IProgressMonitor):
        """Hands on what the builder says."""

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
    """What `work` makes in a thread of its own, while this one can be interrupted.

    Raises:
        KeyboardInterrupt: Ctrl-C; only after the work, told to end by `progress`, has ended.
    """
    made: list[Made] = []
    failed: list[BaseException] = []
    first = threading.Lock()
    done = threading.Event()  # Python 3.11 takes a thread for ended whose `join` was interrupted

    def run() -> None:
        if not first.acquire(blocking=False):
            return
        try:
            made.append(work())
        except BaseException as error:  # raised again where the user is
            failed.append(error)
        finally:
            done.set()

    interrupted = begun = False
    while not done.is_set():
        try:
            if not begun:
                threading.Thread(target=run, name="engine build").start()  # twice, if it is interrupted on the way
                begun = True
            while not done.wait(_WAIT_S):
                pass
        except KeyboardInterrupt:
            interrupted = True
            progress.cancelled.set()
    if interrupted:
        raise KeyboardInterrupt
    if failed:
        raise failed[0]
    return made[0]


@contextmanager
def shown(title: str) -> Iterator[BuildProgress]:
    """Shows a build as a bar on standard error, gone at the end; if that is no terminal, as a line for each phase."""
    from rich import progress as rich  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal:
        yield BuildProgress(ended=lambda phase, seconds: _line(f"{title}: {phase.lower()} {seconds:.1f} s"))
        return
    words = rich.TextColumn("{task.description}")
    columns = (words, rich.BarColumn(), rich.TaskProgressColumn(), rich.TimeElapsedColumn(), rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=1.0)

        def show(phase: str, fraction: float) -> None:
            bars.update(task, description=f"{title}: {phase.lower()}", completed=fraction)

        yield BuildProgress(show)


def _line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
