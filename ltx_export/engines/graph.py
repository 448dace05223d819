"""A component's graph as an engine builder is given it: a few megabytes that point into the weights, or take them.

Stands in front of engine_from_onnx. Knows nothing of TensorRT; reads no weights and imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ltx_runtime.errors import LtxError
from ltx_runtime.folder.sidecar import WeightInput, Weights
from ltx_runtime.spec.components import Component

# The types that weights are stored in, in a sidecar's words.
DTYPES: dict[int, str] = {
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT16: "fp16",
    TensorProto.FLOAT: "fp32",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}
_LEVELS = 255.0
_CHANNELS_LAST = (0, 2, 3, 4, 1)
_OURS = "engine/"  # in front of the names of what is added here


@dataclass(frozen=True)
class Prepared:
    """A graph for a builder.

    Attributes:
        model: the serialized graph; its external weights are relative to the folder of the weights.
        weight_inputs: where the values lie of inputs that are weights; empty unless weights are inputs.
        structure: of the graph whatever its weights: equal for sibling checkpoints, also with LoRAs merged.
        weights_bytes: of all weights outside the graph.
        nodes: how many the graph has.
    """

    model: bytes
    weight_inputs: dict[str, WeightInput]
    structure: str
    weights_bytes: int
    nodes: int


def prepare(graph: Path, component: Component, weights: Weights) -> Prepared:
    """Reads a graph and makes of it what becomes an engine.

    A decoder gets two more outputs: `frames` (B, F, H, W, 3) uint8, the video's levels, and `mean` (B,) float32,
    which is not finite if any value of the video is not.

    Args:
        graph: of a version folder; its weights are not looked at.
        component: its ports.
        weights: with "inputs", every weight outside the graph becomes an input of the same name, dtype and shape;
            small constants stay in it.

    Raises:
        LtxError: the file is no graph of this component.
    """
    try:
        model = onnx.load(graph, load_external_data=False)
    except (OSError, MemoryError):
        raise
    except Exception:  # protobuf's own, which has no types
        raise LtxError(f"{graph} is not an ONNX graph", "export the version again") from None
    wanted = [port.name for port in component.outputs]
    if [value.name for value in model.graph.output] != wanted:
        raise LtxError(f"{graph} is not a graph of {component.name}", "export the version again")
    if component.name == "vae_decoder":
        _add_frames_and_mean(model.graph, wanted[0])
    structure = structure_of(model)
    stored = {one.name: _place_of(one) for one in model.graph.initializer if _is_outside(one)}
    if weights == "inputs":
        _take_as_inputs(model.graph)
    return Prepared(
        model.SerializeToString(),
        stored if weights == "inputs" else {},
        structure,
        sum(one.size_bytes for one in stored.values()),
        len(model.graph.node),
    )


def structure_of(model: onnx.ModelProto) -> str:
    """SHA-256 of a graph without what says where its weights lie, and without remarks.

    Constants within the graph count: an engine has them in it, whatever its weights.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    for name in ("producer_name", "producer_version", "domain", "model_version"):
        bare.ClearField(name)
    everything = (bare, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    for one in everything:
        one.ClearField("doc_string")
        one.ClearField("metadata_props")
    for one in graph.initializer:
        one.ClearField("external_data")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _is_outside(initializer: onnx.TensorProto) -> bool:
    return bool(initializer.data_location == TensorProto.EXTERNAL)


def _place_of(initializer: onnx.TensorProto) -> WeightInput:
    entry = {one.key: one.value for one in initializer.external_data}
    dtype = DTYPES[initializer.data_type]
    return WeightInput(
        entry["location"], int(entry.get("offset", 0)), int(entry["length"]), dtype, tuple(initializer.dims)
    )


def _take_as_inputs(graph: onnx.GraphProto) -> None:
    outside = [one for one in graph.initializer if _is_outside(one)]
    inside = [one for one in graph.initializer if not _is_outside(one)]
    graph.input.extend(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in outside)
    del graph.initializer[:]
    graph.initializer.extend(inside)


def _add_frames_and_mean(graph: onnx.GraphProto, video: str) -> None:
    """`frames` is floor(255 * clip(video / 2 + 0.5, 0, 1)) with channels last; its cast has to be the very last."""
    _set_aside(graph, ("frames", "mean"))
    half, nothing, one, levels = (_constant(graph, name, np.float32(value)) for name, value in _SCALARS.items())
    axes = _constant(graph, "all_but_batch", np.arange(1, len(_CHANNELS_LAST)))
    chain: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
        ("Mul", [half], {}),
        ("Add", [half], {}),
        ("Clip", [nothing, one], {}),
        ("Mul", [levels], {}),
        ("Floor", [], {}),
        ("Transpose", [], {"perm": _CHANNELS_LAST}),
        ("Cast", [], {"to": TensorProto.UINT8}),
    )
    value = video
    for number, (op_type, more, attributes) in enumerate(chain, 1):
        result = "frames" if number == len(chain) else f"{_OURS}frames.{number}"
        name = f"{_OURS}{op_type}_{number}"
        graph.node.append(helper.make_node(op_type, [value, *more], [result], name, **attributes))
        value = result
    graph.node.append(helper.make_node("ReduceMean", [video, axes], ["mean"], f"{_OURS}ReduceMean", keepdims=0))
    graph.output.append(helper.make_tensor_value_info("frames", TensorProto.UINT8, [None] * 4 + [3]))
    graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [None]))


_SCALARS = {"half": 0.5, "nothing": 0.0, "one": 1.0, "levels": _LEVELS}


def _constant(graph: onnx.GraphProto, name: str, values: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(values), f"{_OURS}{name}"))
    return f"{_OURS}{name}"


def _set_aside(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Renames what goes by these names within the graph: they are wanted for outputs."""
    new = {name: f"{_OURS}{name}.inner" for name in names}
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info):
        value.name = new.get(value.name, value.name)
