"""Attaches stored weights to a graph as external data: initializers point into files by offset, and nothing is copied.

Where a file's dtype differs from the graph's, the graph casts. Casts come first in the node list, so that a runtime
frees each result after its consumer. An embedding is cast after the lookup, so that only the rows looked up are cast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from ltx_export.graphs.attach_blocks import attach_blocks, hand_over
from ltx_export.weights.rewrite import BlockWeight, Weight
from ltx_runtime.weights.checkpoint import StoredTensor

_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


def attach(model: ir.Model, weights: Mapping[str, Weight], names: Mapping[Path, str], folder: Path) -> None:
    """Points every weight of the graph to its location in a file.

    Args:
        model: a graph whose weights are initializers without data, named by state dict keys.
        weights: weights by name, stored as F32, F16 or BF16, or as integers with block scales.
        names: names of the files by which the graph refers to them.
        folder: folder that these names are relative to.
    """
    graph = model.graph

    def external(name: str, tensor: StoredTensor, dtype: ir.DataType, shape: Sequence[int]) -> ir.ExternalTensor:
        location = names[tensor.file]
        return ir.ExternalTensor(
            location, tensor.offset, tensor.length, dtype, shape=ir.Shape(shape), name=name, base_dir=folder
        )

    def point(name: str, tensor: StoredTensor, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        data = external(name, tensor, dtype, shape)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=data)
        graph.initializers[name] = value
        return value

    used_weights = {name: weights[name] for name in graph.initializers if name in weights}
    for name, weight in used_weights.items():
        if isinstance(weight, BlockWeight):
            attach_blocks(graph, graph.initializers[name], weight, point)
    first_node = graph[0]
    for name, weight in used_weights.items():
        if isinstance(weight, StoredTensor):
            value, stored_dtype = graph.initializers[name], _DTYPES[weight.dtype]
            dtype, value.dtype = value.dtype, stored_dtype
            value.const_value = external(name, weight, stored_dtype, weight.shape)
            if dtype is not None and dtype != stored_dtype:
                _cast(graph, value, dtype, first_node)


def _cast(graph: ir.Graph, weight: ir.Value, dtype: ir.DataType, first_node: ir.Node) -> None:
    consumers = list(weight.uses())
    lookups = [use.node for use in consumers if use.node.op_type == "Gather" and use.idx == 0]
    if len(lookups) == len(consumers):
        for node in lookups:
            _cast_after(graph, node, dtype)
        return
    cast = _cast_node(weight, dtype)
    graph.insert_before(first_node, cast)
    hand_over(consumers, cast.outputs[0])


def _cast_after(graph: ir.Graph, lookup: ir.Node, dtype: ir.DataType) -> None:
    looked_up = lookup.outputs[0]
    consumers = list(looked_up.uses())
    weight = lookup.inputs[0]
    assert weight is not None and weight.dtype is not None
    looked_up.dtype = weight.dtype
    cast = _cast_node(looked_up, dtype)
    graph.insert_after(lookup, cast)
    hand_over(consumers, cast.outputs[0])


def _cast_node(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": ir.AttrInt64("to", dtype)}, name=f"cast/{value.name}")
    cast.outputs[0].name = f"{value.name}.{dtype.name.lower()}"
    cast.outputs[0].dtype = dtype
    return cast
