"""Stand-in engines for a version folder, and everything a session needs to run them where there is no GPU.

A whole video can be made through them: every engine computes its component's fp32 graph, or a function of numpy.
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

from ltx_runtime.folder.manifest import Engines, checksum
from ltx_runtime.folder.profiles import Limits, Profile, profiles
from ltx_runtime.folder.sidecar import (
    Maker,
    Sidecar,
    WeightInput,
    engine_path,
    refit_graph_path,
    sources_of,
    write_sidecar,
)
from ltx_runtime.sessions.cuda import device as cuda
from ltx_runtime.sessions.cuda import gpu
from ltx_runtime.sessions.trt.library import maker_of
from ltx_runtime.spec.components import Component, line_of

_DTYPES = {"float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}
_WEIGHT_DTYPES = {"bf16": "BF16", "fp16": "HALF", "fp32": "FLOAT", "int8": "INT8", "int4": "INT4"}
VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}


@dataclass(frozen=True)
class Recipe:
    """How a stand-in engine is made.

    Attributes:
        precision: of the graph it is said to be built from.
        weights: see sidecar.Weights.
        profiles: None for those of `limits`.
        weight_inputs: by input; for weights that are inputs.
        own_bytes: of the GPU that it takes when it is loaded.
        streamable: how many of them may stay in the machine's memory.
        capturable: whether a CUDA graph can be made of it.
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
    """What a test looks at: the GPU, what the library did, and who is said to have built the engines."""

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
    """Puts a stand-in library and GPU in place until the end of the test, and an engine of every component.

    Args:
        monkeypatch: the test's.
        engines: a folder with graphs of the recipe's precision; unless there are functions, with fp32 graphs too.
        builder: "tensorrt" or "tensorrt_rtx".
        machine: the GPU, if not the usual one.
        recipe: for all components, or by component; a component without one gets no engine.
        functions: what a component computes (feeds to outputs), where its graph does not.
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
    """A stand-in engine of a component with a sidecar that fits."""
    entry = engines.component(name)
    served = recipe.profiles or profiles(entry.signature, recipe.limits)
    path = engine_path(engines, name, maker, recipe.precision)
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
            sources=sources_of(engines, name, recipe.precision),
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
