"""Measurements of benchmarks/gpu.py: peak of matrix products, components at every size, copies, and accuracy."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import gpu_reference
import numpy as np
import torch
from gpu_arithmetic import TEXT_TOKENS, Timing, share_of_peak, step_flops
from gpu_budget import Left, reason_of
from gpu_contest import Contestant, contest
from gpu_ours import Feeds, Ours, inputs_of, open_all
from torch import Tensor

from ltx_runtime.folder.manifest import Engines
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.versions import Version

EAGER, COMPILED = "diffusers eager", "diffusers compiled"
_PRODUCTS = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024)}
_COPIES = 5
_PIECE = 1 << 24


@dataclass(frozen=True)
class Setting:
    """Settings of the measurements; without a checkpoint, diffusers' models keep their own random weights."""

    version: Version
    engines: Engines
    checkpoint: Path | None
    device: str
    dtype: torch.dtype
    backends: Sequence[str]
    compile: str
    rounds: int
    sizes: dict[str, Grid]


def product_peak(device: str, dtype: torch.dtype, left: Left) -> dict[str, Any]:
    """Measures the highest FLOP/s that torch reaches in a product of two square matrices, by their size."""
    reached: dict[str, float] = {}
    for size in _PRODUCTS[device]:
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(one)
        least = float("inf")
        for _ in range(3 + _COPIES):
            started = perf_counter()
            for _ in range(4):
                torch.matmul(one, other, out=out)
            synchronize(device)
            least = min(least, (perf_counter() - started) / 4)
        reached[str(size)] = 2 * size**3 / least
        if left() <= 0:
            break
    return {"flops_per_s": max(reached.values()), "by_size": reached, "dtype": str(dtype).removeprefix("torch.")}


def synchronize(device: str) -> None:
    """Waits until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


class Bench:
    """The benchmark of one component: keeps our sessions and diffusers' model open while all sizes are measured."""

    def __init__(self, setting: Setting, component: ComponentName) -> None:
        self.setting, self.component = setting, component
        self.findings: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.ours: list[Ours] = []
        inputs = {
            size: inputs_of(setting.engines, component, setting.version, grid) for size, grid in setting.sizes.items()
        }
        self.feeds: dict[str, Feeds] = {size: one.feeds for size, one in inputs.items()}
        self._plain: dict[str, Feeds] = {size: one.plain for size, one in inputs.items()}
        self._held = ExitStack()
        self._model: Any = None
        self._compiled: Any = None

    def open_ours(self, _: Left) -> None:
        """Opens a session on every backend that can run the component."""
        setting = self.setting
        self.ours, found = open_all(setting.engines, self.component, setting.backends, self.feeds, self._held)
        self.findings += found

    def load_reference(self, _: Left) -> None:
        """Loads diffusers' model, and compiles it with torch.compile if the settings say so."""
        one = self.setting
        self._model = gpu_reference.load(self.component, one.version, one.checkpoint, one.device, one.dtype)
        self._compiled = gpu_reference.compiled(self._model, self.component, one.compile)

    def measure(self, size: str, peak_flops: float | None, left: Left) -> None:
        """Times all contestants at one size and adds one row for each."""
        tensors = self._inputs(size)
        peaks: dict[str, int | None] = {}
        contestants = [
            Contestant(one.backend, lambda one=one: one.session.run(self.feeds[size], one.fastest)) for one in self.ours
        ]
        for name, how in self._references():
            contestants.append(Contestant(name, self._watched(name, lambda how=how: how(tensors), peaks)))
        timings, problems = contest(contestants, self.setting.rounds, left)
        self.findings += [f"{name}, {self.component} at {size}: {problem}" for name, problem in problems.items()]
        memory = {one.backend: one.memory_bytes.get(size) for one in self.ours} | peaks
        distances = self._distances(size, tensors) if EAGER in timings else {}
        first = {one.backend: one.first_s[size] for one in self.ours}
        for name, timed in timings.items():
            timing = replace(timed, first_s=first.get(name, timed.first_s))
            self.rows.append(self._row(size, name, timing, memory.get(name), distances.get(name), peak_flops))

    def _inputs(self, size: str) -> dict[str, Tensor]:
        return gpu_reference.inputs(self.component, self._plain[size], self.setting.device, self.setting.dtype)

    def _references(self) -> list[tuple[str, Callable[[dict[str, Tensor]], Tensor]]]:
        if self._model is None:
            return []
        decoder = self._compiled if self.component == "vae_decoder" else None
        model = self._model if decoder is not None or self._compiled is None else self._compiled
        runs = [(EAGER, lambda feeds: gpu_reference.run(self._model, self.component, feeds))]
        if self._compiled is not None:
            runs.append((COMPILED, lambda feeds: gpu_reference.run(model, self.component, feeds, decoder)))
        return runs

    def _watched(self, name: str, run: Callable[[], Tensor], peaks: dict[str, int | None]) -> Callable[[], None]:
        """Wraps a run so that it waits for the GPU and keeps torch's highest memory use over all runs in `peaks`."""

        def watched() -> None:
            if self.setting.device != "cuda":
                run()
                return
            torch.cuda.reset_peak_memory_stats()
            run()
            torch.cuda.synchronize()
            peaks[name] = max(peaks.get(name) or 0, torch.cuda.max_memory_allocated())

        return watched

    def _row(
        self, size: str, name: str, timing: Timing, memory: int | None, distance: float | None, peak: float | None
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"component": self.component, "size": size, "name": name, **asdict(timing)}
        row |= {"memory_bytes": memory, "relative_l2": distance}
        if self.component == "transformer":
            tokens = self.setting.sizes[size].tokens
            flops = step_flops(self.setting.version.transformer, tokens, TEXT_TOKENS)
            row |= {"tokens": tokens, "flops": flops}
            row["share_of_peak"] = share_of_peak(flops, timing.median_s, peak) if peak else None
        return row

    def _distances(self, size: str, tensors: dict[str, Tensor]) -> dict[str, float]:
        """Returns our outputs' relative L2 distances to diffusers'; none where diffusers draws noise maps itself."""
        if any(name.startswith("noise_") for name in self.feeds[size]):
            return {}
        try:
            expected = gpu_reference.run(self._model, self.component, tensors)
        except Exception as error:  # the timings are useful without it
            self.findings.append(f"{self.component} at {size} is compared with nothing: {reason_of(error)}")
            return {}
        return {one.backend: distance(one.outputs[size], expected) for one in self.ours}

    def numbers_in_fp32(self, size: str) -> dict[str, float]:
        """Returns all outputs' relative L2 distances to diffusers in float32; leaves its model converted to float32."""
        if any(name.startswith("noise_") for name in self.feeds[size]):
            return {}
        told = gpu_reference.run(self._model, self.component, self._inputs(size)).float().cpu()
        self._compiled = None
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model = self._model.float()
        feeds = gpu_reference.inputs(self.component, self._plain[size], self.setting.device, torch.float32)
        exact = gpu_reference.run(model, self.component, feeds)
        return {EAGER: distance(told, exact)} | {one.backend: distance(one.outputs[size], exact) for one in self.ours}

    def close(self) -> None:
        """Closes the sessions and frees the model's memory."""
        self._held.close()
        self._model = self._compiled = None
        self.ours = []
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def distance(actual: Tensor | np.ndarray[Any, Any], expected: Tensor) -> float:
    """Returns |actual - expected| / |expected|, summed in float64 piece by piece on the device of `expected`.

    Raises:
        ValueError: the shapes differ.
    """
    one = torch.as_tensor(actual)
    if one.shape != expected.shape:
        raise ValueError(f"shapes {tuple(one.shape)} and {tuple(expected.shape)} differ")
    error = length = 0.0
    for mine, theirs in zip(one.reshape(-1).split(_PIECE), expected.reshape(-1).split(_PIECE), strict=True):
        exact = theirs.double()
        error += float((mine.to(exact.device).double() - exact).square().sum())
        length += float(exact.square().sum())
    return math.sqrt(error / length)


def copies(feeds: Feeds, output: tuple[int, ...], frames: tuple[int, ...] | None, device: str) -> dict[str, float]:
    """Returns the median seconds of copies: all inputs to the device; output, uint8 and float32 frames to the host."""

    def seconds(copy: Callable[[], object]) -> float:
        taken = []
        for _ in range(_COPIES):
            synchronize(device)
            started = perf_counter()
            copy()
            synchronize(device)
            taken.append(perf_counter() - started)
        return float(np.median(taken))

    arrays = [np.array(values) for values in feeds.values()]
    made = {"upload_s": seconds(lambda: [torch.from_numpy(one).to(device) for one in arrays])}
    output_there = torch.zeros(output, device=device)
    made["download_s"] = seconds(lambda: output_there.to("cpu", copy=True))
    if frames is not None:
        small, wide = (torch.zeros(frames, dtype=dtype, device=device) for dtype in (torch.uint8, torch.float32))
        made["frames_uint8_s"] = seconds(lambda: small.to("cpu", copy=True))
        made["frames_float32_s"] = seconds(lambda: wide.to("cpu", copy=True))
    return made
