"""The time of benchmarks/gpu.py: sections with limits of their own, of which one that fails does not end the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Made = TypeVar("Made")
Left = Callable[[], float]
Clock = Callable[[], float]
_SHOWN = 300


@dataclass(frozen=True)
class Section:
    """A part of the run: what it took, and why it failed, in one line; empty if it did not."""

    name: str
    seconds: float
    problem: str = ""


class Budget:
    """So many seconds in all, spent section by section.

    A section is told how much is left of its own limit and of the whole; it stops by itself.
    """

    def __init__(self, limit_s: float, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._end = clock() + limit_s
        self.sections: list[Section] = []

    def left(self) -> float:
        """Seconds left of the whole."""
        return self._end - self._clock()

    def section(self, name: str, limit_s: float, work: Callable[[Left], Made]) -> Made | None:
        """What `work` makes of its time; None where there was no time left or it failed, which is written down."""
        if self.left() <= 0:
            self.sections.append(Section(name, 0.0, "no time was left"))
            return None
        said(f"{name} ...")
        started = self._clock()
        end = min(started + limit_s, self._end)
        problem, made = "", None
        try:
            made = work(lambda: end - self._clock())
        except Exception as error:  # whatever it is, the other sections are worth having
            problem = reason_of(error)
        self.sections.append(Section(name, self._clock() - started, problem))
        said(f"{name}: {self.sections[-1].seconds:.1f} s{f', {problem}' if problem else ''}")
        return made


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line that is not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_SHOWN]


def said(line: str) -> None:
    """Tells whoever waits."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
