"""Derives the graph of every precision from one trace by changing its bf16 dtype to another.

Modules are traced in bf16, with a cast wherever values enter or leave float32. Every other operator is the same in all
precisions, so a graph in fp16 or fp32 is the traced one with its bf16 tensors and casts retyped.
"""

from __future__ import annotations

from copy import copy

import onnx_ir as ir

TRACED = ir.DataType.BFLOAT16
PRECISIONS = {"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}


def at_precision(traced: ir.Model, precision: str) -> ir.Model:
    """Returns a copy of a traced graph that computes in `precision`, a key of PRECISIONS; float32 parts are kept."""
    dtype = PRECISIONS[precision]
    model = traced.clone()
    graph = model.graph
    for value in (*graph.initializers.values(), *(out for node in graph for out in node.outputs)):
        value.type = copy(value.type)  # a clone shares types with its original
        if value.dtype == TRACED:
            value.dtype = dtype
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), name=value.name)
    for node in list(graph):
        if node.op_type == "Cast":
            _retype_cast(graph, node, dtype)
    model.metadata_props["precision"] = precision
    return model


def _retype_cast(graph: ir.Graph, cast: ir.Node, dtype: ir.DataType) -> None:
    if cast.attributes["to"].as_int() == TRACED:
        cast.attributes["to"] = ir.AttrInt64("to", dtype)
    source, result = cast.inputs[0], cast.outputs[0]
    assert source is not None
    if source.dtype == cast.attributes["to"].as_int() and not result.is_graph_output():
        result.replace_all_uses_with(source)
        graph.remove(cast, safe=True)
