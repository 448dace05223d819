"""Requests a graph may really get, and what it made of them where it was exported. No torch.

The record travels with the folder: another machine, library or engine is held against it.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.folder.manifest import Engines, export_command
from ltx_runtime.spec.components import UNEVEN, Component, Port, check_feeds

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

LIMIT = 1e-4
# Two requests of different shape in every axis: one timestep for all tokens, and one per token.
SIZES: tuple[dict[str, int], ...] = (
    {"batch": 1, "tokens": 10, "timesteps": 1, "text_tokens": 9, "frames": 2, "rows": 3, "columns": 2},
    {"batch": 3, "tokens": 6, "timesteps": 6, "text_tokens": 5, "frames": 1, "rows": 2, "columns": 3},
)
_SMALLEST_VOCABULARY = 100


def random_feeds(component: Component, sizes: Mapping[str, int]) -> Feeds:
    """Inputs a port may really get, the same for the same port and sizes."""
    return {port.name: _values(port, port.shape(sizes)) for port in component.inputs}


def _values(port: Port, shape: tuple[int, ...]) -> Array:
    random = np.random.RandomState(zlib.crc32(f"{port.name}{shape}".encode()))
    values: Array
    if port.name == "ids":
        values = random.randint(2, _SMALLEST_VOCABULARY, shape)
    elif port.name in ("mask", "text_mask"):  # row r ends with r padding tokens
        values = np.arange(shape[1])[None, :] < shape[1] - np.arange(shape[0])[:, None]
    elif port.name == "skip_mask":
        values = _skips(shape)
    elif port.name == "timestep":
        values = random.uniform(0.0, 1.0, shape)
    elif port.name == "video":
        values = random.uniform(-1.0, 1.0, shape)
    elif port.name == "coords":
        values = random.uniform(0.0, 1.0, shape) * np.array([5.0, 704.0, 1216.0])[:, None]
    else:
        values = random.standard_normal(shape)
    return np.asarray(values, dtype=port.dtype)


def _skips(shape: tuple[int, ...]) -> Array:
    """(layers, modes, batch): of one layer after another nothing is skipped, then each mode in turn, by one row."""
    layers, modes, batch = shape
    values = np.ones(shape)
    for layer in range(layers):
        mode = layer % (modes + 1) - 1
        if mode >= 0:
            values[layer, mode, layer % batch] = 0
    return values


def relative_l2(actual: Array, expected: Array) -> float:
    """|actual - expected| / |expected|; 0 where both are zero, infinite where anything is not finite."""
    difference = float(np.linalg.norm((actual - expected).astype(np.float64)))
    if not np.isfinite(difference):
        return float("inf")
    return difference / float(np.linalg.norm(expected.astype(np.float64))) if difference else 0.0


def run_graph(graph: Path, weights: Path, component: Component, requests: Sequence[Feeds]) -> list[Array]:
    """The first output of a graph, whose weights are in the folder `weights`, for each request."""
    from ltx_runtime.sessions.onnxruntime_cpu import CpuRunner  # noqa: PLC0415  (not on every machine with a GPU)

    # The VAE's layers all differ in size: 0.5 GB, not 0.7.
    runner = CpuRunner(graph, weights, arena=component.name not in UNEVEN)
    output = component.outputs[0].name
    try:
        return [runner.run(feeds, [output])[output] for feeds in requests]
    finally:
        runner.close()


def refuse_unfinite(component: Component, output: Array) -> None:
    """Raises LtxError unless every number of an output is finite."""
    if not np.isfinite(output).all():
        raise LtxError(f"{component.name} makes numbers that are not finite of its weights", "use another checkpoint")


def record(graph: Path, weights: Path, component: Component, path: Path) -> None:
    """Runs a whole fp32 graph once and writes inputs and output into an .npz file.

    Raises:
        LtxError: the output is not finite everywhere.
    """
    feeds = random_feeds(component, SIZES[0])
    (output,) = run_graph(graph, weights, component, [feeds])
    refuse_unfinite(component, output)
    with explaining(f"write {path}"):
        np.savez(path, allow_pickle=False, **feeds, **{component.outputs[0].name: output})


def read_record(path: Path, component: Component) -> tuple[Feeds, Array]:
    """Inputs and output as `record` wrote them."""
    try:
        with np.load(path) as arrays:
            recorded = {port.name: arrays[port.name] for port in component.inputs}
            expected = arrays[component.outputs[0].name]
        check_feeds(component, recorded)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise LtxError(f"{path} is no record of {component.name} ({error})", "export the version again") from None
    return recorded, expected


def check_folder(engines: Engines, report: Callable[[str], None]) -> None:
    """Runs every fp32 graph of a verified folder on what was recorded at its export.

    Raises:
        LtxError: a graph cannot be loaded, or differs by more than LIMIT relative L2.
    """
    for name, entry in engines.manifest.components.items():
        graph = entry.graphs.get("fp32")
        if graph is None or entry.recorded is None:
            report(f"{name}: no fp32 graph to run here; its files are whole")
            continue
        recorded, expected = read_record(engines.folder / entry.recorded, entry.signature)
        (actual,) = run_graph(engines.folder / graph, engines.weights_folder(name), entry.signature, [recorded])
        error = relative_l2(actual, expected)
        if error > LIMIT:
            raise LtxError(
                f"{engines.folder / graph} differs from its record by {error:.1e} relative L2, more than {LIMIT:.0e}",
                command=export_command(engines.manifest.version),
            )
        report(f"{name}: relative L2 {error:.1e} to its record")
