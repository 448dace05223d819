"""The weights of an ONNX graph: where each of its initializers lies in a file; read without the onnx package.

Only the fields of onnx.proto that lead to initializers with external data are read; everything else is passed over.
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ltx_runtime.errors import LtxError, explaining
from ltx_runtime.weights.checkpoint import StoredTensor

_GRAPH_OF_MODEL, _INITIALIZER_OF_GRAPH = 7, 5
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA = 1, 2, 8, 13  # of a TensorProto
_KEY, _VALUE = 1, 2  # of an entry of external data
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types of protobuf
_LONGEST_BITS = 64
# Names of the data types of onnx that are stored floats; others keep their number, such as `onnx 3` for int8.
_DTYPES = {1: "F32", 10: "F16", 16: "BF16"}
_Field = tuple[int, int | memoryview]


def weights_of(graph: Path, folder: Path) -> dict[str, StoredTensor]:
    """Returns the place of every weight of a graph, by the name of its initializer.

    Args:
        graph: path of the graph.
        folder: folder to which the graph's names of weight files are relative.

    Raises:
        LtxError: the graph cannot be read, or is not an ONNX graph.
    """
    with explaining(f"read {graph}"):
        raw = memoryview(graph.read_bytes())
    try:
        tensors = [
            _stored(message, folder)
            for model_field, content in _fields(raw)
            if model_field == _GRAPH_OF_MODEL
            for graph_field, message in _fields(_message(content))
            if graph_field == _INITIALIZER_OF_GRAPH
        ]
    except (ValueError, KeyError, IndexError, RecursionError) as error:
        raise LtxError(f"{graph} is not an ONNX graph ({error})", "export the version again") from None
    return {name: tensor for name, tensor in tensors if tensor is not None}


def _stored(content: int | memoryview, folder: Path) -> tuple[str, StoredTensor | None]:
    """Returns the name of a tensor, and its place in a file if it is not in the graph itself."""
    name, data_type = "", 0
    dims: list[int] = []
    external: dict[str, str] = {}
    for number, value in _fields(_message(content)):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == _NAME:
            name = _text(value)
        elif number == _EXTERNAL_DATA:
            entry = dict(_fields(_message(value)))
            external[_text(entry[_KEY])] = _text(entry[_VALUE])
    if not external:
        return name, None
    place = folder / external["location"], int(external.get("offset", 0)), int(external["length"])
    return name, StoredTensor(*place, _DTYPES.get(data_type, f"onnx {data_type}"), tuple(dims))


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yields number and content of each field of a protobuf message: a number, or the bytes of anything longer."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _LENGTH:
            length, position = _varint(message, position)
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of type {wire_type}")
        if position + length > len(message):
            raise ValueError("it ends within a field")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Returns a number that is stored in groups of seven bits, the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, _LONGEST_BITS, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number of more than 64 bits")


def _varints(packed: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(packed):
        value, position = _varint(packed, position)
        values.append(value)
    return values


def _message(content: int | memoryview) -> memoryview:
    if isinstance(content, int):
        raise ValueError("a number in place of a message")
    return content


def _text(content: int | memoryview) -> str:
    return bytes(_message(content)).decode()
