"""Stand-in engines for a version folder, and everything that a session needs to run them without a GPU.

They can generate a whole video: every engine computes its component's fp32 graph, or a function in numpy.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from stand_ins.cuda import cudart_of
from stand_ins.gpu_machine import Machine
from stand_ins.tensorrt_runtime import library_of
from stand_ins.tensorrt_types import Seen, World

from ltx_runtime.folder.address import EngineAddress
from ltx_runtime.folder.manifest import Engines, checksum
from ltx_runtime.folder.profiles import Limits, Profile, profiles
from ltx_runtime.folder.sidecar import Maker, Sidecar, WeightInput, refit_graph_path, write_sidecar
from ltx_runtime.sessions.cuda import device as cuda
from ltx_runtime.sessions.cuda import gpu
from ltx_runtime.sessions.trt.library import maker_of
from ltx_runtime.spec.components import Component, line_of

_DTYPES = {"float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}
_WEIGHT_DTYPES = {"bf16": "BF16", "fp16": "HALF", "fp32": "FLOAT", "int8": "INT8", "int4": "INT4"}
VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}


@dataclass(frozen=True)
class Recipe:
    """Settings of a stand-in engine.

    Attributes:
        precision: precision of the graph that it claims to be built from.
        weights: where its weights are, "embedded", "inputs" or "refit" (sidecar.Weights).
        limits: limits of the default profiles.
        profiles: profiles of the engine; None for the default profiles within `limits`.
        weight_inputs: weights that are inputs, by input name.
        own_bytes: bytes of GPU memory that it takes when it is loaded.
        streamable: bytes of weights that may stay in host memory.
        capturable: whether a CUDA graph can be captured from it.
    """

    precision: str = "bf16"
    weights: str = "embedded"
    limits: Limits | None = None
    profiles: list[Profile] | None = None
    weight_inputs: Mapping[str, WeightInput] | None = None
    own_bytes: int = 4096
    streamable: int = 0
    capturable: bool = True


@dataclass(frozen=True)
class Installed:
    """Objects that a test inspects: the GPU, what the library did, and the maker of the engines."""

    machine: Machine
    seen: Seen
    maker: Maker


def install(
    monkeypatch: pytest.MonkeyPatch,
    engines: Engines,
    builder: str = "tensorrt_rtx",
    machine: Machine | None = None,
    recipe: Recipe | Mapping[str, Recipe] = Recipe(),
    functions: Mapping[str, Callable] | None = None,
) -> Installed:
    """Installs a stand-in library and GPU until the end of the test, and an engine of every component.

    Args:
        monkeypatch: the test's fixture.
        engines: folder with graphs of the recipe's precision, and with fp32 graphs unless `functions` replaces them.
        builder: "tensorrt" or "tensorrt_rtx".
        machine: the GPU; None for the default one.
        recipe: the recipe for all components, or recipes by component; a component without one gets no engine.
        functions: functions from feeds to outputs that replace graphs, by component.
    """
    pytest.importorskip("filelock", reason="sessions of engines need it; it comes with them")
    world = World(machine or Machine(), functions or {})
    cudart = cudart_of(world.machine)
    library = library_of(world, builder, VERSIONS[builder])
    monkeypatch.setattr(gpu, "cuda_runtime", lambda: cudart)
    monkeypatch.setattr(cuda, "device", functools.cache(cuda.Device))
    monkeypatch.setitem(sys.modules, builder, library)
    maker = maker_of(builder, library, gpu.find_gpu()) if world.machine.driver else Maker(builder, VERSIONS[builder])
    for name in engines.manifest.components:
        one = recipe if isinstance(recipe, Recipe) else recipe.get(name)
        if one is not None:
            write_engine(engines, name, maker, one)
    return Installed(world.machine, world.seen, maker)


def write_engine(engines: Engines, name: str, maker: Maker, recipe: Recipe = Recipe()) -> Path:
    """Writes a stand-in engine of a component with a matching sidecar."""
    entry = engines.component(name)
    served = recipe.profiles or profiles(entry.signature, recipe.limits)
    address = EngineAddress(engines, name, maker, recipe.precision)
    path = address.path
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(_spec(engines, name, served, recipe)))
    if recipe.weights == "refit":
        graph = engines.folder / engines.component(name).graphs[recipe.precision]
        refit_graph_path(path).write_bytes(graph.read_bytes())
    write_sidecar(
        path,
        Sidecar(
            **{"builder": maker.builder, "builder_version": maker.version, "target": maker.target},
            **{"system": maker.system, "gpu": maker.gpu, "driver": maker.driver},
            component=name,
            precision=recipe.precision,
            weights=recipe.weights,
            profiles=served,
            sources=address.sources(),
            structure="",
            engine_checksum=checksum(path),
            weight_inputs=dict(recipe.weight_inputs or {}),
            weight_streaming=recipe.streamable > 0,
        ),
    )
    return path


def _spec(engines: Engines, name: str, served: list[Profile], recipe: Recipe) -> dict:
    entry, folder = engines.component(name), engines.weights_folder(name)
    graph = engines.folder / entry.graphs[recipe.precision]
    outputs = {port.name: _port(port.axes, port.dtype) for port in entry.signature.outputs}
    if name == "vae_decoder":
        axes = entry.signature.outputs[0].axes
        outputs["frames"] = _port((axes[0], *axes[2:], axes[1]), "uint8")
        outputs["mean"] = _port(axes[:1], "float32")
    weight_inputs = {
        input_name: {
            "file": str(folder / one.file),
            "offset": one.offset,
            "shape": list(one.shape),
            "dtype": _WEIGHT_DTYPES[one.dtype],
        }
        for input_name, one in (recipe.weight_inputs or {}).items()
    }
    return {
        "component": name,
        "graph": str(engines.folder / entry.graphs.get("fp32", "")),
        "weights_folder": str(folder),
        "weights_files": list(entry.weights),
        "graph_checksum": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "weights": recipe.weights,
        "inputs": {port.name: _port(port.axes, port.dtype) for port in entry.signature.inputs},
        "outputs": outputs,
        "weight_inputs": weight_inputs,
        "profiles": [_shapes(entry.signature, profile) for profile in served],
        "own_bytes": recipe.own_bytes,
        "streamable": recipe.streamable,
        "capturable": recipe.capturable,
    }


def _port(axes: tuple, dtype: str) -> dict:
    lines = [axis if isinstance(axis, int) else line_of(axis) for axis in axes]
    return {
        "dtype": _DTYPES[dtype],
        "axes": [one if isinstance(one, int) else [one.name, one.factor, one.offset] for one in lines],
    }


def _shapes(component: Component, profile: Profile) -> dict:
    ends = {end: {name: getattr(span, end) for name, span in profile.items()} for end in ("min", "max")}
    return {port.name: {end: port.shape(sizes) for end, sizes in ends.items()} for port in component.inputs}
