"""Counts of the jobs that ended since the server was started, and of their stages, for those who watch it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from ltx_serve.jobs.job import COMPLETED


class Figures:
    """Counts jobs by outcome, and adds up the seconds of every stage. Can be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._stage_counts: Counter[str] = Counter()
        self._stage_seconds: dict[str, float] = {}
        self._lost = 0

    def completed(self, stages: Mapping[str, float]) -> None:
        """Counts a video that was made, with the seconds of its stages by name."""
        with self._lock:
            self._outcomes[COMPLETED] += 1
            for name, seconds in stages.items():
                self._stage_counts[name] += 1
                self._stage_seconds[name] = self._stage_seconds.get(name, 0.0) + seconds

    def failed(self, code: str) -> None:
        """Counts a job that has failed, by the code of its failure."""
        with self._lock:
            self._outcomes[code] += 1

    def lost(self) -> None:
        """Counts a maker that was gone while it made a video."""
        with self._lock:
            self._lost += 1

    @property
    def outcomes(self) -> dict[str, int]:
        """Number of jobs that ended in each way: completed, or the code of a failure."""
        with self._lock:
            return dict(self._outcomes)

    @property
    def stages(self) -> dict[str, tuple[int, float]]:
        """Number of runs of each stage, and its seconds in all, by name."""
        with self._lock:
            return {name: (count, self._stage_seconds[name]) for name, count in self._stage_counts.items()}

    @property
    def lost_makers(self) -> int:
        """Number of makers that were gone while they made a video."""
        with self._lock:
            return self._lost
