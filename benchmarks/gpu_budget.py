"""Time budget of benchmarks/gpu.py: sections with their own limits, whose failures do not end the run."""

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
    """A section of the run: its duration, and in one line why it failed ("" if it did not)."""

    name: str
    seconds: float
    problem: str = ""


class Budget:
    """A number of seconds for the whole run, spent section by section.

    Each section gets a function that returns the seconds left of its own limit and of the run; it must stop by itself.
    """

    def __init__(self, limit_s: float, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._end = clock() + limit_s
        self.sections: list[Section] = []

    def left(self) -> float:
        """Returns the seconds left of the whole run."""
        return self._end - self._clock()

    def section(self, name: str, limit_s: float, work: Callable[[Left], Made]) -> Made | None:
        """Runs `work` and returns its result; records the reason and returns None if it fails or no time is left."""
        if self.left() <= 0:
            self.sections.append(Section(name, 0.0, "no time was left"))
            return None
        said(f"{name} ...")
        started = self._clock()
        end = min(started + limit_s, self._end)
        problem, made = "", None
        try:
            made = work(lambda: end - self._clock())
        except Exception as error:  # whatever it is, the other sections are still useful
            problem = reason_of(error)
        self.sections.append(Section(name, self._clock() - started, problem))
        said(f"{name}: {self.sections[-1].seconds:.1f} s{f', {problem}' if problem else ''}")
        return made


def reason_of(error: BaseException) -> str:
    """Returns an exception's type and message as one line of limited length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_SHOWN]


def said(line: str) -> None:
    """Prints a progress line to standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
