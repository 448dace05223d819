"""Whole runs through the library, and their results."""

from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields

import numpy as np

from ltx_runtime.folder.manifest import Engines
from ltx_runtime.pipeline import Pipeline
from ltx_runtime.planning.options import RunOptions
from ltx_runtime.planning.request import Request
from ltx_runtime.progress import silent


@dataclass
class Made:
    """Results of a run: its frames, the units announced and done by stage, and its notes."""

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

        def advance(done):
            self.units[name][1] += done

        yield advance


def pipeline_of(engines: Engines, options: RunOptions, note=None, **more) -> Pipeline:
    """Returns a pipeline with the options that apply to all its videos."""
    sizes = {"memory": options.memory_bytes, "gpu_memory": options.gpu_memory_bytes}
    limits = {name: None if size is None else size / 1e9 for name, size in sizes.items()}
    where = {"backend": options.backend, "cpu_mode": options.cpu_mode, "threads": options.threads}
    return Pipeline(engines, **where, note=note, **limits, **more)


def run_options_of(options: RunOptions) -> dict:
    """Returns the options that apply to a single video, by name."""
    shared = ("backend", "cpu_mode", "memory_bytes", "gpu_memory_bytes", "threads")
    return {one.name: getattr(options, one.name) for one in fields(RunOptions) if one.name not in shared}


def generate(engines: Engines, request: Request, sink, progress=silent, options=None, note=None) -> None:
    """Passes every frame of a request's video to `sink`."""
    options = options or RunOptions()
    with (
        pipeline_of(engines, options, note) as pipe,
        closing(pipe(request, **run_options_of(options)).frames(progress)) as frames,
    ):
        for frame in frames:
            sink(frame)


def decode_saved(engines: Engines, path, sink, progress=silent, options=None, note=None) -> None:
    """Decodes latents that a run saved, and passes every frame to `sink`."""
    options = options or RunOptions()
    usual = run_options_of(RunOptions())
    changed = {name: value for name, value in run_options_of(options).items() if value != usual[name]}
    with (
        pipeline_of(engines, options, note) as pipe,
        closing(pipe.decode(path, **changed).frames(progress)) as frames,
    ):
        for frame in frames:
            sink(frame)


def make(engines: Engines, request: Request, **options) -> Made:
    """Runs a request on the fake stages, which the fixture `diary` installs; files that exist are replaced."""
    made = Made()
    run = RunOptions("fake", **{"overwrite": True, **options})
    generate(engines, request, made.frames.append, made.progress, run, made.notes.append)
    return made
