"""Edits graphs: finds the products of a transformer's blocks, measures their inputs, and makes them integer products.

An integer product quantizes its input with one scale for all values, and its matrix with one scale for each row. Before
that, the input's channels are multiplied by factors by which the columns of the matrix are divided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ltx_runtime.errors import LtxError
from ltx_runtime.spec.components import CONSTANT_INPUTS
from ltx_runtime.weights.checkpoint import StoredTensor

ROWS = "rows"  # input of a measuring graph: numbers of the tokens of the batch whose activations are returned
_DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}


@dataclass(frozen=True)
class IntegerProduct:
    """Initializers of one product with a matrix (N, K).

    Attributes:
        codes: (K, N) int8.
        scales: (N,) float32, one for each row of the matrix.
    """

    codes: StoredTensor
    scales: StoredTensor


@dataclass(frozen=True)
class IntegerInput:
    """Initializers of the input of one or more products.

    Attributes:
        factors: (K,) float32 by which its channels are multiplied.
        step: () float32, the scale of its codes.
    """

    factors: StoredTensor
    step: StoredTensor


def products_of(graph: ir.Graph) -> dict[str, list[str]]:
    """Returns the matrices that multiply each value of a q8 graph, by the value's name.

    Products that depend on the text alone are left out: they are computed once for all steps.
    """
    varying = {value.name for value in graph.inputs if value.name not in CONSTANT_INPUTS}
    found: dict[str, list[str]] = {}
    for node in graph:
        if not any(value is not None and value.name in varying for value in node.inputs):
            continue
        varying |= {value.name for value in node.outputs}
        matrix = _matrix_of(node)
        if matrix is not None:
            x = node.inputs[0]
            assert x is not None and x.name is not None
            found.setdefault(x.name, []).append(matrix)
    return found


def _matrix_of(node: ir.Node) -> str | None:
    """Returns the name of the integers that a product multiplies with; None if it is no such product."""
    if node.op_type != "MatMul" or node.inputs[1] is None:
        return None
    source = node.inputs[1].producer()
    if source is None or source.op_type != "DequantizeLinear" or source.inputs[0] is None:
        return None
    return source.inputs[0].name


def stored_matrix(graph: ir.Graph, name: str, folder: Path) -> StoredTensor:
    """Returns the place of a matrix (N, K) of an fp32 graph.

    Raises:
        LtxError: the graph has no such matrix, or not as stored floats.
    """
    value = graph.initializers.get(name)
    tensor = None if value is None else value.const_value
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype not in _DTYPES:
        raise LtxError(f"the fp32 graph in {folder} has no matrix {name}", "export the version again")
    shape = tensor.shape.numpy()
    assert tensor.offset is not None and tensor.length is not None
    return StoredTensor(folder / str(tensor.location), tensor.offset, tensor.length, _DTYPES[tensor.dtype], shape)


def largest_of(x: str) -> str:
    """Returns the name of a measuring graph's output: the largest magnitude in each channel of a value, (K,)."""
    return f"{x}.largest"


def rows_of(x: str) -> str:
    """Returns the name of a measuring graph's output: the activations of some tokens, (R, K)."""
    return f"{x}.rows"


def add_measurements(graph: ir.Graph, widths: Mapping[str, int]) -> None:
    """Gives a graph the input ROWS and, for every value (B, T, K) in `widths`, outputs `largest_of` and `rows_of` it.

    Args:
        graph: an fp32 graph.
        widths: K of each value, by its name.
    """
    values = {value.name: value for node in graph for value in node.outputs}
    rows = ir.Value(name=ROWS, shape=ir.Shape([ROWS]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(rows)
    axes = _constant(graph, "measured.axes", [0, 1])
    for name, width in widths.items():
        flat = _constant(graph, f"{name}.flat", [-1, width])
        size = ir.node("Abs", [values[name]])
        largest = ir.node("ReduceMax", [size.outputs[0], axes], {"keepdims": ir.AttrInt64("keepdims", 0)})
        tokens = ir.node("Reshape", [values[name], flat])
        picked = ir.node("Gather", [tokens.outputs[0], rows], {"axis": ir.AttrInt64("axis", 0)})
        graph.extend([size, largest, tokens, picked])
        for node, output in ((largest, largest_of(name)), (picked, rows_of(name))):
            node.outputs[0].name, node.outputs[0].dtype = output, ir.DataType.FLOAT
            graph.outputs.append(node.outputs[0])


def _constant(graph: ir.Graph, name: str, values: Sequence[int]) -> ir.Value:
    return _initializer(graph, name, [len(values)], ir.tensor(np.array(values, np.int64), name=name))


def _initializer(graph: ir.Graph, name: str, shape: Sequence[int], tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers[name] = value
    return value


def use_integers(
    graph: ir.Graph, inputs: Mapping[str, IntegerInput], products: Mapping[str, IntegerProduct], folder: Path
) -> None:
    """Replaces products of a q8 graph with products of integers.

    Args:
        graph: a q8 graph.
        inputs: by the name of each value that is to be quantized; all its products in `products` take it.
        products: by the name of their matrix.
        folder: folder of the files of both, and of the graph.
    """
    stored = partial(_stored, graph, folder)
    zero = _initializer(graph, "integers.zero", [], ir.tensor(np.zeros((), np.int8), name="integers.zero"))
    quantized: dict[str, ir.Value] = {}
    for node in list(graph):
        name, x = _matrix_of(node), node.inputs[0] if node.inputs else None
        if name not in products or name is None or x is None or x.name is None:
            continue
        if x.name not in quantized:
            factors = stored(f"{x.name}.factors", inputs[x.name].factors, ir.DataType.FLOAT)
            step = stored(f"{x.name}.step", inputs[x.name].step, ir.DataType.FLOAT)
            scaled = ir.node("Mul", [x, factors], name=f"{x.name}.scaled")
            codes = ir.node("QuantizeLinear", [scaled.outputs[0], step, zero], name=f"{x.name}.codes")
            floats = ir.node("DequantizeLinear", [codes.outputs[0], step, zero], name=f"{x.name}.floats")
            graph.insert_before(node, [scaled, codes, floats])
            quantized[x.name] = floats.outputs[0]
        _replace_matrix(graph, node, f"{name}.int8", products[name], stored)
        node.replace_input_with(0, quantized[x.name])


_Point = Callable[[str, StoredTensor, ir.DataType], ir.Value]


def _stored(graph: ir.Graph, folder: Path, name: str, tensor: StoredTensor, dtype: ir.DataType) -> ir.Value:
    """Returns a new initializer that points into a file of the folder."""
    place = tensor.file.relative_to(folder).as_posix(), tensor.offset, tensor.length
    data = ir.ExternalTensor(*place, dtype, shape=ir.Shape(tensor.shape), name=name, base_dir=folder)
    return _initializer(graph, name, tensor.shape, data)


def _replace_matrix(graph: ir.Graph, node: ir.Node, name: str, matrix: IntegerProduct, stored: _Point) -> None:
    """Gives a product another matrix, and removes what only the old one needed."""
    old = node.inputs[1]
    source = None if old is None else old.producer()
    assert old is not None and source is not None
    weight = [stored(name, matrix.codes, ir.DataType.INT8), stored(f"{name}.scales", matrix.scales, ir.DataType.FLOAT)]
    floats = ir.node("DequantizeLinear", weight, {"axis": ir.AttrInt64("axis", 1)}, name=f"{name}.float")
    graph.insert_before(source, floats)
    node.replace_input_with(1, floats.outputs[0])
    unused = [value.name for value in source.inputs if value is not None]
    graph.remove(source, safe=True)
    for initializer in unused:
        assert initializer is not None
        del graph.initializers[initializer]
