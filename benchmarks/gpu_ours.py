"""Our side of benchmarks/gpu.py: engines of every builder, sessions of every backend, and their inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from gpu_arithmetic import TEXT_TOKENS
from gpu_budget import Left, reason_of, said

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.sessions import Session, find, open_session
from ltx_runtime.sessions.trt.library import LIBRARIES, load_library, serves_gpu, title_of
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.spec.geometry import Grid, coords_of
from ltx_runtime.spec.versions import Version

ROOT = Path(__file__).parents[1]
Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
_SIGMA = 0.7


def build_engines(folder: Path, components: Sequence[str], sizes: Sequence[str], left: Left) -> list[str]:
    """Builds engines with every installed library that supports this GPU; returns why others built none."""
    findings = []
    for builder in LIBRARIES:
        try:
            library = load_library(builder)
        except LtxError as error:
            findings.append(str(error))
            continue
        capability = torch.cuda.get_device_capability()
        if not serves_gpu(library, capability):
            gpu = "compute capability {}.{}".format(*capability)
            findings.append(f"{title_of(builder)} {library.__version__} makes no kernels for this GPU ({gpu})")
            continue
        for component in components:
            started = perf_counter()
            problem = _build(folder, builder, component, sizes, left())
            said(f"  {builder} {component}: {problem or f'{perf_counter() - started:.1f} s'}")
            if problem:
                findings.append(f"{builder} built no engine of {component}: {problem}")
    return findings


def _build(folder: Path, builder: str, component: str, sizes: Sequence[str], seconds: float) -> str:
    """Builds an engine in a process of its own; returns the reason if that fails, else ""."""
    if seconds <= 0:
        return "no time was left"
    command = [sys.executable, str(Path(__file__).with_name("gpu_build.py")), str(folder), builder, component, *sizes]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env={**os.environ, "PYTHONPATH": paths}
        )
    except subprocess.TimeoutExpired:
        return f"took more than {seconds:.0f} s"
    lines = ended.stderr.strip().splitlines()
    return "" if ended.returncode == 0 else (lines[-1] if lines else f"exit code {ended.returncode}")


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run at one size.

    Attributes:
        feeds: inputs by port; arrays that do not change from step to step are read-only, as in a run.
        plain: the same for diffusers, which takes the `timestep` itself in place of its `sinusoid`, and the `coords` in
            place of `cosines` and `sines`.
    """

    feeds: Feeds
    plain: Feeds


def inputs_of(engines: Engines, component: ComponentName, version: Version, grid: Grid) -> Inputs:
    """Returns the inputs of a run at this size, drawn from a normal distribution; the same at every call."""
    random = np.random.RandomState(0)
    level = _SIGMA if component == "transformer" else version.decode_timestep
    sizes = {"batch": 1, "tokens": grid.tokens, "timesteps": 1, "text_tokens": TEXT_TOKENS}
    sizes |= {"frames": grid.frames, "rows": grid.rows, "columns": grid.columns}
    feeds: Feeds = {}
    plain: Feeds = {}
    for port in engines.component(component).signature.inputs:
        shape = port.shape(sizes)
        if port.name == "sinusoid":
            plain["timestep"] = np.full(shape[:-1], level, np.float32)
            feeds["sinusoid"] = sinusoid_of(plain["timestep"])
        elif port.name == "cosines":
            plain["coords"] = coords_of(grid, version.fps, causal=engines.manifest.causal_positions)
            feeds |= engines.manifest.rope.rotation(plain["coords"], 2 * shape[-1])._asdict()
        elif port.name != "sines":
            values = np.ones(shape) if port.name in ("text_mask", "skip_mask") else random.standard_normal(shape)
            feeds[port.name] = plain[port.name] = np.ascontiguousarray(values, port.dtype)
    for name, array in feeds.items():
        array.flags.writeable = name in ("latents", "sinusoid")
    return Inputs(feeds, plain)


@dataclass
class Ours:
    """An open session of a backend, after one run at every size.

    Attributes:
        load_s: seconds that opening the session took.
        first_s: seconds of the first run at each size.
        memory_bytes: GPU memory that the session takes after a run, by size; None on a CPU.
        outputs: the component's output, by size.
        fastest: outputs that are requested when it is timed: uint8 frames if it can make them.
    """

    backend: str
    session: Session
    load_s: float
    first_s: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, int | None] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)

    @property
    def fastest(self) -> list[str]:
        if "frames" in self.session.outputs:
            return ["frames"]
        return [port.name for port in self.session.component.outputs]


def open_all(
    engines: Engines, component: ComponentName, backends: Sequence[str], feeds: dict[str, Feeds], held: ExitStack
) -> tuple[list[Ours], list[str]]:
    """Opens a component on every backend that can run it, and runs every size once.

    Args:
        engines: the version folder.
        component: name of the component.
        backends: names of the backends.
        feeds: inputs by size, the smallest size first.
        held: closes the sessions.

    Returns:
        The open sessions, and the reasons why other backends have none.
    """
    made, findings = [], []
    for backend in backends:
        try:
            with ExitStack() as own:
                made.append(_opened(engines, component, backend, feeds, own))
                held.push(own.pop_all())
        except Exception as error:  # a missing or failing library is a finding
            findings.append(f"{backend} does not run {component}: {reason_of(error)}")
            said(f"  {findings[-1]}")
    return made, findings


def _opened(engines: Engines, component: ComponentName, backend: str, feeds: dict[str, Feeds], held: ExitStack) -> Ours:
    free = free_bytes()
    started = perf_counter()
    session = held.enter_context(open_session(find(engines, component, backend)))
    one = Ours(backend, session, perf_counter() - started)
    output = session.component.outputs[0].name
    for size, given in feeds.items():
        started = perf_counter()
        one.outputs[size] = session.run(given, [output])[output]
        one.first_s[size] = perf_counter() - started
        now = free_bytes()
        one.memory_bytes[size] = None if free is None or now is None else free - now
    said(f"  {backend}: loaded in {one.load_s:.1f} s")
    return one


def free_bytes() -> int | None:
    """Returns the GPU's free memory in bytes after emptying torch's cache; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])
