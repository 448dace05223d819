"""Reads an ONNX graph: its ports, its nodes and the places of its weights; without the onnx package.

Only what an export writes is read: a graph inside a node, a function or a sparse tensor is an error, so that what is
read here is all that a library sees. Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ltx_runtime.errors import LtxError, explaining, shown
from ltx_runtime.graph.protobuf import (
    FOUR_BYTES,
    VARINT,
    Field,
    Message,
    key_of,
    message,
    number_in,
    packed_in,
    text_in,
    text_of,
)
from ltx_runtime.spec.components import Axis

_MOST_BYTES = 32 << 20  # of a graph; that of a 13B transformer in q8 has 1.6 MB
MOST_NODES = 100_000
_MOST_DIMENSIONS = 8
EXPORT_AGAIN = "export the version again, or get its folder again"
_OUTSIDE = 1  # where the values of a tensor are, in its field data_location

# Keys of the fields of each message, and which of them it may have once or often.
_IR_VERSION, _GRAPH, _OPSET = key_of(1, VARINT), key_of(7), key_of(8)
_MODEL_ONCE = frozenset({_IR_VERSION, *map(key_of, (2, 3, 4, 6)), key_of(5, VARINT), _GRAPH})
_MODEL_OFTEN = frozenset({_OPSET, key_of(14)})
_OPSET_DOMAIN, _OPSET_VERSION = key_of(1), key_of(2, VARINT)
_NODE, _INITIALIZER, _INPUT, _OUTPUT = map(key_of, (1, 5, 11, 12))
_GRAPH_ONCE = frozenset({key_of(2), key_of(10)})
_GRAPH_OFTEN = frozenset({_NODE, _INITIALIZER, _INPUT, _OUTPUT, key_of(13), key_of(16)})
_NODE_INPUT, _NODE_OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = map(key_of, (1, 2, 4, 5, 7))
_NODE_ONCE = frozenset({_OP_TYPE, _DOMAIN, key_of(3), key_of(6)})
_NODE_OFTEN = frozenset({_NODE_INPUT, _NODE_OUTPUT, _ATTRIBUTE, key_of(9)})
# A name, one number or text, and its kind; or many of them. Any other field leads to a tensor or to another graph.
_ATTRIBUTE_ONCE = frozenset({*map(key_of, (1, 4, 13)), key_of(2, FOUR_BYTES), key_of(3, VARINT), key_of(20, VARINT)})
_ATTRIBUTE_OFTEN = frozenset({key_of(7, FOUR_BYTES), key_of(8, VARINT), *map(key_of, (7, 8, 9))})
_DIMS, _PACKED_DIMS, _DATA_TYPE, _NAME = key_of(1, VARINT), key_of(1), key_of(2, VARINT), key_of(8)
_RAW, _EXTERNAL, _DATA_LOCATION = key_of(9), key_of(13), key_of(14, VARINT)
_TENSOR_ONCE = frozenset({_PACKED_DIMS, _DATA_TYPE, _NAME, _RAW, key_of(12), _DATA_LOCATION})
_TENSOR_OFTEN = frozenset({_DIMS, _EXTERNAL})
_ENTRY_KEY, _ENTRY_VALUE = key_of(1), key_of(2)
_PORT_NAME, _PORT_TYPE = key_of(1), key_of(2)
_TENSOR_TYPE, _ELEMENT_TYPE, _SHAPE = key_of(1), key_of(1, VARINT), key_of(2)
_DIMENSION, _AXIS_SIZE, _AXIS_NAME = key_of(1), key_of(1, VARINT), key_of(2)
_PLACE_KEYS = {"location", "offset", "length"}
_NUMBER = re.compile(r"[0-9]{1,18}")


class Place(NamedTuple):
    """Place of the bytes of a weight: `length` bytes at `offset` in the file that a graph calls `location`."""

    location: str
    offset: int
    length: int


class Initializer(NamedTuple):
    """A constant of a graph.

    Attributes:
        name: its name.
        data_type: number of its data type in onnx.proto.
        dims: its shape.
        place: where its values lie in a file; None if they are in the graph itself.
        length: number of bytes of its values.
    """

    name: str
    data_type: int
    dims: tuple[int, ...]
    place: Place | None
    length: int


class Value(NamedTuple):
    """An input or output of a graph: its name, the number of its data type in onnx.proto, and its axes."""

    name: str
    data_type: int
    axes: tuple[Axis, ...]


class Node(NamedTuple):
    """A node of a graph: the operator that it applies, and the names of the values that it takes and makes."""

    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A graph as it is written in a file.

    Attributes:
        ir_version: version of the file format.
        opsets: version of the operators by domain.
        inputs, outputs: its ports.
        initializers: its constants.
        nodes: its nodes.
    """

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    initializers: tuple[Initializer, ...]
    nodes: tuple[Node, ...]


def read_graph(path: Path) -> Graph:
    """Reads the graph in a file.

    Raises:
        LtxError: the file cannot be read, is too large, or is not an ONNX graph as exports write them.
    """
    with explaining(f"read {path}"):
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise LtxError(f"{path} has {size} bytes, and a graph has at most {_MOST_BYTES}", EXPORT_AGAIN)
        data = path.read_bytes()
    try:
        return _graph(data)
    except ValueError as error:
        raise LtxError(f"{path} is not an ONNX graph ({error})", EXPORT_AGAIN) from None


def _graph(data: bytes) -> Graph:
    model = message(data, 0, len(data), _MODEL_ONCE, _MODEL_OFTEN)
    if _GRAPH not in model:
        raise ValueError("it has no graph")
    _, start, end = model[_GRAPH][0]
    assert end is not None
    found = message(data, start, end, _GRAPH_ONCE, _GRAPH_OFTEN)
    if len(found.get(_NODE, ())) > MOST_NODES:
        raise ValueError(f"it has more than {MOST_NODES} nodes")
    inspected: set[bytes] = set()
    return Graph(
        number_in(model, _IR_VERSION),
        dict(_opset(data, field) for field in model.get(_OPSET, ())),
        tuple(_value(data, field) for field in found.get(_INPUT, ())),
        tuple(_value(data, field) for field in found.get(_OUTPUT, ())),
        tuple(_initializer(data, field) for field in found.get(_INITIALIZER, ())),
        tuple(_node(data, field, inspected) for field in found.get(_NODE, ())),
    )


def _inside(data: bytes, field: Field, once: AbstractSet[int], often: AbstractSet[int] = frozenset()) -> Message:
    """Returns the fields of the message that a field holds."""
    _, start, end = field
    assert end is not None
    return message(data, start, end, once, often)


def _opset(data: bytes, field: Field) -> tuple[str, int]:
    opset = _inside(data, field, {_OPSET_DOMAIN, _OPSET_VERSION})
    return text_in(data, opset, _OPSET_DOMAIN), number_in(opset, _OPSET_VERSION)


def _node(data: bytes, field: Field, inspected: set[bytes]) -> Node:
    """Returns a node; `inspected` are attributes without graphs and tensors, of which most nodes have the same."""
    node = _inside(data, field, _NODE_ONCE, _NODE_OFTEN)
    for attribute in node.get(_ATTRIBUTE, ()):
        content = data[attribute[1] : attribute[2]]
        if content not in inspected:
            message(content, 0, len(content), _ATTRIBUTE_ONCE, _ATTRIBUTE_OFTEN)
            inspected.add(content)
    return Node(
        text_in(data, node, _DOMAIN),
        text_in(data, node, _OP_TYPE),
        tuple(text_of(data, name) for name in node.get(_NODE_INPUT, ())),
        tuple(text_of(data, name) for name in node.get(_NODE_OUTPUT, ())),
    )


def _initializer(data: bytes, field: Field) -> Initializer:
    tensor = _inside(data, field, _TENSOR_ONCE, _TENSOR_OFTEN)
    dims = [size for _, size, _ in tensor.get(_DIMS, ())]
    for packed in tensor.get(_PACKED_DIMS, ()):
        dims += packed_in(data, packed)
    if len(dims) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {len(dims)} dimensions")
    place = _place(data, tensor[_EXTERNAL]) if _EXTERNAL in tensor else None
    is_outside = number_in(tensor, _DATA_LOCATION) == _OUTSIDE
    if is_outside != (place is not None) or (is_outside and _RAW in tensor):
        raise ValueError("a tensor is both in the graph and outside it")
    _, start, end = tensor[_RAW][0] if _RAW in tensor else (0, 0, 0)
    length = (end or 0) - start if place is None else place.length
    return Initializer(text_in(data, tensor, _NAME), number_in(tensor, _DATA_TYPE), tuple(dims), place, length)


def _place(data: bytes, entries: Sequence[Field]) -> Place:
    """Returns the place that the entries of a tensor's external data name."""
    named = {}
    for field in entries:
        entry = _inside(data, field, {_ENTRY_KEY, _ENTRY_VALUE})
        name = text_in(data, entry, _ENTRY_KEY)
        if name in named or name not in _PLACE_KEYS:
            raise ValueError(f"a tensor's place has an entry {shown(name)} that no export writes")
        named[name] = text_in(data, entry, _ENTRY_VALUE)
    numbers = [named.get(name, "0") for name in ("offset", "length")]
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        raise ValueError("a tensor's place is no number")
    return Place(named.get("location", ""), *map(int, numbers))


def _value(data: bytes, field: Field) -> Value:
    """Returns an input or output, which must be a tensor with a shape."""
    value = _inside(data, field, {_PORT_NAME, _PORT_TYPE, key_of(3)}, {key_of(4)})
    tensor: Message = {}
    for key, once in ((_PORT_TYPE, {_TENSOR_TYPE, key_of(6)}), (_TENSOR_TYPE, {_ELEMENT_TYPE, _SHAPE})):
        holder = value if key == _PORT_TYPE else tensor
        if key not in holder:
            raise ValueError("a port is no tensor")
        tensor = _inside(data, holder[key][0], once)
    if _SHAPE not in tensor:
        raise ValueError("a port has no shape")
    shape = _inside(data, tensor[_SHAPE][0], frozenset(), {_DIMENSION})
    axes = tuple(_axis(data, axis) for axis in shape.get(_DIMENSION, ()))
    return Value(text_in(data, value, _PORT_NAME), number_in(tensor, _ELEMENT_TYPE), axes)


def _axis(data: bytes, field: Field) -> Axis:
    axis = _inside(data, field, {_AXIS_SIZE, _AXIS_NAME, key_of(3)})
    return number_in(axis, _AXIS_SIZE) if _AXIS_SIZE in axis else text_in(data, axis, _AXIS_NAME)
