"""Attaches block-quantized weights to a graph, where they stay integers until the product that uses them.

`DequantizeLinear` with a block size before `MatMul` is the standard form; runtimes fuse the two. Some formats add an
offset or a minimum to every weight of a block. It is added in float32 after the product instead, from the sums of the
input's blocks: that is exact, and costs 1 / block of the product. A product in half precision would be rounded before
the addition, so there it is added to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ltx_export.checkpoints.blocks import BlockFormat
from ltx_export.weights.rewrite import BlockWeight
from ltx_runtime.weights.checkpoint import StoredTensor

FLOAT = ir.DataType.FLOAT
# Makes an initializer from a name, the tensor's location in a file, and the dtype and shape for the graph.
Point = Callable[[str, StoredTensor, ir.DataType, Sequence[int]], ir.Value]

_CODES = {4: ir.DataType.INT4, 8: ir.DataType.INT8, 16: ir.DataType.FLOAT16}  # dtype of codes by number of bits


@dataclass(frozen=True)
class _Integers:
    """The initializers that replace one quantized weight."""

    codes: ir.Value
    scales: ir.Value
    added: tuple[tuple[ir.Value, float], ...]  # values, with factors, that are added to every weight of a block
    format: BlockFormat
    shape: tuple[int, ...]


@dataclass
class _Nodes:
    """Creates nodes, whose names start with the place in the graph that they belong to."""

    graph: ir.Graph
    prefix: str
    made: list[ir.Node] = field(default_factory=list)

    def add(self, op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType = FLOAT, **attributes: int) -> ir.Value:
        number = len(self.made)
        int_attributes = [ir.AttrInt64(key, value) for key, value in attributes.items()]
        node = ir.Node("", op_type, inputs, int_attributes, name=f"{self.prefix}/{op_type}_{number}")
        node.outputs[0].name, node.outputs[0].dtype = f"{self.prefix}.{number}", dtype
        self.made.append(node)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Returns the value cast to a dtype, or the value itself if it has that dtype."""
        return value if value.dtype == dtype else self.add("Cast", [value], dtype, to=dtype)

    def constant(self, values: int | float | Sequence[int]) -> ir.Value:
        """Returns an initializer with these values, which all nodes that need them share."""
        array = np.array(values, np.float32 if isinstance(values, float) else np.int64)
        name = "blocks." + "_".join(str(value) for value in array.reshape(-1).tolist())
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            self.graph.initializers[name] = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.graph.initializers[name]


def attach_blocks(graph: ir.Graph, weight: ir.Value, blocks: BlockWeight, point: Point) -> None:
    """Replaces a weight (N, K) of a graph with its codes, scales and minimums.

    Args:
        graph: has the weight as an initializer, which is used by Transpose before a product, or by Gather as a table.
        weight: the initializer, a float in the graph's own precision.
        blocks: location of the integers.
        point: makes initializers that point into files.

    Raises:
        ValueError: a node of another kind uses the weight.
    """
    name, dtype = weight.name, weight.dtype
    assert name is not None and dtype is not None
    consumers = [use.node for use in weight.uses()]
    del graph.initializers[name]
    integers = _point_to(name, blocks, point)
    for node in consumers:
        if node.op_type == "Transpose" and not blocks.is_table:
            _dequantize(graph, node, integers, dtype)
        elif node.op_type == "Gather" and blocks.is_table:
            _look_up(graph, node, integers, dtype)
        else:
            expected = "Gather" if blocks.is_table else "Transpose"
            raise ValueError(f"{name} is quantized, but {node.name} is not a {expected}")


def _point_to(name: str, blocks: BlockWeight, point: Point) -> _Integers:
    shape = blocks.shape if blocks.is_table else blocks.shape[::-1]
    codes = point(name, blocks.codes, _CODES[blocks.format.bits], shape)
    scales = point(f"{name}.scales", blocks.scales, FLOAT, blocks.scales.shape)
    added = []
    if blocks.format.offset:
        # The same bytes under a second name: ONNX Runtime does not fuse scales that another node uses too.
        offsets = point(f"{name}.offsets", blocks.scales, FLOAT, blocks.scales.shape)
        added.append((offsets, float(blocks.format.offset)))
    if blocks.minimums is not None:
        added.append((point(f"{name}.minimums", blocks.minimums, FLOAT, blocks.minimums.shape), 1.0))
    return _Integers(codes, scales, tuple(added), blocks.format, blocks.shape)


def _dequantize(graph: ir.Graph, transpose: ir.Node, weight: _Integers, dtype: ir.DataType) -> None:
    """Gives the dequantized matrix (K, N) to every product that used the transposed weight.

    Its nodes come first in the node list, like the casts of stored weights, so that a runtime frees the floats after
    the product.
    """
    nodes = _Nodes(graph, f"{weight.codes.name}.float")
    matrix = nodes.add("DequantizeLinear", [weight.codes, weight.scales], axis=0, block_size=weight.format.block)
    if dtype != FLOAT:
        matrix = nodes.cast(_with_offsets(nodes, matrix, weight), dtype)
    graph.insert_before(graph[0], nodes.made)
    for use in list(transpose.outputs[0].uses()):
        use.node.replace_input_with(use.idx, matrix)
        if dtype == FLOAT and weight.added:
            _add_after_product(graph, use.node, weight)
    graph.remove(transpose, safe=True)


def _with_offsets(nodes: _Nodes, matrix: ir.Value, weight: _Integers) -> ir.Value:
    """Returns the matrix (K, N) with its blocks' offsets and minimums added, whose sum a compiler can precompute."""
    if not weight.added:
        return matrix
    columns = weight.shape[0]
    scaled = [
        values if factor == 1 else nodes.add("Mul", [values, nodes.constant(factor)]) for values, factor in weight.added
    ]
    total = scaled[0]
    for values in scaled[1:]:
        total = nodes.add("Add", [total, values])
    blocks = nodes.add("Reshape", [matrix, nodes.constant([-1, weight.format.block, columns])])
    sums = nodes.add("Add", [blocks, nodes.add("Unsqueeze", [total, nodes.constant([1])])])
    return nodes.add("Reshape", [sums, nodes.constant([-1, columns])])


def _add_after_product(graph: ir.Graph, product: ir.Node, weight: _Integers) -> None:
    """Adds factor * (block sums of x) @ values after a product, one term after the other, because each is exact."""
    x, total = product.inputs[0], product.outputs[0]
    assert x is not None
    consumers = list(total.uses())
    nodes = _Nodes(graph, f"{product.name}/behind")
    in_blocks = nodes.add("Reshape", [x, nodes.constant([0, 0, -1, weight.format.block])])
    sums = nodes.add("ReduceSum", [in_blocks, nodes.constant([-1])], keepdims=0)
    for values, factor in weight.added:
        scaled = sums if factor == 1 else nodes.add("Mul", [sums, nodes.constant(factor)])
        total = nodes.add("Add", [total, nodes.add("MatMul", [scaled, values])])
    hand_over(consumers, total)
    graph.insert_after(product, nodes.made)


def _look_up(graph: ir.Graph, lookup: ir.Node, weight: _Integers, dtype: ir.DataType) -> None:
    """Looks up rows of codes, scales and minimums and dequantizes them: (B, T, K / block, block) -> (B, T, K)."""
    ids, rows = lookup.inputs[1], lookup.outputs[0]
    assert ids is not None
    consumers = list(rows.uses())
    nodes = _Nodes(graph, f"{lookup.name}/rows")
    block, columns = weight.format.block, weight.shape[1]

    def per_block(table: ir.Value) -> ir.Value:
        return nodes.add("Unsqueeze", [nodes.add("Gather", [table, ids]), nodes.constant([-1])])

    assert weight.codes.dtype is not None
    codes = nodes.cast(nodes.add("Gather", [weight.codes, ids], weight.codes.dtype), FLOAT)
    values = nodes.add("Reshape", [codes, nodes.constant([0, 0, columns // block, block])])
    values = nodes.add("Mul", [values, per_block(weight.scales)])
    for table, _ in weight.added:  # a table's codes have no offset
        values = nodes.add("Add", [values, per_block(table)])
    hand_over(consumers, nodes.cast(nodes.add("Reshape", [values, nodes.constant([0, 0, columns])]), dtype))
    graph.insert_after(lookup, nodes.made)
    graph.remove(lookup, safe=True)


def hand_over(consumers: Sequence[Any], value: ir.Value) -> None:
    """Makes the given uses of another value use this value instead."""
    for use in consumers:
        use.node.replace_input_with(use.idx, value)
