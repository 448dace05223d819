"""Realistic inputs of a graph, and the output that it computed for them at export; without torch.

This record is part of the version folder, so that results of another machine, library or engine can be compared to it.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltx_runtime.errors import LtxError, explaining, shown
from ltx_runtime.folder.manifest import QUANTIZED, Engines
from ltx_runtime.graph.check import check_graph
from ltx_runtime.sessions import CheckedSession
from ltx_runtime.spec.components import UNEVEN, Component, Port, check_feeds
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.text.encode import words_of
from ltx_runtime.text.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

LIMIT = 1e-4
# Sizes of two requests that differ in every axis: with one timestep for all tokens, and with one per token.
SIZES: tuple[dict[str, int], ...] = (
    {"batch": 1, "tokens": 10, "timesteps": 1, "text_tokens": 9, "frames": 2, "rows": 3, "columns": 2},
    {"batch": 3, "tokens": 6, "timesteps": 6, "text_tokens": 5, "frames": 1, "rows": 2, "columns": 3},
)
_SMALLEST_VOCABULARY = 100
_ENCRYPTED = 1  # flag of a member of a zip file
# What zipfile and numpy raise of files that are none of theirs, besides what it says in their documentation.
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, tokenize.TokenError)
_OF_ANGLES = {"cosines": np.cos, "sines": np.sin}  # ports that take functions of the same angles


def random_feeds(component: Component, sizes: Mapping[str, int]) -> Feeds:
    """Returns random inputs in each port's real range of values; the same port and sizes give the same values."""
    return {port.name: _values(port, port.shape(sizes)) for port in component.inputs}


def _values(port: Port, shape: tuple[int, ...]) -> Array:
    random = np.random.RandomState(zlib.crc32(f"{port.name}{shape}".encode()))
    values: Array
    if port.name == "ids":
        values = random.randint(2, _SMALLEST_VOCABULARY, shape)
    elif port.name in ("mask", "text_mask"):  # row r ends with r padding tokens
        values = np.arange(shape[1])[None, :] < shape[1] - np.arange(shape[0])[:, None]
    elif port.name == "skip_mask":
        values = _skip_mask(shape)
    elif port.name == "sinusoid":
        values = sinusoid_of(random.uniform(0.0, 1.0, shape[:-1]).astype(np.float32))
    elif port.name == "video":
        values = random.uniform(-1.0, 1.0, shape)
    elif port.name in _OF_ANGLES:
        angles = np.random.RandomState(zlib.crc32(f"angles{shape}".encode())).uniform(0.0, 2 * np.pi, shape)
        values = _OF_ANGLES[port.name](angles)
    else:
        values = random.standard_normal(shape)
    return np.asarray(values, dtype=port.dtype)


def _skip_mask(shape: tuple[int, ...]) -> Array:
    """Returns a skip mask (layers, modes, batch): layers in turn skip nothing, or one of the modes in one batch row."""
    layers, modes, batch = shape
    values = np.ones(shape)
    for layer in range(layers):
        mode = layer % (modes + 1) - 1
        if mode >= 0:
            values[layer, mode, layer % batch] = 0
    return values


def relative_l2(actual: Array, expected: Array) -> float:
    """Returns |actual - expected| / |expected|: 0 for equal arrays; infinite if only `expected` is zero, or on NaN."""
    difference = float(np.linalg.norm((actual - expected).astype(np.float64)))
    size = float(np.linalg.norm(expected.astype(np.float64)))
    if not np.isfinite(difference) or (difference and not size):
        return float("inf")
    return difference / size if difference else 0.0


def run_graph(graph: Path, weights: Path, component: Component, requests: Sequence[Feeds]) -> list[Array]:
    """Runs a graph, whose weights are in the folder `weights`, and returns its first output for each request."""
    from ltx_runtime.sessions.onnxruntime_cpu import CpuRunner  # noqa: PLC0415  (machines with a GPU may lack onnxruntime)

    # The VAE's layers differ in size, so that an arena reuses little memory: 0.7 GB with it, 0.5 GB without.
    runner = CpuRunner(graph, weights, arena=component.name not in UNEVEN)
    session = CheckedSession(component, runner)
    try:
        return [session.run(feeds)[component.outputs[0].name] for feeds in requests]
    finally:
        runner.close()


def refuse_unfinite(component: Component, output: Array) -> None:
    """Raises LtxError unless all values of an output are finite."""
    if not np.isfinite(output).all():
        raise LtxError(
            f"{component.name} computes values that are not finite from its weights", "use another checkpoint"
        )


def record(graph: Path, weights: Path, component: Component, path: Path) -> None:
    """Runs a complete fp32 graph once, and writes inputs and output to an .npz file.

    Raises:
        LtxError: the output has values that are not finite, or the file cannot be written.
    """
    feeds = random_feeds(component, SIZES[0])
    (output,) = run_graph(graph, weights, component, [feeds])
    refuse_unfinite(component, output)
    with explaining(f"write {path}"):
        np.savez(path, allow_pickle=False, **feeds, **{component.outputs[0].name: output})


def read_record(path: Path, component: Component) -> tuple[Feeds, Array]:
    """Reads the inputs and the output that `record` wrote.

    Raises:
        LtxError: the file is damaged, or does not fit the component's ports.
    """
    try:
        _check_stored(path)
        with explaining(f"read {path}"), np.load(path, allow_pickle=False) as arrays:
            feeds = {port.name: arrays[port.name] for port in component.inputs}
            expected = arrays[component.outputs[0].name]
        shape = component.outputs[0].shape(check_feeds(component, feeds))
        if expected.shape != shape or expected.dtype != component.outputs[0].dtype:
            raise ValueError(f"its output is {expected.dtype} {expected.shape}")
    except (ValueError, KeyError, EOFError, OSError, *_DAMAGED) as error:
        raise LtxError(f"{path} is not a record of {component.name} ({error})", "export the version again") from None
    return feeds, expected


def _check_stored(path: Path) -> None:
    """Raises ValueError unless every array of an .npz file is stored as it is, with the bytes that its header says."""
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & _ENCRYPTED
            if not stored or member.file_size > path.stat().st_size:
                raise ValueError(f"{shown(member.filename)} is compressed or encrypted")
            with file.open(member) as array:
                version = np.lib.format.read_magic(array)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read_header(array)
                if array.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                    raise ValueError(f"{shown(member.filename)} is not as long as its header says")


def _check_tokenizer(engines: Engines) -> None:
    file, encoder = engines.manifest.tokenizer, engines.manifest.components.get("text_encoder")
    if file is not None and encoder is not None:
        tokenizer = Tokenizer(engines.folder / file, max_tokens=1)
        for graph in encoder.graphs.values():
            tokenizer.check_vocabulary(words_of(engines.folder / graph))


def check_folder(engines: Engines, report: Callable[[str], None]) -> None:
    """Runs the fp32 and q8 graphs of a verified version folder on the recorded inputs, and compares the outputs.

    Raises:
        LtxError: the tokenizer cannot be opened, or does not fit the text encoder; a graph cannot be loaded, or may
            not; or its output differs from the record by more in relative L2 than LIMIT, or for q8 by more than that
            beyond the difference at export.
    """
    _check_tokenizer(engines)
    for name, entry in engines.manifest.components.items():
        limits = {"fp32": LIMIT} if "fp32" in entry.graphs else {}
        if QUANTIZED in entry.quantized:
            limits[QUANTIZED] = entry.quantized[QUANTIZED].error + LIMIT
        if entry.recorded is None or not limits:
            report(f"{name}: no fp32 graph to run here; its files are intact")
            continue
        feeds, expected = read_record(engines.folder / entry.recorded, entry.signature)
        for precision, limit in limits.items():
            weights = engines.weights_folder(name) if precision == "fp32" else engines.folder
            graph = engines.folder / entry.graphs[precision]
            check_graph(graph, entry.signature, engines.weight_sizes(name, precision))
            (actual,) = run_graph(graph, weights, entry.signature, [feeds])
            error = relative_l2(actual, expected)
            if error > limit:
                raise LtxError(
                    f"{graph} differs from its record by {error:.1e} relative L2, more than {limit:.1e}",
                    command=engines.export_command(),
                )
            report(f"{name}: relative L2 {error:.1e} of {precision} to its record")
