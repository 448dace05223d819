"""Graph + stored tensors -> a graph whose initializers point into the unmodified file by offset. Copies nothing.

Where a file's dtype differs from the graph's, the graph casts: first in the node list, so that a runtime frees
each result after its consumer; behind the lookup for an embedding, so that only looked-up rows are cast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ltx_export.checkpoint import StoredTensor
from ltx_runtime.errors import LtxError

_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


def attach(model: ir.Model, tensors: Mapping[str, StoredTensor], file_name: str, folder: Path) -> None:
    """Gives every weight of the graph its place in `file_name`, which lies beside the graph in `folder`.

    Raises:
        LtxError: a tensor is stored in a dtype that graphs cannot point into.
    """
    graph = model.graph
    first = graph[0]
    for name, value in list(graph.initializers.items()):
        if name not in tensors:
            continue
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise LtxError(f"{name} is stored as {tensor.dtype}; graphs take {', '.join(_DTYPES)} - use a bf16 file")
        stored = _DTYPES[tensor.dtype]
        wanted = value.dtype
        value.const_value = ir.ExternalTensor(
            file_name,
            tensor.offset,
            tensor.length,
            stored,
            shape=ir.Shape(tensor.shape),
            name=name,
            base_dir=folder,
        )
        value.dtype = stored
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
    _redirect(consumers, cast)


def _cast_after(graph: ir.Graph, lookup: ir.Node, wanted: ir.DataType) -> None:
    looked_up = lookup.outputs[0]
    consumers = list(looked_up.uses())
    weight = lookup.inputs[0]
    assert weight is not None and weight.dtype is not None
    looked_up.dtype = weight.dtype
    cast = _cast_node(looked_up, wanted)
    graph.insert_after(lookup, cast)
    _redirect(consumers, cast)


def _cast_node(value: ir.Value, wanted: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": ir.AttrInt64("to", wanted)}, name=f"cast/{value.name}")
    cast.outputs[0].name = f"{value.name}.{wanted.name.lower()}"
    cast.outputs[0].dtype = wanted
    return cast


def _redirect(consumers: Sequence[Any], cast: ir.Node) -> None:
    for use in consumers:
        use.node.replace_input_with(use.idx, cast.outputs[0])
