"""ONNX graphs written by hand, for tests that run without the onnx package."""

import struct
from collections.abc import Sequence

from ltx_runtime.spec.components import Component

FLOAT, INT8, INT64 = 1, 3, 7  # data types of onnx.proto
IR_VERSION, OPSET = 10, 23  # those of exported graphs


def field(number: int, content: int | str | bytes) -> bytes:
    """Encodes one field of a protobuf message: a number, or text or another message with its length in front."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    """Encodes a number from 0 in groups of seven bits, the lowest first."""
    groups = [number >> 7 * group & 127 for group in range(max(1, -(-number.bit_length() // 7)))]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def value(name: str, data_type: int, axes: Sequence[int | str]) -> bytes:
    """Encodes an input or output."""
    shape = b"".join(field(1, field(1 if isinstance(axis, int) else 2, axis)) for axis in axes)
    return field(1, name) + field(2, field(1, field(1, data_type) + field(2, shape)))


def node(op_type: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    """Encodes a node with one output."""
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, op_type) + attributes


def integers(name: str, values: Sequence[int]) -> bytes:
    """Encodes a constant of one axis, int64, that lies in the graph."""
    return field(1, len(values)) + field(2, INT64) + field(8, name) + field(9, struct.pack(f"<{len(values)}q", *values))


def outside(name: str, data_type: int, dims: Sequence[int], **place: object) -> bytes:
    """Encodes a constant that lies in a file; `place` has `location`, `offset` and `length`."""
    entries = b"".join(field(13, field(1, key) + field(2, str(entry))) for key, entry in place.items())
    return b"".join(field(1, size) for size in dims) + field(2, data_type) + field(8, name) + entries + field(14, 1)


def model(
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    constants: Sequence[bytes] = (),
    more_of_graph: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """Encodes a whole file; `more_of_graph` and `more` are further fields of the graph and of the model."""
    parts = ((1, nodes), (5, constants), (11, inputs), (12, outputs))
    graph = b"".join(field(number, part) for number, some in parts for part in some)
    opset = field(1, "") + field(2, OPSET)
    return field(1, IR_VERSION) + field(7, graph + field(2, "sum") + more_of_graph) + field(8, opset) + more


def graph_that_adds(*inputs: str, output: str, channels: int = 6) -> bytes:
    """Returns a graph of the sum of two int64 inputs (batch, text_tokens), as float32 and equal in all channels."""
    axes = ("batch", "text_tokens")
    to_float = field(5, field(1, "to") + field(3, FLOAT) + field(20, 2))
    nodes = (
        node("Add", inputs, "sum"),
        node("Cast", ["sum"], "float", to_float),
        node("Unsqueeze", ["float", "last"], "column"),
        node("Tile", ["column", "times"], output),
    )
    constants = integers("last", [len(axes)]), integers("times", [1, 1, channels])
    ports = [value(name, INT64, axes) for name in inputs]
    return model(nodes, ports, [value(output, FLOAT, (*axes, channels))], constants)


def graph_of(component: Component, weights: str, words: int = 1) -> bytes:
    """Returns a graph with the ports of a component, which may be loaded and computes nothing of use.

    Args:
        component: the ports.
        weights: name of a file of at least so many bytes.
        words: number of ids that a text encoder knows.
    """
    types = {"float32": FLOAT, "int64": INT64}
    sides = component.inputs, component.outputs
    inputs, outputs = ([value(port.name, types[port.dtype], port.axes) for port in side] for side in sides)
    first, *_ = (port.name for port in component.inputs)
    nodes = [node("Gather", ["table", first], "rows"), *(node("Cast", ["rows"], p.name) for p in component.outputs)]
    table = outside("table", INT8, [words], location=weights, offset=0, length=words)
    return model(nodes, inputs, outputs, [table])
