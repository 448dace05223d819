"""Times our engines against diffusers on this machine's GPU with one offline command of under ten minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --version 0.9.8-13b-distilled
    python benchmarks/gpu.py --device cpu --version demo --sizes 64x64x9

What the numbers mean and how to read them: docs/benchmarks/gpu.md. The weights are random and generated here. The
result lists libraries that are not installed and sections that failed; neither ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_measure
import gpu_table
import gpu_weights
import torch
from gpu_budget import Budget, Left, said
from gpu_build import grids_of
from gpu_ours import build_engines, inputs_of
from gpu_reference import COMPILES

from ltx_export.models.rope import rope_of
from ltx_runtime.errors import reported
from ltx_runtime.folder.manifest import ComponentEntry, Engines, Manifest
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.sessions import BACKENDS
from ltx_runtime.spec import components
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.versions import Version, find_version

_SIZES = ("512x768x97", "704x1216x121")
_DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
_PRECISIONS = {"cuda": "bf16", "cpu": "fp32"}
_COMPONENTS: tuple[ComponentName, ...] = ("transformer", "vae_decoder")
_PACKAGES = ("torch", "diffusers", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "onnxruntime")
_GRACE_S = 10.0  # time for a section to notice that its limit has passed
# Seconds per section. Their sum may exceed the limit of the run, so the most valuable sections run first.
_LIMITS = {"peak": 15.0, "weights": 90.0, "export": 150.0, "engines": 200.0, "open": 60.0, "size": 75.0, "fp32": 30.0}


class Benchmark:
    """One benchmark run; `result` returns everything measured so far."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.version = find_version(asked.version)
        self.grids = dict(zip(asked.sizes, grids_of(asked.sizes), strict=True))
        self.budget = Budget(asked.limit_s)
        self.rows: list[dict[str, Any]] = []
        self.findings: list[str] = []
        self.peak: dict[str, Any] | None = None
        self.copies: dict[str, dict[str, float]] = {}
        self.fp32: dict[str, dict[str, float]] = {}
        self.folder = asked.work / "engines" / self.version.name

    def run(self) -> None:
        """Runs all sections, the most valuable first."""
        asked, section = self.asked, self.budget.section
        device, dtype = asked.device, _DTYPES[asked.device]
        self.peak = section("peak of matrix products", _LIMITS["peak"], lambda left: self._peak(device, dtype, left))
        weights = asked.work / "weights" / self.version.name
        checkpoint = section(
            "weights", _LIMITS["weights"], lambda left: gpu_weights.write_weights(self.version, weights, device)
        )
        engines = section("export", _LIMITS["export"], lambda left: self._export(weights)) if checkpoint else None
        setting = gpu_measure.Setting(
            version=self.version,
            engines=engines or bare_engines(self.version, self.folder),
            checkpoint=checkpoint,
            device=device,
            dtype=dtype,
            backends=self._backends() if engines else [],
            compile=asked.compile or ("none" if device == "cpu" else "regional"),
            rounds=asked.rounds,
            sizes=self.grids,
        )
        for component in _COMPONENTS:
            if device == "cuda" and engines:
                self._build(component)
            self._component(setting, component)
        section("copies", _LIMITS["open"], lambda left: self._copy(setting))

    def _peak(self, device: str, dtype: torch.dtype, left: Left) -> dict[str, Any]:
        return gpu_measure.product_peak(device, dtype, left)

    def _export(self, weights: Path) -> Engines:
        gpu_weights.export(self.version, weights, self.folder, _PRECISIONS[self.asked.device])
        return Engines(self.folder, read_manifest(self.folder))

    def _backends(self) -> list[str]:
        return [name for name in BACKENDS if (name == "cpu") == (self.asked.device == "cpu")]

    def _build(self, component: str) -> None:
        sizes = list(self.grids)
        found = self.budget.section(
            f"engines of {component}",
            _LIMITS["engines"],
            lambda left: build_engines(self.folder, [component], sizes, left),
        )
        self.findings += [one for one in found or [] if one not in self.findings]

    def _component(self, setting: gpu_measure.Setting, component: ComponentName) -> None:
        """Measures one component at every size, and compares its outputs with float32 at the first size."""
        section = self.budget.section
        bench = gpu_measure.Bench(setting, component)
        peak = self.peak["flops_per_s"] if self.peak else None
        try:
            section(f"sessions of {component}", _LIMITS["open"], bench.open_ours)
            section(f"diffusers' {component}", _LIMITS["open"], bench.load_reference)
            for size in self.grids:
                section(
                    f"{component} at {size}",
                    _LIMITS["size"],
                    lambda left, size=size: bench.measure(size, peak, left),
                )
                self.rows = [row for row in self.rows if row["component"] != component] + bench.rows
            first = next(iter(self.grids))
            found = section(f"{component} in float32", _LIMITS["fp32"], lambda left: bench.numbers_in_fp32(first))
            self.fp32 |= {component: found} if found else {}
        finally:
            self.findings += bench.findings
            bench.close()

    def _copy(self, setting: gpu_measure.Setting) -> None:
        for size, grid in self.grids.items():
            feeds = inputs_of(setting.engines, "transformer", self.version, grid).feeds
            frames = (grid.num_frames, grid.height, grid.width, 3)
            output = (1, grid.tokens, self.version.transformer.channels)
            self.copies[size] = gpu_measure.copies(feeds, output, frames, self.asked.device)

    def result(self) -> dict[str, Any]:
        """Returns everything measured so far as plain data."""
        return {
            "date": date.today().isoformat(),
            "command": shlex.join(["python", "benchmarks/gpu.py", *self.asked.typed]),
            "version": self.version.name,
            "limit_s": self.asked.limit_s,
            "machine": machine(self.asked.device),
            "peak": self.peak,
            "rows": self.rows,
            "copies": self.copies,
            "fp32": self.fp32,
            "goals": gpu_table.goals(self.rows),
            "findings": self.findings,
            "sections": [asdict(one) for one in self.budget.sections],
        }


def bare_engines(version: Version, folder: Path) -> Engines:
    """Returns only the ports of a version whose export failed, for sections that need no graphs."""
    size, vae = version.transformer, version.vae_size
    entries = {
        "transformer": components.transformer(size.channels, size.text_channels, size.width),
        "vae_decoder": components.vae_decoder(vae.latent_channels, timestep=version.vae != "A"),
    }
    parts = {name: ComponentEntry(ports, (), {}) for name, ports in entries.items()}
    rope = rope_of(size.width)
    return Engines(folder, Manifest(version.name, version.causal_positions, version.schedule, rope, "", parts))


def machine(device: str) -> dict[str, Any]:
    """Returns the device and the versions of the driver and packages involved."""
    versions = {name: _version(name) for name in _PACKAGES}
    if device == "cpu":
        return {"device": f"CPU, {os.cpu_count()} cores", "versions": versions}
    gpu = torch.cuda.get_device_properties(0)
    told = {"compute_capability": f"{gpu.major}.{gpu.minor}", "memory_bytes": gpu.total_memory}
    return {"device": gpu.name, **told, "versions": {"driver": _driver(), "CUDA": torch.version.cuda, **versions}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def arguments(typed: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", default="0.9.8-2b-distilled", help="a release, or demo")
    parser.add_argument("--sizes", nargs="+", default=list(_SIZES), help="HEIGHTxWIDTHxFRAMES, the smallest first")
    parser.add_argument("--device", choices=sorted(_DTYPES), default="cuda")
    parser.add_argument("--compile", choices=COMPILES, help="of diffusers: nothing, each repeated block, or all")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each at most")
    parser.add_argument("--limit-s", type=float, default=570.0, help="seconds in all; what is there by then is told")
    parser.add_argument("--work", type=Path, default=Path("build/gpu-benchmark"), help="weights, engines and results")
    asked = parser.parse_args(typed)
    asked.typed, asked.work = typed, asked.work.resolve()
    return asked


def tell(benchmark: Benchmark) -> Path:
    """Writes the result as JSON, prints it as markdown and returns the path of the JSON file."""
    result = benchmark.result()
    path: Path = benchmark.asked.work / f"{benchmark.version.name}-{benchmark.asked.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    sys.stdout.write(gpu_table.markdown(result) + "\n")
    sys.stdout.flush()
    return path


def _out_of_time(benchmark: Benchmark) -> None:
    """Reports the results so far and ends the process, because a running compiler cannot be interrupted."""
    benchmark.findings.append(f"ended after {benchmark.asked.limit_s:.0f} s, in the middle of a section")
    tell(benchmark)
    os._exit(0)


@reported()
def main(typed: list[str] | None = None) -> None:
    asked = arguments(sys.argv[1:] if typed is None else typed)
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU - use a machine with one, or --device cpu --version demo --sizes 64x64x9")
    benchmark = Benchmark(asked)
    watchdog = threading.Timer(asked.limit_s + _GRACE_S, _out_of_time, [benchmark])
    watchdog.daemon = True
    watchdog.start()
    try:
        benchmark.run()
    finally:
        watchdog.cancel()
    said(f"written to {tell(benchmark)}")


if __name__ == "__main__":
    main()
