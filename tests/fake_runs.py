"""Runs of the whole road on the fake stages, and what came of them."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ltx_runtime.manifest import Engines
from ltx_runtime.options import Options
from ltx_runtime.pipeline import generate
from ltx_runtime.plan import Request


@dataclass
class Made:
    """What a run made: its frames, for every stage how many units were announced and done, and its notes."""

    frames: list[np.ndarray] = field(default_factory=list)
    units: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def video(self) -> np.ndarray:
        return np.stack(self.frames)

    @contextmanager
    def progress(self, name, total):
        assert name not in self.units, f"{name} is told twice"
        self.units[name] = [total, 0]

        def done():
            self.units[name][1] += 1

        yield done


def make(engines: Engines, request: Request, **options) -> Made:
    """Runs a request on the fake stages; see the fixture `diary`."""
    made = Made()
    generate(engines, request, made.frames.append, made.progress, Options("fake", **options), made.notes.append)
    return made
