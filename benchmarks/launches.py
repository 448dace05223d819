"""Counts what ONNX Runtime's CUDA provider launches for a step and a decode, and the memory it moves, without a GPU.

    make launches
    python -m benchmarks.launches --version 0.9.8-13b-distilled --sizes 704x1216x121     # as the Makefile sets it up

The provider is the real one, on stand-ins for CUDA's libraries that write down what is launched (`make test-cuda`).
Weights are a file of holes. No time is measured: there is no GPU, and nothing is computed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ltx_export.build import ExportOptions, export_version
from ltx_export.random_weights import write_random_weights
from ltx_export.sources.find import find_sources
from ltx_runtime.folder.manifest import Engines
from ltx_runtime.folder.reading import read_manifest
from ltx_runtime.sessions import graph_found
from ltx_runtime.sessions.found import Found
from ltx_runtime.spec.components import ComponentName
from ltx_runtime.spec.geometry import grid_of, size_of
from ltx_runtime.spec.versions import TextEncoderSize, Version, find_version

_LIBRARY = "libcudnn.so.9"
_COMPONENTS: tuple[ComponentName, ...] = ("transformer", "vae_decoder")
# What reads each weight or token many times, and what moves nothing.
_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "Conv", "Attention"}
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Shape", "Flatten"}
_TEXT_TOKENS = 256


@dataclass(frozen=True)
class Done:
    """What one run of a graph has launched and copied, by name, and ONNX Runtime's own record of its nodes."""

    kernels: Counter[str]
    copies: Counter[str]
    nodes: list[dict[str, Any]]

    def on_the_cpu(self) -> list[tuple[str, int]]:
        """Returns the nodes on the CPU: operator and bytes of its results."""
        return [(node["op_name"], int(node["output_size"])) for node in self.nodes if _is_on_the_cpu(node)]

    def kernels_with(self, part: str) -> int:
        """Returns how many kernels were launched whose name has this part."""
        return sum(count for name, count in self.kernels.items() if part in name)

    def traffic(self) -> Counter[str]:
        """Returns the bytes that nodes on the GPU read and write, by operator, beside products and attention."""
        moved: Counter[str] = Counter()
        for node in self.nodes:
            if not _is_on_the_cpu(node) and node["op_name"] not in _PRODUCTS | _VIEWS:
                sizes = ("activation_size", "parameter_size", "output_size")
                moved[node["op_name"]] += sum(int(node[size]) for size in sizes)
        return moved


def _is_on_the_cpu(node: Mapping[str, Any]) -> bool:
    return str(node["provider"]).startswith("CPU")


def written_down() -> Callable[[], list[str]]:
    """Returns the function that returns what the stand-ins have written down since the last time, line by line."""
    folder = Path(os.environ["LD_LIBRARY_PATH"].split(os.pathsep)[0])
    library = ctypes.CDLL(str(folder / _LIBRARY))
    library.stand_in_take.restype = ctypes.c_char_p
    return lambda: library.stand_in_take().decode().splitlines()


def run_twice(found: Found, sizes: Mapping[str, int]) -> Done:
    """Runs a component's graph twice with sizes of its axes, and returns what the second run did."""
    taken = written_down()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(found.weights))
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = onnxruntime.InferenceSession(found.path, options, providers=["CUDAExecutionProvider"])
        feeds = {port.name: np.ones(port.shape(sizes), port.dtype) for port in found.component.inputs}
        session.run(None, feeds)
        taken()
        session.run(None, feeds)
        lines = taken()
        entries = json.loads(Path(session.end_profiling()).read_text())
    nodes = [entry["args"] for entry in entries if entry["name"].endswith("_kernel_time")]
    kernels = Counter(line.removeprefix("kernel ") for line in lines if line.startswith("kernel "))
    copies = Counter(line.rpartition(" ")[0] for line in lines if line.startswith("copy "))
    return Done(kernels, copies, nodes[len(nodes) // 2 :])


def exported(version: Version, folder: Path, precision: str) -> Path:
    """Exports transformer and decoder of a version over weights that are holes; returns the folder."""
    width = version.transformer.text_channels
    small = TextEncoderSize(layers=1, width=width, heads=4, head_dim=16, hidden=64, vocabulary=512)
    version, engines = replace(version, text_encoder=small), folder / "engines"
    if not engines.exists():
        write_random_weights(version, folder / "weights", sparse=True)
        without = ("text_encoder", "vae_encoder", "upsampler", "temporal_upsampler")
        options = ExportOptions(precisions=(precision,), link=True, without=without)
        export_version(version, find_sources(version, folder / "weights"), engines, options, print)
    return engines


def main() -> None:
    """Prints a table of launches and memory for each component and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", default="0.9.8-2b-distilled")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--sizes", nargs="+", default=["512x768x97", "704x1216x121"])
    parser.add_argument("--work", type=Path, default=Path("build/launches"))
    asked = parser.parse_args()
    folder = exported(find_version(asked.version), asked.work.resolve() / asked.version, asked.precision)
    engines = Engines(folder, read_manifest(folder), trusted=True)
    for name in _COMPONENTS:
        for size in asked.sizes:
            grid = grid_of(*size_of(size, "--sizes"))
            axes = {"batch": 1, "tokens": grid.tokens, "timesteps": 1, "text_tokens": _TEXT_TOKENS}
            axes |= {"frames": grid.frames, "rows": grid.rows, "columns": grid.columns}
            done = run_twice(graph_found(engines, name, "cuda", [asked.precision]), axes)
            traffic = done.traffic()
            most = ", ".join(f"{operator} {moved / 1e9:.1f}" for operator, moved in traffic.most_common(8))
            counted = f"{done.kernels.total()} launches, {traffic.total() / 1e9:.1f} GB"
            sys.stdout.write(f"{name} {size}: {counted} ({most})\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
