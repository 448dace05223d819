"""An engine's numbers against the fp32 graph's: what was recorded at export, or a small request on the CPU here.

Needs the GPU that the engine is for. Knows nothing of how engines are built.
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
from ltx_runtime.sessions import FoundEngine, Session, open_session
from ltx_runtime.sessions.cuda.memory import GpuMemoryError

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Open = Callable[[FoundEngine], AbstractContextManager[Session]]

# Of the output to the fp32 graph's, in relative L2. bf16 keeps 8 bits of a number: PyTorch in bf16 is 1.35e-2 off over
# a transformer's 28 layers, and the longest versions have 48. fp16 keeps 11 bits, and is off by an eighth of that.
# What is wrong, such as a norm that overflows or a weight in the wrong place, is off by tenths at least.
TOLERANCES = {"bf16": 5e-2, "fp16": 1e-2}
_MOST_CELLS = 2048  # latent cells or tokens that the CPU computes in fp32 within a few gigabytes and a minute
_MEAN_ERROR = 1e-3


@dataclass(frozen=True)
class Numbers:
    """What a check found: the distance to the fp32 graph, or None and why there is none."""

    relative_l2: float | None
    why: str = ""


def check_engine_numbers(found: FoundEngine, opened: Open = open_session) -> Numbers:
    """Runs an engine once and holds its output against the fp32 graph's.

    Args:
        found: the engine.
        opened: opens it.

    Raises:
        LtxError: it does not load or run, or its output is not finite, differs by more than its precision explains,
            or is no picture.
    """
    feeds, expected = _request(found)
    try:
        with opened(found) as session:
            made = session.run(feeds, list(session.outputs))
    except GpuMemoryError as error:
        return Numbers(None, error.problem)
    except MemoryError:
        return Numbers(None, "the GPU has too little free memory")
    output = made[found.component.outputs[0].name]
    if not np.isfinite(output).all():
        raise LtxError(f"{found.path} makes numbers that are not finite", _advice(found))
    reference = expected()
    if "frames" in made:
        _check_frames(found, made, output, reference)
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


def _advice(found: FoundEngine) -> str:
    if found.sidecar.precision == "fp16":
        return "use bf16, or keep it all the same with --force"
    return "report it, or keep it all the same with --force"


def _request(found: FoundEngine) -> tuple[Feeds, Callable[[], Array | None]]:
    """Inputs that a profile serves, and what gives the fp32 graph's output for them."""
    component, engines = found.component, found.address.engines
    entry = engines.component(component.name)
    if entry.recorded is not None:
        recorded, output = read_record(engines.folder / entry.recorded, component)
        if profile_for(found.profiles, sizes_of(component, recorded)) is not None:
            return recorded, lambda: output
    sizes = smallest_served(found.profiles)
    feeds = random_feeds(component, sizes)

    def computed() -> Array | None:
        graph = entry.graphs.get("fp32")
        if graph is None or _cells(sizes) > _MOST_CELLS:
            return None
        try:
            return run_graph(engines.folder / graph, engines.weights_folder(component.name), component, [feeds])[0]
        except ModuleNotFoundError:  # a machine with engines needs no ONNX Runtime
            return None

    return feeds, computed


def smallest_served(profiles: Sequence[Profile]) -> dict[str, int]:
    """The smallest sizes of the profile that has the smallest, by axis name."""
    lowest = [{axis: span.min for axis, span in profile.items()} for profile in profiles]
    return min(lowest, key=lambda sizes: math.prod(sizes.values()))


def _cells(sizes: Mapping[str, int]) -> int:
    return math.prod(sizes.get(axis, 1) for axis in ("tokens", "frames", "rows", "columns"))


def _check_frames(found: FoundEngine, made: Arrays, video: Array, reference: Array | None) -> None:
    """What is shown is the video's levels, and not one colour unless the fp32 graph's is."""
    frames, mean = made["frames"], made["mean"]
    levels = np.floor(255 * np.clip(video * 0.5 + 0.5, 0, 1)).transpose(0, 2, 3, 4, 1)  # (B, F, H, W, 3)
    if frames.shape != levels.shape or np.abs(frames.astype(np.int64) - levels).max() > 1:
        raise LtxError(f"{found.path} shows other frames than its video has", _advice(found))
    means = video.mean((1, 2, 3, 4), dtype=np.float64)
    if not np.allclose(mean, means, rtol=_MEAN_ERROR, atol=_MEAN_ERROR):
        raise LtxError(f"{found.path} gives {mean} as its video's mean, which is {means}", _advice(found))
    if frames.min() == frames.max() and (reference is None or reference.min() != reference.max()):
        raise LtxError(f"{found.path} makes frames of one colour", _advice(found))
