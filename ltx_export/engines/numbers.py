"""Compares an engine's output with the fp32 graph's, which was recorded at export or is computed on the CPU here.

This needs the GPU that the engine is for. This module does not know how engines are built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx_export.recorded import Feeds, random_feeds, read_record, relative_l2, run_graph
from ltx_runtime.errors import LtxError
from ltx_runtime.folder.profiles import Profile, profile_for, sizes_of
from ltx_runtime.graph.check import check_graph
from ltx_runtime.sessions import Session, open_session
from ltx_runtime.sessions.cuda.memory import GpuMemoryError
from ltx_runtime.sessions.found import FoundEngine

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Open = Callable[[FoundEngine], AbstractContextManager[Session]]

# Largest relative L2 errors against the fp32 graph's output. bf16 has 8 significant bits: PyTorch's error in bf16 is
# 1.35e-2 over a transformer's 28 layers, and the largest versions have 48. fp16 has 11 bits, and an eighth of this.
# Real faults, such as a norm that overflows or a weight in the wrong place, give errors of tenths at least.
TOLERANCES = {"bf16": 5e-2, "fp16": 1e-2}
_MAX_CELLS = 2048  # latent cells or tokens that the CPU computes in fp32 in a few gigabytes and a minute
_MEAN_ERROR = 1e-3


@dataclass(frozen=True)
class Numbers:
    """Result of a check: the relative L2 error against the fp32 graph, or None and the reason why there is none."""

    relative_l2: float | None
    why: str = ""


def check_engine_numbers(found: FoundEngine, opened: Open = open_session) -> Numbers:
    """Runs an engine once, and compares its output with the fp32 graph's.

    Args:
        found: the engine.
        opened: opens a session of the engine.

    Raises:
        LtxError: the engine cannot be loaded or run, or its output is not finite, differs by more than its precision
            explains, or has frames that do not match its video or have one colour only.
    """
    feeds, expected = _request(found)
    try:
        with opened(found) as session:
            outputs = session.run(feeds, list(session.outputs))
    except GpuMemoryError as error:
        return Numbers(None, error.problem)
    except MemoryError:
        return Numbers(None, "the GPU has too little free memory")
    output = outputs[found.component.outputs[0].name]
    if not np.isfinite(output).all():
        raise LtxError(f"{found.path} makes numbers that are not finite", _advice(found))
    reference = expected()
    if "frames" in outputs:
        _check_frames(found, outputs, output, reference)
    if reference is None:
        return Numbers(None, "nothing to compare it with: no record of so small a size, or no fp32 graph for the CPU")
    distance = relative_l2(output, reference)
    limit = TOLERANCES[found.sidecar.precision]
    if not distance <= limit:
        raise LtxError(
            f"{found.path} differs from the fp32 graph by {distance:.1e} relative L2, more than {limit:.0e}",
            _advice(found),
        )
    return Numbers(distance)


def _advice(engine: FoundEngine) -> str:
    if engine.sidecar.precision == "fp16":
        return "use bf16, or keep it all the same with --force"
    return "report it, or keep it all the same with --force"


def _request(engine: FoundEngine) -> tuple[Feeds, Callable[[], Array | None]]:
    """Returns inputs that a profile serves, and a function that returns the fp32 graph's output for them, or None."""
    component, engines = engine.component, engine.address.engines
    entry = engines.component(component.name)
    if entry.recorded is not None:
        recorded, output = read_record(engines.folder / entry.recorded, component)
        if profile_for(engine.profiles, sizes_of(component, recorded)) is not None:
            return recorded, lambda: output
    sizes = smallest_served(engine.profiles)
    feeds = random_feeds(component, sizes)

    def computed() -> Array | None:
        graph = entry.graphs.get("fp32")
        if graph is None or _cells(sizes) > _MAX_CELLS:
            return None
        check_graph(engines.folder / graph, component, engines.weight_sizes(component.name, "fp32"))
        try:
            return run_graph(engines.folder / graph, engines.weights_folder(component.name), component, [feeds])[0]
        except ModuleNotFoundError:  # a machine with engines needs no ONNX Runtime
            return None

    return feeds, computed


def smallest_served(profiles: Sequence[Profile]) -> dict[str, int]:
    """Returns the smallest sizes of the profile for which their product is smallest, by axis name."""
    lowest = [{axis: span.min for axis, span in profile.items()} for profile in profiles]
    return min(lowest, key=lambda sizes: math.prod(sizes.values()))


def _cells(sizes: Mapping[str, int]) -> int:
    return math.prod(sizes.get(axis, 1) for axis in ("tokens", "frames", "rows", "columns"))


def _check_frames(engine: FoundEngine, outputs: Arrays, video: Array, reference: Array | None) -> None:
    """Raises LtxError if `frames` or `mean` do not match the video, or if all pixels have the same colour.

    Pixels of one colour are accepted if the reference has only one value.
    """
    frames, mean = outputs["frames"], outputs["mean"]
    levels = np.floor(255 * np.clip(video * 0.5 + 0.5, 0, 1)).transpose(0, 2, 3, 4, 1)  # (B, F, H, W, 3)
    if frames.shape != levels.shape or np.abs(frames.astype(np.int64) - levels).max() > 1:
        raise LtxError(f"{engine.path} shows other frames than its video has", _advice(engine))
    means = video.mean((1, 2, 3, 4), dtype=np.float64)
    if not np.allclose(mean, means, rtol=_MEAN_ERROR, atol=_MEAN_ERROR):
        raise LtxError(f"{engine.path} gives {mean} as its video's mean, which is {means}", _advice(engine))
    if frames.min() == frames.max() and (reference is None or reference.min() != reference.max()):
        raise LtxError(f"{engine.path} makes frames of one colour", _advice(engine))
