"""Prepares a component's graph for an engine builder: a few megabytes that refer to the weights or have them as inputs.

The module `engine_from_onnx` uses the result. This module knows nothing about TensorRT, reads no weights and imports no
torch.
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

# Dtypes of stored weights, with their names in a sidecar.
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
_PREFIX = "engine/"  # prefix of the names of nodes and values that are added here


@dataclass(frozen=True)
class Prepared:
    """A graph that is ready for an engine builder.

    Attributes:
        model: the serialized graph; the paths of its external data are relative to the folder of the weights.
        weight_inputs: locations of the weights that are inputs, by input name; empty unless weights are inputs.
        structure: hash of the graph without its weights, which is equal for checkpoints of the same architecture, also
            with merged LoRAs.
        weights_bytes: size of all weights outside the graph.
        nodes: number of nodes of the graph.
    """

    model: bytes
    weight_inputs: dict[str, WeightInput]
    structure: str
    weights_bytes: int
    nodes: int


def prepare(graph: Path, component: Component, weights: Weights) -> Prepared:
    """Reads a graph and prepares it for an engine builder.

    A decoder gets two more outputs: `frames` (B, F, H, W, 3) uint8, the video's levels, and `mean` (B,) float32,
    which is not finite if any value of the video is not.

    Args:
        graph: path of a graph in a version folder; its weights are not read.
        component: ports of the graph.
        weights: with "inputs", every weight outside the graph becomes an input of the same name, dtype and shape;
            small constants stay in the graph.

    Raises:
        LtxError: the file is no ONNX graph of this component.
    """
    try:
        model = onnx.load(graph, load_external_data=False)
    except (OSError, MemoryError):
        raise
    except Exception:  # protobuf's own exception, whose package has no type hints
        raise LtxError(f"{graph} is not an ONNX graph", "export the version again") from None
    output_names = [port.name for port in component.outputs]
    if [value.name for value in model.graph.output] != output_names:
        raise LtxError(f"{graph} is not a graph of {component.name}", "export the version again")
    if component.name == "vae_decoder":
        _add_frames_and_mean(model.graph, output_names[0])
    structure = structure_of(model)
    stored = {tensor.name: _place_of(tensor) for tensor in model.graph.initializer if _is_outside(tensor)}
    if weights == "inputs":
        _take_as_inputs(model.graph)
    return Prepared(
        model.SerializeToString(),
        stored if weights == "inputs" else {},
        structure,
        sum(place.size_bytes for place in stored.values()),
        len(model.graph.node),
    )


def structure_of(model: onnx.ModelProto) -> str:
    """Returns the SHA-256 of a graph without the locations of its weights and without metadata.

    Constants inside the graph count, since an engine contains them wherever its weights are.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    for name in ("producer_name", "producer_version", "domain", "model_version"):
        bare.ClearField(name)
    messages = (bare, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    for message in messages:
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("external_data")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _is_outside(initializer: onnx.TensorProto) -> bool:
    return bool(initializer.data_location == TensorProto.EXTERNAL)


def _place_of(initializer: onnx.TensorProto) -> WeightInput:
    entry = {pair.key: pair.value for pair in initializer.external_data}
    dtype = DTYPES[initializer.data_type]
    return WeightInput(
        entry["location"], int(entry.get("offset", 0)), int(entry["length"]), dtype, tuple(initializer.dims)
    )


def _take_as_inputs(graph: onnx.GraphProto) -> None:
    outside = [tensor for tensor in graph.initializer if _is_outside(tensor)]
    inside = [tensor for tensor in graph.initializer if not _is_outside(tensor)]
    graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in outside
    )
    del graph.initializer[:]
    graph.initializer.extend(inside)


def _add_frames_and_mean(graph: onnx.GraphProto, video: str) -> None:
    """Adds the outputs `frames` and `mean` to a decoder's graph.

    `frames` is floor(255 * clip(video / 2 + 0.5, 0, 1)) with channels last; the cast to uint8 must come last.
    """
    _set_aside(graph, ("frames", "mean"))
    half, zero, one, levels = (_constant(graph, name, np.float32(value)) for name, value in _SCALARS.items())
    axes = _constant(graph, "all_but_batch", np.arange(1, len(_CHANNELS_LAST)))
    chain: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
        ("Mul", [half], {}),
        ("Add", [half], {}),
        ("Clip", [zero, one], {}),
        ("Mul", [levels], {}),
        ("Floor", [], {}),
        ("Transpose", [], {"perm": _CHANNELS_LAST}),
        ("Cast", [], {"to": TensorProto.UINT8}),
    )
    value = video
    for number, (op_type, operands, attributes) in enumerate(chain, 1):
        result = "frames" if number == len(chain) else f"{_PREFIX}frames.{number}"
        name = f"{_PREFIX}{op_type}_{number}"
        graph.node.append(helper.make_node(op_type, [value, *operands], [result], name, **attributes))
        value = result
    graph.node.append(helper.make_node("ReduceMean", [video, axes], ["mean"], f"{_PREFIX}ReduceMean", keepdims=0))
    graph.output.append(helper.make_tensor_value_info("frames", TensorProto.UINT8, [None] * 4 + [3]))
    graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [None]))


_SCALARS = {"half": 0.5, "nothing": 0.0, "one": 1.0, "levels": _LEVELS}


def _constant(graph: onnx.GraphProto, name: str, values: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(values), f"{_PREFIX}{name}"))
    return f"{_PREFIX}{name}"


def _set_aside(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Renames values inside the graph that have these names, which are needed for outputs."""
    new_names = {name: f"{_PREFIX}{name}.inner" for name in names}
    for node in graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        node.output[:] = [new_names.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info):
        value.name = new_names.get(value.name, value.name)
