"""Makes videos of prompts in exact arithmetic, and measures the activations of the transformer at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltx_export.calibration.products import ROWS, largest_of, rows_of
from ltx_export.calibration.smoothing import Activations
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.release import release_of
from ltx_runtime.outputs.state import State
from ltx_runtime.planning.backends import Size, choose, needed
from ltx_runtime.planning.media import media_of
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.plan import Plan, plan
from ltx_runtime.planning.request import Condition, Request
from ltx_runtime.progress import Progress
from ltx_runtime.road import Road, noise_of, run_passes
from ltx_runtime.sessions import Arrays, CheckedSession, Session
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.onnxruntime_cpu import CpuRunner
from ltx_runtime.sessions.pool import SessionPool

Floats = NDArray[np.float32]
Feeds = dict[str, NDArray[Any]]

_ROWS = 16  # tokens of each step whose activations are kept
_MOST_STEPS = 10  # of a version that takes more by default: levels of noise in between are alike
_PATCH = 32  # pixels of a square of one colour in pictures
_OPTIONS = RunOptions(backend="cpu")


@dataclass
class Measuring:
    """Runner of a measuring graph, which keeps what it sees.

    Ranges are measured on other prompts than errors, since the text decides about some activations: with the same
    prompts for both, nothing would ever exceed its range.

    Attributes:
        runner: runs the graph.
        names: names of the values that it measures.
        largest: the largest magnitudes in each channel so far, by the value's name.
        rows: activations of some tokens of every step of the prompt for errors, by the value's name.
        steps: inputs and output of every step of the prompt for tests.
        purpose: what this prompt is for: its ranges, its errors, or tests.
    """

    runner: CpuRunner
    names: Sequence[str]
    largest: dict[str, Floats] = field(default_factory=dict)
    rows: dict[str, list[Floats]] = field(default_factory=dict)
    steps: list[tuple[Feeds, Floats]] = field(default_factory=list)
    purpose: Literal["ranges", "errors", "tests"] = "ranges"
    outputs: Sequence[str] = ("velocity",)
    _random: np.random.RandomState = field(default_factory=lambda: np.random.RandomState(0))

    def run(self, feeds: Arrays, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Runs a step, and keeps what it sees."""
        batch, tokens, _ = feeds["latents"].shape
        output = {"ranges": largest_of, "errors": rows_of}.get(self.purpose)
        measured = [] if output is None else [output(x) for x in self.names]
        rows = self._random.randint(0, batch * tokens, _ROWS)
        results = self.runner.run({**feeds, ROWS: rows}, [*self.outputs, *measured])
        velocity = results.pop("velocity")
        for x, result in zip(self.names, results.values(), strict=False):
            if self.purpose == "ranges":
                self.largest[x] = np.maximum(self.largest.get(x, result), result)
            else:
                self.rows.setdefault(x, []).append(result)
        if self.purpose == "tests":
            self.steps.append((dict(feeds), velocity))
        return {"velocity": velocity}

    def close(self) -> None:
        """Frees the graph."""
        self.runner.close()

    def seen(self) -> dict[str, Activations]:
        """Returns what was seen of each value, by its name."""
        return {x: Activations(self.largest[x], np.concatenate(self.rows[x])) for x in self.names}


class _Sessions(SessionPool):
    """Opens sessions as they are, but the transformer's is one that measures."""

    def __init__(self, transformer: CheckedSession) -> None:
        super().__init__()
        self._transformer = transformer

    @contextmanager
    def session(self, found: Found) -> Iterator[Session]:
        if found.component.name == "transformer":
            yield self._transformer
            return
        with super().session(found) as session:
            yield session


def measure(
    engines: Engines,
    graph: Path,
    names: Sequence[str],
    prompts: Sequence[str],
    size: tuple[int, int, int],
    note: Callable[[str], None],
    progress: Progress,
) -> Measuring:
    """Denoises a video of each prompt: the last one is for tests, the one before it for errors, the others for ranges.

    The first and the last begin with a picture if the folder has a VAE encoder, since conditioned tokens have no noise.

    Args:
        engines: the version folder.
        graph: the transformer's measuring graph.
        names: names of the values that it measures.
        prompts: at least three prompts.
        size: height, width and number of frames.
        note: is called with each remark.
        progress: shows how far the steps are.

    Raises:
        LtxError: the version cannot make this size, or a graph cannot be loaded.
    """
    entry = engines.component("transformer")
    measuring = Measuring(CpuRunner(graph, engines.weights_folder("transformer")), names)
    try:
        for number, prompt in enumerate(prompts):
            left = len(prompts) - number
            measuring.purpose = "tests" if left == 1 else "errors" if left == 2 else "ranges"
            request = _request(engines, prompt, number, size, with_picture=number == 0 or left == 1)
            _denoise(engines, _Sessions(CheckedSession(entry.signature, measuring)), request, note, progress)
    finally:
        measuring.close()
    return measuring


def _request(engines: Engines, prompt: str, seed: int, size: tuple[int, int, int], *, with_picture: bool) -> Request:
    height, width, num_frames = size
    coarse = np.random.RandomState(seed).randint(0, 256, (height // _PATCH, width // _PATCH, 3))
    picture = coarse.repeat(_PATCH, 0).repeat(_PATCH, 1).astype(np.uint8)
    used = with_picture and "vae_encoder" in engines.manifest.components
    conditions = (Condition(picture),) if used else ()
    return Request(
        prompt, height=height, width=width, num_frames=num_frames, seed=seed, single_pass=True, conditions=conditions
    )


def _denoise(
    engines: Engines, sessions: _Sessions, request: Request, note: Callable[[str], None], progress: Progress
) -> None:
    planned = _planned(engines, request)
    size = Size(*planned.ending.size, planned.passes[-1].grid.num_frames, single_pass=True)
    chosen = choose(engines, needed(planned, _OPTIONS)[:-1], _OPTIONS, size)
    road = Road(engines, release_of(engines.manifest), _OPTIONS, chosen, sessions, progress, note, note)
    noise = noise_of(_OPTIONS, planned.ending.seed, {})
    for _ in run_passes(road, planned, media_of(planned).frames, noise, State()):
        pass


def _planned(engines: Engines, request: Request) -> Plan:
    """Returns the plan of a request, with fewer steps if the version takes many."""
    manifest = engines.manifest
    version = release_of(manifest)
    planned = plan(request, version, manifest.schedule, manifest.allowed_sigmas)
    if sum(len(one.sigmas) for one in planned.passes) > _MOST_STEPS:
        planned = plan(replace(request, steps=_MOST_STEPS), version, manifest.schedule, manifest.allowed_sigmas)
    return planned
