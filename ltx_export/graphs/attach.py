"""Attaches stored weights to a graph as external data: initializers point into files by offset, and nothing is copied.

Where a file's dtype differs from the graph's, the graph casts. Casts come first in the node list, so that a runtime
frees each result after its consumer. An embedding is cast after the lookup, so that only the rows looked up are cast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from ltx_export.checkpoints.checkpoint import StoredTensor
from ltx_export.graphs.attach_blocks import attach_blocks, hand_over
from ltx_export.weights.rewrite import BlockWeight, Weight

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
        place = names[tensor.file]
        return ir.ExternalTensor(
            place, tensor.offset, tensor.length, dtype, shape=ir.Shape(shape), name=name, base_dir=folder
        )

    def point(name: str, tensor: StoredTensor, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        data = external(name, tensor, dtype, shape)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=data)
        graph.initializers[name] = value
        return value

    given = {name: weights[name] for name in graph.initializers if name in weights}
    for name, weight in given.items():
        if isinstance(weight, BlockWeight):
            attach_blocks(graph, graph.initializers[name], weight, point)
    first = graph[0]
    for name, weight in given.items():
        if isinstance(weight, StoredTensor):
            value, stored = graph.initializers[name], _DTYPES[weight.dtype]
            wanted, value.dtype = value.dtype, stored
            value.const_value = external(name, weight, stored, weight.shape)
            if wanted is not None and wanted != stored:
                _cast(graph, value, wanted, first)


def _cast(graph: ir.Graph, weight: ir.Value, wanted: ir.DataType, first: ir.Node) -> None:
    consumers = list(weight.uses())
    lookups = [use.node for use in consumers if use.node.op_type == "Gather" and use.idx == 0]
    if len(lookups) == len(consumers):
        for node in lookups:
            _cast_after(graph, node, wanted)
        return
    cast = _cast_node(weight, wanted)
    graph.insert_before(first, cast)
    hand_over(consumers, cast.outputs[0])


def _cast_after(graph: ir.Graph, lookup: ir.Node, wanted: ir.DataType) -> None:
    looked_up = lookup.outputs[0]
    consumers = list(looked_up.uses())
    weight = lookup.inputs[0]
    assert weight is not None and weight.dtype is not None
    looked_up.dtype = weight.dtype
    cast = _cast_node(looked_up, wanted)
    graph.insert_after(lookup, cast)
    hand_over(consumers, cast.outputs[0])


def _cast_node(value: ir.Value, wanted: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": ir.AttrInt64("to", wanted)}, name=f"cast/{value.name}")
    cast.outputs[0].name = f"{value.name}.{wanted.name.lower()}"
    cast.outputs[0].dtype = wanted
    return cast
